"""Finished runs as Markdown: mean +- standard error over seeds, ranks, and differences to one arm, paired by seed."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from compare_arms import NAMED, WORDS, Budget
from compare_stats import FEWEST, LEVEL, holm, paired_p, ranks
from compare_store import arm_of
from compare_sweep import SEED, SHARE, ended

FINAL = ("pass@1", "pass@4", "pass@16", "pass@64", "greedy", "unique_correct", "distinct_4", "self_bleu", "tokens")
COMPARED = ("pass@1", "pass@4", "pass@16", "pass@64", "greedy", "unique_correct", "distinct_4", "self_bleu")
CURVE = ("pass@1", "pass@16")  # ranked by, and read off at other budgets
LAST = 2 / 3  # of the budget: from here on a curve should be flat


def tables(lines: Sequence[dict], *, against: str) -> str:
    """A title and tables for every family, budget and task; arms in the order of NAMED, then of the file."""
    sweeps = [line for line in lines if line["sweep"]]
    return "\n\n".join(_group(*key, mine, sweeps, against) for key, mine in comparable(lines).items())


def comparable(lines: Sequence[dict]) -> dict[tuple[str, Budget, str], list[dict]]:
    """(family, budget, task) -> the lines that one table or row of panels shows."""
    groups: dict[tuple[str, Budget, str], list[dict]] = {}
    for line in (line for line in lines if not line["sweep"]):
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


def _group(family: str, budget: Budget, task: str, lines: list[dict], sweeps: list[dict], against: str) -> str:
    arms, how = by_arm(lines), lines[0]["evaluation"]
    title = (
        f"**{family}, {task}: {budget} a run.** Mean +- standard error over seeds; {how['final_problems']} held-out "
        f"problems, {how['final_samples']} samples each."
    )
    parts = [title, _results(arms, task, lines)]
    if against in arms and len(arms) > 1:
        how = (
            f"Difference to {against}, paired by seed: mean +- standard error, p of the two-sided paired t-test, and "
            f"that p Holm-corrected over the arms."
        )
        parts += [how, _differences(arms, task, against)]
    return "\n\n".join([*parts, *_read_off(arms, task, budget, lines), *_legend(arms, family, budget, sweeps)])


def _results(arms: dict, task: str, lines: list[dict]) -> str:
    names = [name for name in FINAL if any(name in line["final"][task] for line in lines)]
    ranked = {name: found for name in CURVE if name in names and (found := _ranks(arms, task, name))}
    head = ["arm", "seeds", "learning rate", "steps", "generated tokens", "update tokens", "seconds"]
    rows = [[*head, *(f"rank by {name}" for name in ranked), *names, "entropy", "pass@1 in the last third"]]
    for arm, by_seed in arms.items():
        mine = list(by_seed.values())
        rate = "-" if (lr := mine[0].get("lr")) is None else f"{lr:g}"
        spent = [_spent([line.get(unit) for line in mine]) for unit in ("steps", "tokens", "update_tokens", "seconds")]
        places = [str(found[arm]) for found in ranked.values()]
        cells = [mean_and_error([line["final"][task].get(name) for line in mine]) for name in names]
        entropy = mean_and_error([line["points"][-1].get("entropy") for line in mine])
        rows.append([arm, str(len(mine)), rate, *spent, *places, *cells, entropy, plateau(mine, task)])
    before = [_mean([line["before"][task].get(name) for line in lines]) for name in names]
    rows.append(["before training", "", "", "0", "0", "0", "0", *("" for _ in ranked), *before, "", ""])
    table = _markdown(rows)
    if not ranked:
        return table
    return (
        f"{table}\n\nRanks differ only where every arm above beats every arm below: paired t-tests, p below {LEVEL}, "
        f"Holm-corrected over all pairs; none with fewer than {FEWEST} seeds."
    )


def _ranks(arms: dict, task: str, name: str) -> dict[str, int] | None:
    values = {arm: {s: line["final"][task].get(name) for s, line in mine.items()} for arm, mine in arms.items()}
    return None if any(None in mine.values() for mine in values.values()) else ranks(values)


def _legend(arms: dict, family: str, budget: Budget, sweeps: list[dict]) -> list[str]:
    """What the arms are, how their learning rates were chosen, and which runs ended before their time."""
    tried: dict[str, dict[float, float]] = {}
    for line in sweeps:
        if arm_of(line).family == family and budget_of(line) == budget.part(SHARE):
            tried.setdefault(line["arm"], {})[line["rate"]] = ended(line)
    rows = [["arm", "config", "changes", "sweep: learning rate: pass@1"]]
    for arm, by_seed in arms.items():
        line = next(iter(by_seed.values()))
        found = [
            f"**{rate:g}: {value:.3f}**" if rate == line["rate"] else f"{rate:g}: {value:.3f}"
            for rate, value in sorted(tried.get(arm, {}).items())
        ]
        rows.append([arm, line["file"], " ".join(line["overrides"]), ", ".join(found) or "-"])
    how = f", and the sweep that chose their learning rates, {budget.part(SHARE)} with seed {SEED}" if tried else ""
    title = f"What the arms are{how}."
    stopped = [
        f"{arm}, seed {seed}, ended after {line['steps']} steps: {line['stopped']}."
        for arm, by_seed in arms.items()
        for seed, line in by_seed.items()
        if line.get("stopped")
    ]
    return [title, _markdown(rows), *stopped]


def _read_off(arms: dict, task: str, budget: Budget, lines: list[dict]) -> list[str]:
    """A title and the table of what all arms had reached at the least that any run spent of what is not the budget."""
    whole = [line for line in lines if not line.get("stopped")] or lines  # one that stopped stays what it was
    others = {unit: min(line["points"][-1].get(unit, 0) for line in whole) for unit in WORDS if unit != budget.unit}
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
    base, others = arms[against], {arm: mine for arm, mine in arms.items() if arm != against}
    shared = {arm: [seed for seed in mine if seed in base] for arm, mine in others.items()}
    columns = [
        differences(
            [
                [others[arm][seed]["final"][task][name] - base[seed]["final"][task][name] for seed in seeds]
                for arm, seeds in shared.items()
            ]
        )
        for name in names
    ]
    rows = [["arm", "pairs", *names]]
    rows += [
        [arm, str(len(seeds)), *cells]
        for (arm, seeds), cells in zip(shared.items(), zip(*columns, strict=True), strict=True)
    ]
    return _markdown(rows)


def differences(values: Sequence[Sequence[float]]) -> list[str]:
    """`mean +- standard error (p, Holm)` with a sign, of each arm's differences between pairs.

    Holm's correction is over those arms that have a p.
    """
    ps = [paired_p(of_arm) for of_arm in values]
    adjusted = iter(holm([p for p in ps if p is not None]))
    tests = ["" if p is None else f" (p {p:.3f}, Holm {next(adjusted):.3f})" for p in ps]
    return [_signed(of_arm) + test for of_arm, test in zip(values, tests, strict=True)]


def _signed(values: Sequence[float]) -> str:
    return ("+" if values and statistics.fmean(values) >= 0 else "") + mean_and_error(values)


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
