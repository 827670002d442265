"""Puts the helpers of this folder on the path and prints what the long profile has tried."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import damage


def pytest_terminal_summary(terminalreporter):
    if damage.SECONDS:
        for (name, outcome), count in sorted(damage.executions.items()):
            terminalreporter.write_line(f"{name}: {count} files {outcome}")
