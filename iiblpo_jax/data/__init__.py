"""Tasks, their loaders and the prompts. Start with `task.py`, then `registry.py`, `prompts.py`, `pipeline.py`."""
