"""What a run came to: held-out results before and after, curves, example trees, as tables and as one HTML page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.jsonl import read_jsonl, write_atomic
from iiblpo_jax.config import files
from iiblpo_jax.results.charts import Series
from iiblpo_jax.results.page import chart_card, comparison_table, config_table, count_card, page, section, tree_card

# Section -> chart -> the metrics drawn in it (at most four). A metric that a run does not have is left out.
CHARTS = {
    "Reward": {
        "Reward of the rollouts": ("reward/mean", "reward/pass@1", "reward/pass@group"),
        "Reward of the roots, the policy's own samples": (
            "reward/root_mean",
            "reward/root_pass@1",
            "reward/root_pass@group",
        ),
        "Groups, and what is trained on": ("reward/frac_mixed", "reward/frac_zero_std", "reward/frac_kept"),
    },
    "Rollout": {
        "Entropy, nats a token": ("rollout/entropy", "update/entropy"),
        "Response length, tokens": ("rollout/length_mean", "rollout/length_p95"),
        "Truncated": ("rollout/truncated", "rollout/root_truncated", "rollout/branch_fallback"),
        "Branches a root": ("rollout/branches",),
        "Branches that repeat their parent, or change its outcome": (
            "rollout/branch_same_token",
            "rollout/branch_copies",
            "rollout/branch_flips",
        ),
        "Own tokens of a branch, of all it has": ("rollout/branch_suffix",),
        "Slots in use": ("rollout/slot_utilisation",),
    },
    "Information bottleneck": {
        "Does the score find right answers?": ("ib/auc_correct", "ib/kept_correct"),
        "Raw terms, nats": ("ib/answer", "ib/prompt"),
        "Score": ("ib/score", "ib/kept_score", "ib/corr_length"),
        "Contrast rescued": ("ib/contrast_rescued",),
    },
    "Latent": {
        "Effect of z: KL between two z, nats": ("latent/kl_between",),
        "What a response says of its code, nats": ("latent/information",),
        "Effective sample size of the weights": ("latent/weight_ess",),
        "Sizes": ("latent/prior_norm", "latent/gain_norm"),
    },
    "Update": {
        "Loss": ("update/loss",),
        "Gradient norm": ("update/grad_norm",),
        "Learning rate": ("optim/lr",),
        "Clipped tokens": ("update/clip_low", "update/clip_high"),
        "Ratio": ("update/ratio_mean",),
        "KL to the reference": ("update/kl_ref",),
        "Rollout against update, log-prob difference": ("mismatch/logp_mean", "mismatch/logp_max"),
        "Importance ratios out of bounds": ("mismatch/outside",),
    },
    "Speed": {
        "Tokens a second": ("rollout/tokens_per_s", "update/tokens_per_s"),
        "Seconds a step": ("time/rollout_s", "time/reward_s", "time/score_s", "time/update_s"),
        "Seconds a step, all of it": ("time/step_s",),
    },
}


_EVAL_CURVES = ("pass@", "maj@", "greedy")


_TREES = 2  # shown of the first and of the last step


def before_after(rows: Sequence[Mapping]) -> list[tuple[str, float | None, float | None]]:
    """(task/metric, first value, last value) from the first and the last line that hold an evaluation.

    `after` is None while there is only one evaluation.
    """
    evaluated = [row for row in rows if any(name.startswith("eval/") for name in row)]
    if not evaluated:
        return []
    first, last = evaluated[0], evaluated[-1] if len(evaluated) > 1 else {}
    names = [name for name in {**first, **last} if name.startswith("eval/")]
    return [(name.removeprefix("eval/"), first.get(name), last.get(name)) for name in names]


def terminal_table(rows: Sequence[Mapping]) -> Table:
    """The before/after table for a terminal, from the lines of metrics.jsonl."""
    table = Table("held-out", "before", "after", "change")
    for name, before, after in before_after(rows):
        values = ["" if v is None else f"{v:.3f}" for v in (before, after)]
        change = "" if before is None or after is None else f"{after - before:+.3f}"
        table.add_row(name, *values, change)
    return table


def write_report(workdir: str | Path) -> Path:
    """Writes `WORKDIR/report.html` and returns its path.

    Raises:
        InputError: the workdir is missing or has no metrics yet.
    """
    workdir = Path(workdir)
    rows = load_metrics(workdir)
    config = (
        files.flatten(json.loads((workdir / "config.json").read_text())) if (workdir / "config.json").exists() else {}
    )
    title = (
        f"{config.get('task.name', 'Run')}: {config.get('objective.name', 'training')} after step {rows[-1]['step']}"
    )
    subtitle = f"{workdir.resolve().name}, model {config.get('model.path', 'unknown')}"
    sections = [_comparison(rows), *_charts(rows), _plans(workdir), _trees(workdir)]
    if config:
        sections.append(section("Config", config_table(config)))
    path = workdir / "report.html"
    write_atomic(path, page(title, subtitle, filter(None, sections)))
    return path


def load_metrics(workdir: Path) -> list[dict]:
    """The lines of `WORKDIR/metrics.jsonl`.

    Raises:
        InputError: there is no such folder or file, or the file has no line yet.
    """
    if not workdir.is_dir():
        raise InputError(f"workdir {workdir} does not exist; pass the --workdir of a run")
    path = workdir / "metrics.jsonl"
    rows = list(read_jsonl(path)) if path.exists() else []
    if not rows:
        raise InputError(f"{workdir} has no metrics yet; run python -m iiblpo_jax.train --workdir={workdir} first")
    return rows


def _comparison(rows: Sequence[Mapping]) -> str:
    table = before_after(rows)
    if not table:
        return ""
    one = all(after is None for _, _, after in table)
    note = (
        "Only one evaluation so far." if one else "The same held-out problems before the first and after the last step."
    )
    return section("Before and after", comparison_table(table), note)


def _series(rows: Sequence[Mapping], names: Sequence[str]) -> list[Series]:
    found = []
    for name in names:
        points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
        if points:
            found.append(Series(name, points))
    return found


def _eval_charts(rows: Sequence[Mapping]) -> dict[str, list[str]]:
    """One chart a held-out task, of its accuracies (at most four)."""
    charts: dict[str, list[str]] = {}
    for name in sorted({name for row in rows for name in row if name.startswith("eval/")}):
        task, metric = name.removeprefix("eval/").rsplit("/", 1)
        if metric.startswith(_EVAL_CURVES) and len(charts.setdefault(f"Held-out {task}", [])) < 4:
            charts[f"Held-out {task}"].append(name)
    return charts


def _charts(rows: Sequence[Mapping]) -> list[str]:
    sections = []
    for title, charts in {"Held-out results": _eval_charts(rows), **CHARTS}.items():
        found = {name: _series(rows, metrics) for name, metrics in charts.items()}
        cards = [chart_card(name, series) for name, series in found.items() if series]
        if cards:
            sections.append(section(title, f'<div class="grid-of-cards">{"".join(cards)}</div>'))
    return sections


def trees(lines: Sequence[Mapping]) -> list[list[Mapping]]:
    """The trees among the lines of one rollout file, each root first; trees with right and wrong answers lead."""
    root_of: dict[int, int] = {}
    grouped: dict[int, list[Mapping]] = {}
    for line in sorted(lines, key=lambda line: line["trajectory"]):
        root = line["trajectory"] if line["parent"] is None else root_of[line["parent"]]
        root_of[line["trajectory"]] = root
        grouped.setdefault(root, []).append(line)
    return sorted(grouped.values(), key=lambda tree: (len({line["correct"] for line in tree}) < 2, -len(tree)))


def _plans(workdir: Path) -> str:
    """Plans by code of the evaluation of the latest step that has them."""
    stored = [json.loads(path.read_text()) for path in sorted((workdir / "eval").glob("step_*.json"))]
    found = [one for one in stored if one.get("plans")]
    if not found:
        return ""
    last = max(found, key=lambda one: one["step"])
    cards = [count_card(f"{task}, step {last['step']}", **table) for task, table in last["plans"].items()]
    note = "Samples of held-out problems by code and plan, numbers left out; the darker, the more of its code's."
    return section("Plans by code", "".join(cards), note)


def _trees(workdir: Path) -> str:
    files = sorted((workdir / "rollouts").glob("step_*.jsonl"))
    chosen = dict.fromkeys([*files[:1], *files[-1:]])
    cards = [tree_card(tree) for path in chosen for tree in trees(list(read_jsonl(path)))[:_TREES]]
    note = "Trees of the first and the last step. A bar marks what the filter kept; dimmed text is the parent's."
    return section("Rollouts", "".join(cards), note) if cards else ""
