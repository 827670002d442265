"""What a config file starts from: `default_config` (config/defaults.py), presets (config/presets.py), and other files
to build on."""

from iiblpo_jax.config.defaults import RunConfig, default_config
from iiblpo_jax.config.files import load_file
from iiblpo_jax.config.presets import dapo, fr3e, kepo, paper, plain_grpo, released, treepo, treerl

__all__ = [
    "RunConfig",
    "dapo",
    "default_config",
    "fr3e",
    "kepo",
    "load_file",
    "paper",
    "plain_grpo",
    "released",
    "treepo",
    "treerl",
]
