"""The parts of the report's page: style, tables, chart cards, trajectory trees. Everything that is text is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import takewhile

from iiblpo_jax.results.charts import Series, line_chart, number, smoothing_window

MAX_TEXT = 1500  # characters shown of one response

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2027; --soft: #5c6672; --rule: #e1e5ea; --wash: #eef1f5;
  --good: #0a7f4f; --bad: #b3372c; --s1: #2468c8; --s2: #c2570c; --s3: #0d8a6a; --s4: #8a4bc2; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12151a; --card: #1b2027; --ink: #e8ebef; --soft: #9aa5b1; --rule: #2e3640; --wash: #252c35;
  --good: #4cc38a; --bad: #f0837a; --s1: #6aa5f8; --s2: #f09a56; --s3: #45c7a2; --s4: #bd8cf0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 12px; }
h3 { font-size: 15px; margin: 0 0 4px; } h3 .soft { font-weight: 400; font-size: 13px; }
p { margin: 0 0 12px; max-width: 72ch; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px; }
.grid-of-cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
tr:last-child td { border-bottom: 0; }
.config td:last-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .tick { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .raw { opacity: .3; stroke-width: 1.2; } svg .target { opacity: 0; } svg .target:hover { opacity: .6; }
.c1 { stroke: var(--s1); } .c2 { stroke: var(--s2); } .c3 { stroke: var(--s3); } .c4 { stroke: var(--s4); }
.f1 { fill: var(--s1); } .f2 { fill: var(--s2); } .f3 { fill: var(--s3); } .f4 { fill: var(--s4); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0 0 6px; padding: 0;
  list-style: none; font-size: 13px; }
.legend svg { display: inline-block; width: 16px; height: 8px; margin-right: 6px; vertical-align: middle; }
.legend b { font-weight: 600; font-variant-numeric: tabular-nums; }
.tree { margin-bottom: 14px; }
.trajectory { border-left: 3px solid var(--rule); padding: 4px 0 4px 12px; margin-top: 10px; }
.trajectory.kept { border-left-color: var(--s1); }
.trajectory pre { margin: 4px 0 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.5 ui-monospace, monospace; }
.facts { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; color: var(--soft); }
.shared { color: var(--soft); } .new { background: var(--wash); border-radius: 3px; }
summary { cursor: pointer; }
"""


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """The whole document; it asks the network for nothing."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(subtitle)}</p>\n' + "\n".join(sections) + "\n</main>\n"
        "</body>\n</html>\n"
    )


def section(title: str, body: str, note: str = "") -> str:
    """A heading, an optional sentence, and HTML that is already escaped."""
    sentence = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{sentence}{body}\n</section>"


def comparison_table(rows: Sequence[tuple[str, float | None, float | None]]) -> str:
    """Before, after, and the difference, coloured where more is better; token counts are neither."""
    cells = []
    for name, before, after in rows:
        gain = None if before is None or after is None else after - before
        change = "" if gain is None else f"{gain:+.3f}"
        css = "good" if gain and gain > 0 else "bad" if gain else ""
        css = "" if name.endswith("/tokens") else css
        values = "".join(f"<td>{'' if v is None else f'{v:.3f}'}</td>" for v in (before, after))
        cells.append(f'<tr><td>{escape(name)}</td>{values}<td class="{css}">{change}</td></tr>')
    head = "<tr><th>held-out</th><th>before</th><th>after</th><th>change</th></tr>"
    return f'<div class="card scroll"><table><thead>{head}</thead><tbody>{"".join(cells)}</tbody></table></div>'


def chart_card(title: str, series: Sequence[Series]) -> str:
    """A chart under its title and a legend that carries each curve's last value."""
    window = max(smoothing_window(len(s.points)) for s in series)
    note = f' <span class="soft">(mean of {window})</span>' if window > 1 else ""
    legend = "".join(
        f'<li><svg viewBox="0 0 16 8" aria-hidden="true"><line class="line c{i}" x1="1" x2="15" y1="4" y2="4"/></svg>'
        f"{escape(s.label)} <b>{number(s.points[-1][1])}</b></li>"
        for i, s in enumerate(series, start=1)
    )
    chart = line_chart(series, title)
    return f'<div class="card"><h3>{escape(title)}{note}</h3><ul class="legend">{legend}</ul>{chart}</div>'


def count_card(title: str, plans: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A row a code, a column a plan; every cell is coloured by its share of its row."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("code", *plans))
    body = "".join(
        f"<tr><td>{code}</td>" + "".join(_cell(count, sum(row)) for count in row) + "</tr>"
        for code, row in enumerate(counts)
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="card"><h3>{escape(title)}</h3><div class="scroll">{table}</div></div>'


def _cell(count: int, total: int) -> str:
    share = round(100 * count / max(total, 1))
    return f'<td style="background: color-mix(in srgb, var(--s1) {share}%, transparent)">{count}</td>'


def config_table(config: Mapping[str, object]) -> str:
    """Every knob under its dotted name, folded away."""
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in sorted(config.items()))
    return (
        f'<details class="card"><summary>{len(config)} values</summary><div class="scroll"><table class="config">'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def tree_card(rows: Sequence[Mapping]) -> str:
    """One tree of rollout lines, root first; what a branch shares with its parent is dimmed."""
    by_id = {row["trajectory"]: row for row in rows}
    root = rows[0]
    body = "".join(_trajectory(row, by_id.get(row["parent"]), _depth(row, by_id)) for row in rows)
    return f'<div class="card tree"><h3>Step {root["step"]}, prompt {escape(str(root["prompt_id"]))}</h3>{body}</div>'


def _depth(row: Mapping, by_id: Mapping[int, Mapping]) -> int:
    return 0 if row["parent"] not in by_id else 1 + _depth(by_id[row["parent"]], by_id)


def _trajectory(row: Mapping, parent: Mapping | None, depth: int) -> str:
    name = "root" if parent is None else f"branch at token {row['branch_at']}"
    verdict = '<span class="good">right</span>' if row["correct"] else '<span class="bad">wrong</span>'
    facts = [f"<b>{name}</b>", verdict, f"reward {_value(row['reward'])}", f"S_IB {_value(row['ib_score'])}"]
    facts += [f"entropy {_value(row['entropy_mean'])}", f"{len(row['tokens'])} tokens"]
    facts += ["kept" if row["kept"] else "pruned"] + ["cut off at the length limit"] * (row["finish"] == "length")
    css = "trajectory kept" if row["kept"] else "trajectory"
    spans = "".join(f"<span>{fact}</span>" for fact in facts)
    indent = f"margin-left: {min(depth, 4) * 18}px"
    return f'<div class="{css}" style="{indent}"><div class="facts">{spans}</div><pre>{_text(row, parent)}</pre></div>'


def _text(row: Mapping, parent: Mapping | None) -> str:
    text = _printable(row["text"])
    if parent is None:
        return escape(text)
    pairs = zip(text, _printable(parent["text"]), strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return f'<span class="shared">{escape(text[:shared])}</span><span class="new">{escape(text[shared:])}</span>'


def _printable(text: str) -> str:
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text[:MAX_TEXT])
    return shown + (f" ... ({len(text) - MAX_TEXT} more characters)" if len(text) > MAX_TEXT else "")


def _value(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
