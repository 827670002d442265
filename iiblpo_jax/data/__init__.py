"""Tasks, their loaders and the prompt pipeline. Start with `task.py`, then `registry.py`, then `pipeline.py`."""
