"""Exact match of the final answer with the gold string. Cheap: runs in the caller's process."""

from __future__ import annotations

import re

INTEGER = re.compile(r"-?\d+")


def grade(response: str, answer: str, *, marker: str) -> float:
    """1.0 if the response's final answer is the gold answer, else 0.0.

    With a marker, the final answer is everything after its last occurrence, surrounding blanks aside; no marker in
    the response, no answer. With a blank marker the response is the answer, and its first integer counts.
    """
    if marker.strip():
        _, found, final = response.rpartition(marker)
        return float(bool(found) and final.strip() == answer.strip())
    first = INTEGER.search(response)
    return float(first is not None and first.group() == answer.strip())
