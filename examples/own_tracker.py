"""A tracker of one's own: a table. --config.tracker.path=examples/own_tracker.py:Table"""


class Table:
    """WORKDIR/<name>.csv: step, mean reward."""

    def __init__(self, workdir, name="table"):
        self.file = (workdir / f"{name}.csv").open("a")

    def log(self, step, metrics):
        self.file.write(f"{step},{metrics.get('reward/mean', '')}\n")

    def close(self):
        self.file.close()
