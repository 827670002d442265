"""Finished runs as Markdown: mean +- standard error over seeds, and differences to one arm, paired by seed."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from learning_arms import NAMED, WORDS, Budget
from learning_store import arm_of
from scipy import stats

FINAL = ("pass@1", "pass@4", "pass@16", "pass@64", "greedy", "unique_correct", "distinct_4", "self_bleu", "tokens")
COMPARED = ("pass@1", "pass@4", "pass@16", "pass@64", "greedy", "unique_correct", "distinct_4", "self_bleu")
CURVE = ("pass@1", "pass@16")  # read off at other budgets
LAST = 2 / 3  # of the budget: from here on a curve should be flat


def tables(lines: Sequence[dict], *, against: str) -> str:
    """A title and three tables for every family, budget and task; arms in the order of NAMED, then of the file."""
    return "\n\n".join(_group(*key, mine, against) for key, mine in comparable(lines).items())


def comparable(lines: Sequence[dict]) -> dict[tuple[str, Budget, str], list[dict]]:
    """(family, budget, task) -> the lines that one table or row of panels shows."""
    groups: dict[tuple[str, Budget, str], list[dict]] = {}
    for line in lines:
        for task in line["final"]:
            groups.setdefault((arm_of(line).family, budget_of(line), task), []).append(line)
    return groups


def budget_of(line: dict) -> Budget:
    """The budget of a line."""
    [(unit, amount)] = line["budget"].items()
    return Budget(unit=unit, amount=amount)


def points_of(line: dict, task: str, name: str, unit: str) -> list[tuple[float, float]]:
    """(spent, value) of a metric at the points of a run; entropy, a mean of the steps before, has none at the start."""
    values = [(p[unit], p.get(name, p["eval"][task].get(name))) for p in line["points"]]
    return [(x, y) for x, y in values if y is not None]


def by_arm(lines: Sequence[dict]) -> dict[str, dict[int, dict]]:
    """arm -> seed -> line."""
    names = list(dict.fromkeys(line["arm"] for line in lines))
    names.sort(key=lambda name: NAMED.index(name) if name in NAMED else len(NAMED))
    return {name: {line["seed"]: line for line in lines if line["arm"] == name} for name in names}


def _group(family: str, budget: Budget, task: str, lines: list[dict], against: str) -> str:
    arms, how = by_arm(lines), lines[0]["evaluation"]
    names = [name for name in FINAL if any(name in line["final"][task] for line in lines)]
    title = (
        f"**{family}, {task}: {budget} a run.** Mean +- standard error over seeds; {how['final_problems']} held-out "
        f"problems, {how['final_samples']} samples each."
    )
    rows = [["arm", "seeds", "steps", "generated tokens", "seconds", *names, "entropy", "pass@1 in the last third"]]
    for arm, by_seed in arms.items():
        mine = list(by_seed.values())
        spent = [_spent([line.get(unit) for line in mine]) for unit in ("steps", "tokens", "seconds")]
        cells = [mean_and_error([line["final"][task].get(name) for line in mine]) for name in names]
        entropy = mean_and_error([line["points"][-1].get("entropy") for line in mine])
        rows.append([arm, str(len(mine)), *spent, *cells, entropy, plateau(mine, task)])
    before = [_mean([line["before"][task].get(name) for line in lines]) for name in names]
    rows.append(["before training", "", "0", "0", "0", *before, "", ""])
    parts = [title, _markdown(rows)]
    if against in arms and len(arms) > 1:
        how = f"Difference to {against}, paired by seed: mean +- standard error, p of the two-sided paired t-test."
        parts += [how, _differences(arms, task, against)]
    return "\n\n".join([*parts, *_read_off(arms, task, budget, lines)])


def _read_off(arms: dict, task: str, budget: Budget, lines: list[dict]) -> list[str]:
    """A title and the table of what all arms had reached at the least that any run spent of what is not the budget."""
    others = {unit: min(line["points"][-1].get(unit, 0) for line in lines) for unit in WORDS if unit != budget.unit}
    others = {unit: amount for unit, amount in others.items() if amount > 0}
    names = [name for name in CURVE if all(name in point["eval"][task] for line in lines for point in line["points"])]
    if len(arms) < 2 or not others or not names:
        return []
    how = lines[0]["evaluation"]
    title = (
        f"At equal {' and equal '.join(WORDS[unit] for unit in others)}, read off the curves ({how['problems']} "
        f"held-out problems, {how['samples']} samples each) as far as the shortest run went."
    )
    rows = [["arm", *(f"{name} at {amount:,.0f} {unit}" for unit, amount in others.items() for name in names)]]
    for arm, by_seed in arms.items():
        cells = [
            mean_and_error([value_at(line, task, name, unit, amount) for line in by_seed.values()])
            for unit, amount in others.items()
            for name in names
        ]
        rows.append([arm, *cells])
    return [title, _markdown(rows)]


def value_at(line: dict, task: str, name: str, unit: str, amount: float) -> float:
    """A metric of a run when it had spent `amount`, on a straight line between its points."""
    x, y = zip(*points_of(line, task, name, unit), strict=True)
    return float(np.interp(amount, x, y))


def _differences(arms: dict, task: str, against: str) -> str:
    lines = [line for by_seed in arms.values() for line in by_seed.values()]
    names = [name for name in COMPARED if all(name in line["final"][task] for line in lines)]
    rows = [["arm", "pairs", *names]]
    for arm, by_seed in arms.items():
        if arm != against:
            pairs = [
                (by_seed[s]["final"][task], arms[against][s]["final"][task]) for s in by_seed if s in arms[against]
            ]
            rows.append([arm, str(len(pairs)), *(difference([a[n] - b[n] for a, b in pairs]) for n in names)])
    return _markdown(rows)


def difference(values: Sequence[float]) -> str:
    """`mean +- standard error (p)` of differences between pairs, with a sign."""
    if not values:
        return "-"
    p, sign = paired_p(values), "+" if statistics.fmean(values) >= 0 else ""
    return sign + mean_and_error(values) + ("" if p is None else f" (p {p:.3f})")


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test: mean 0 of the differences; None for fewer than two or without spread."""
    n = len(differences)
    if n < 2 or statistics.stdev(differences) == 0:
        return None
    t = statistics.fmean(differences) / (statistics.stdev(differences) / math.sqrt(n))
    return float(2 * stats.t.sf(abs(t), n - 1))


