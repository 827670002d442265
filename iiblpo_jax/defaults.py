"""What a config file starts from: `default_config`, presets, and other files to build on (config/defaults.py)."""

from iiblpo_jax.config.defaults import RunConfig, dapo, default_config, paper, plain_grpo
from iiblpo_jax.config.files import load_file

__all__ = ["RunConfig", "dapo", "default_config", "load_file", "paper", "plain_grpo"]
