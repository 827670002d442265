"""Fixtures shared by the whole suite: tiny random models on the CPU, processes with several devices."""

import gc
import os
import socket
import subprocess
import sys
import textwrap

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most of the suite's time is compilation, and hardly an assertion depends on how well XLA optimises. Its older code
# generator for the CPU takes a third of the newer one's time. With JAX_DISABLE_MOST_OPTIMIZATIONS=0 the suite tests
# optimised programs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

import jax
import pytest
from flax import nnx

from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.model.steering.psa import PSA

LONGEST = (
    "test_processes.py",
    "test_mesh_runs.py",
    "test_killed.py",
    "test_killed_evaluation.py",
    "test_benchmarks.py",
    "test_compare.py",
    "test_engine.py",
    "test_smollm2.py",
    "test_trainer.py",
    "test_refills.py",
    "test_gradient.py",
    "test_training.py",
    "test_sources.py",
    "test_types.py",
    "test_notebook.py",
    "test_stage_mesh.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first: a file is one process's, and the last one would leave the other processes idle.

    launch/test.sh tells pytest-xdist to leave it at that: by itself it begins with the files of most tests.
    """
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


SELDOM = (50_000, 20, 50)  # thresholds of garbage collection: tracing makes much that lives as long as its program


def pytest_collection_finish(session):
    """What is imported by now stays: the garbage collector need not walk through it again while programs are traced."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*SELDOM)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drops compiled programs with their module: those of all modules exhaust the memory maps of a process."""
    yield
    jax.clear_caches()


@pytest.fixture
def own_code(tmp_path):
    """Writes a file of the user's own and says how a config names its function `make`."""

    def write(text):
        (tmp_path / "mine.py").write_text(textwrap.dedent(text))
        return f"{tmp_path / 'mine.py'}:make"

    return write


@pytest.fixture(scope="module")
def optimised():
    """Optimised programs until the module ends: where so many steps are taken that they pay, or bits are compared."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def virtual_devices():
    """A function from a number of CPU devices to the environment of a process that has so many."""

    def environment(count: int) -> dict[str, str]:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
        return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}

    return environment


@pytest.fixture(scope="session")
def run_script(virtual_devices):
    """A function that runs a Python script on so many CPU devices, wants it to succeed, and returns what it printed."""

    def run(script: str, *arguments: str, devices: int, **variables: str) -> str:
        script = f"import gc\ngc.set_threshold{SELDOM}\n{textwrap.dedent(script)}"
        command = [sys.executable, "-c", script, *arguments]
        environment = virtual_devices(devices) | variables
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def neighbouring_ports():
    """A function that finds a free port whose successor, the watch's, is free too."""

    def find() -> int:
        while True:
            with socket.create_server(("", 0)) as server:
                port = server.getsockname()[1]
                try:
                    socket.create_server(("", port + 1)).close()
                except (OSError, OverflowError):
                    continue
            return port

    return find


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Two layers, grouped queries, a head width that is not D/H."""
    return ModelConfig(
        family="qwen3",
        vocab_size=23,
        d_model=16,
        d_ff=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        qk_norm=True,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_config):
    """Weights scaled up so that the next-token distribution is far from uniform."""
    params = params_of(Decoder(tiny_config, rngs=nnx.Rngs(0)))
    return {**params, "embed": params["embed"] * 20.0}


@pytest.fixture(scope="session")
def tiny_psa_params(tiny_config):
    """PSA of width 4 on both layers with a gain and values that are not zero, so that every path of z is exercised."""
    params = params_of(PSA(tiny_config, 4, 2, rngs=nnx.Rngs(1)))

    def random(seed, like):
        return jax.random.normal(jax.random.key(seed), like.shape)

    return {**params, "gain": 0.3 * random(2, params["gain"]), "value": 0.5 * random(3, params["value"])}


@pytest.fixture(scope="session")
def letters():
    """A function from a chat template to a transformers tokenizer of one token an ASCII character; `$` ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(template: str | None = None):
        rust = Tokenizer(models.WordLevel({chr(i): i for i in range(128)}, unk_token="$"))
        rust.pre_tokenizer, rust.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
        return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="$", chat_template=template)

    return make