def mean_and_error(values: Sequence[float | None]) -> str:
    """`mean +- standard error`; without error for one value, `-` where one is missing."""
    if not values or None in values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} +- {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def _spent(values: Sequence[float | None]) -> str:
    return "-" if None in values else f"{statistics.fmean(values):,.0f}"


def _mean(values: Sequence[float | None]) -> str:
    return "-" if None in values else f"{statistics.fmean(values):.3f}"


def plateau(lines: Sequence[dict], task: str) -> str:
    """What pass@1 gains in the last third of the budget by a straight line through its points there.

    `flat` is added where 0 lies within two standard errors over seeds, `rising` or `falling` where it does not.
    """
    gains = [gain for line in lines if (gain := _late_gain(line, task)) is not None]
    if not gains:
        return "-"
    text = mean_and_error(gains)
    if len(gains) == 1:
        return text
    centre, error = statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains))
    return f"{text}, " + ("flat" if abs(centre) <= 2 * error else "rising" if centre > 0 else "falling")


def _late_gain(line: dict, task: str) -> float | None:
    budget = budget_of(line)
    late = [(budget.share(p), p["eval"][task]["pass@1"]) for p in line["points"] if budget.share(p) >= LAST - 1e-9]
    if len(late) < 2:
        return None
    shares, values = zip(*late, strict=True)
    return statistics.linear_regression(shares, values).slope * (1 - LAST)


def _markdown(rows: list[list[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
