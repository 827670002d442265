"""Which plans are followed under which code: a table of counts over the samples of held-out problems."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

COLUMNS = 12  # plans that have a column; what else was written shares one
OTHER, MALFORMED = "other", "malformed"


def plan_table(plans: Sequence[Sequence[str | None]], code_Nn: np.ndarray, codes: int) -> dict:
    """{"plans": names of the columns, the most frequent first; "counts": a row of numbers a code}, as JSON.

    Plans are compared across problems, so the numbers in them are left out: `9-4+3` and `7-1+2` are both `n-n+n`.

    Args:
      plans: [N][n] of data.task.Task.plan, None where a response has none.
      code_Nn: code of each sample.
      codes: how many there are.
    """
    kinds = [[MALFORMED if plan is None else re.sub(r"\d+", "n", plan) for plan in row] for row in plans]
    total = Counter(kind for row in kinds for kind in row if kind != MALFORMED)
    named = [kind for kind, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:COLUMNS]]
    counted = [Counter() for _ in range(codes)]
    for row, code_n in zip(kinds, code_Nn, strict=True):
        for kind, code in zip(row, code_n, strict=True):
            counted[code][kind if kind in (*named, MALFORMED) else OTHER] += 1
    columns = [*named, *(name for name in (OTHER, MALFORMED) if any(of_code[name] for of_code in counted))]
    return {"plans": columns, "counts": [[of_code[name] for name in columns] for of_code in counted]}
