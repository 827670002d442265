"""The report of a small synthetic run."""

import json
import re
from html.parser import HTMLParser

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.results.report import before_after, terminal_table, trees, write_report
from iiblpo_jax.run.metrics import MetricWriter

VOID = {"meta", "line", "polyline", "br"}


class Checker(HTMLParser):
    """Collects tags and text, and fails on tags that do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def trajectory_columns():
    return {
        "prompt_id": ["sums/7"] * 3 + ["sums/8"],
        "trajectory": [0, 1, 2, 3],
        "parent": [-1, 0, 1, -1],
        "branch_at": [0, 2, 3, 0],
        "text": ["6+5=11;#11", "6+5=<script>alert(1)</script>", "6+5=<\x00 & more", "lonely"],
        "tokens": [[1, 2, 3], [1, 2, 9], [1, 2, 9, 9], [4]],
        "reward": [1.0, 0.0, 0.0, 1.0],
        "correct": [True, False, False, True],
        "entropy_mean": [0.25, 0.5, 0.5, 0.1],
        "ib_answer": [None] * 4,
        "ib_prompt": [None] * 4,
        "ib_score": [0.85, -0.85, None, 0.0],
        "kept": [True, False, True, True],
        "advantage": [1.0, -1.0, 0.0, 0.0],
        "finish": [1, 0, 1, 1],
        "question": ["6+5=<b>?"] * 4,
        "gold": ["11"] * 4,
        "z": [None, [0.5, -1.0], [0.1, 0.2], None],
        "code": [-1] * 4,
    }


@pytest.fixture
def workdir(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(0, {"eval/sums/pass@1": 0.5, "eval/sums/tokens": 14.0})
        for step in (1, 2):
            writer.write(step, {"reward/mean": 0.4 * step, "update/loss": float("nan"), "latent/kl_between": 0.005})
            writer.rollouts(step, trajectory_columns())
        writer.write(3, {"eval/sums/pass@1": 0.75, "eval/sums/tokens": 13.0, "reward/mean": 0.9})
    config = {"task": {"name": "<sums>"}, "objective": {"name": "grpo"}, "model": {"path": "m"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def parsed(workdir):
    checker = Checker()
    checker.feed(write_report(workdir).read_text())
    assert checker.open == []
    return checker


def test_before_and_after(workdir, parsed):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert before_after(rows) == [("sums/pass@1", 0.5, 0.75), ("sums/tokens", 14.0, 13.0)]
    assert before_after(rows[:2]) == [("sums/pass@1", 0.5, None), ("sums/tokens", 14.0, None)]
    assert before_after(rows[1:3]) == []
    text = "|".join(parsed.text)
    assert "sums/pass@1|0.500|0.750|+0.250" in text
    assert list(terminal_table(rows).columns[3].cells) == ["+0.250", "-1.000"]


def test_charts_only_of_what_was_measured(parsed):
    text = "|".join(parsed.text)
    assert "Held-out sums" in text
    assert "Reward of the rollouts" in text
    assert "reward/mean, step 2: 0.8" in text
    assert "Effect of z" in text
    assert "Gradient norm" not in text
    assert "|Loss|" not in text  # every value of it was null


def test_page_is_self_contained_and_escapes_everything(workdir, parsed):
    assert parsed.links == []
    assert "script" not in parsed.tags
    assert not re.search(r"url\(|@import|https?:", (workdir / "report.html").read_text())
    assert "<sums>: grpo after step 3" in parsed.text
    assert "\x00" not in "".join(parsed.text)


def test_branches_show_what_they_share_with_their_parent(workdir):
    page = write_report(workdir).read_text()
    assert '<span class="shared">6+5=</span><span class="new">&lt;script&gt;alert(1)&lt;/script&gt;</span>' in page
    assert '<span class="shared">6+5=&lt;</span><span class="new">� &amp; more</span>' in page
    assert page.count("branch at token 3") == 2  # once in the first step, once in the last
    assert "pruned" in page
    assert "cut off at the length limit" in page


def test_trees_follow_chains_and_lead_with_contrast():
    lines = [
        {"trajectory": 0, "parent": None, "correct": True},
        {"trajectory": 1, "parent": 0, "correct": True},
        {"trajectory": 2, "parent": None, "correct": True},
        {"trajectory": 3, "parent": 2, "correct": True},
        {"trajectory": 4, "parent": 3, "correct": False},
    ]
    assert [[line["trajectory"] for line in tree] for tree in trees(lines)] == [[2, 3, 4], [0, 1]]


def test_plans_by_code_are_those_of_the_latest_evaluation(workdir):
    assert "Plans by code" not in write_report(workdir).read_text()
    (workdir / "eval").mkdir()
    for step, count in ((9, 3), (20, 30), (100, 1)):
        table = {"sums": {"plans": ["n<n", "other"], "counts": [[count, 0], [1, 1]]}}
        content = {"step": step} | ({"plans": table} if step < 100 else {})
        (workdir / "eval" / f"step_{step:06d}.json").write_text(json.dumps(content))
    text = write_report(workdir).read_text()
    assert "sums, step 20" in text and "<th>n&lt;n</th>" in text
    assert re.findall(r"var\(--s1\) (\d+)%, transparent\)\">(\d+)<", text) == [
        ("100", "30"), ("0", "0"), ("50", "1"), ("50", "1"),
    ]  # fmt: skip


def test_long_responses_are_shortened(workdir):
    with MetricWriter(workdir, resume_step=3) as writer:
        writer.rollouts(4, trajectory_columns() | {"text": ["x" * 2000] * 4})
    assert "(500 more characters)" in write_report(workdir).read_text()


def test_without_metrics_the_error_names_the_mend(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no metrics yet"):
        write_report(tmp_path)
    MetricWriter(tmp_path).close()
    with pytest.raises(InputError, match="no metrics yet"):
        write_report(tmp_path)
