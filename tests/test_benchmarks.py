"""The benchmarks at toy sizes: what they count, that their arms do the same work, and the form of their results.

No test looks at a time. Peers: transformers on torch where it is installed; google-tunix never (it has packages apart).
"""

import argparse
import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
SHARED = (
    *("harness", "models", "rollout", "update", "versions", "collect", "ranking_set", "variance", "overoptimisation"),
    *("compare_arms", "compare_run", "compare_store", "compare_clock"),
    *("peers", "peers.protocol", "peers.host_loop", "peers.version_peer"),
)
TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture(autouse=True)
def benchmark_modules(monkeypatch):
    """The folder's own modules importable, as they are for `python benchmarks/X.py`, and gone afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IIBLPO_CACHE", "")
    yield
    for name in SHARED:
        sys.modules.pop(name, None)


@pytest.fixture
def results(monkeypatch, tmp_path):
    """Runs benchmarks/NAME.py in this process and returns what it wrote."""

    def run(name: str, *arguments: str) -> dict:
        out = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--tiny", "--repetitions=1", f"--json={out}", *arguments])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return json.loads(out.read_text())

    return run


def by_arm(value: dict, **where) -> dict[str, dict]:
    return {row["arm"]: row for row in value["results"] if where.items() <= row.items()}


def has_spread(cell: dict) -> bool:
    return 0 < cell["min"] <= cell["median"] <= cell["max"]


# ---- what is shared ------------------------------------------------------------------------------------------------


def test_arms_take_turns_and_ratios_are_within_a_turn():
    import harness

    order = []

    def arm(name, seconds):
        steps = iter(seconds)
        return harness.Arm(
            name=name,
            warm=lambda: order.append(f"warm {name}"),
            run=lambda: (order.append(name), {"seconds": next(steps), "tokens": 12})[1],
        )

    a, b = harness.compare([arm("a", [1.0, 2.0, 4.0]), arm("b", [3.0, 4.0, 4.0])], repetitions=3)
    assert order == ["warm a", "warm b", *"ababab"]
    assert a["tokens_per_s"] == {"median": 6.0, "min": 3.0, "max": 12.0}
    assert b["first_over_this"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert b["seconds_all"] == [3.0, 4.0, 4.0]


@pytest.mark.parametrize(
    "kind, rate",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("cpu", None),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
    ],
)
def test_a_device_is_known_by_whole_words_of_its_kind(kind, rate):
    import harness

    limits = harness.limits_of(kind)
    assert (limits and limits["bfloat16"]) == rate


def test_ragged_lengths_are_lognormal_with_a_cap():
    import models

    lengths = models.ragged_lengths(1001, 40)
    assert np.median(lengths) == 40
    assert lengths.max() == 320  # 8 medians; uncapped the largest would be 40 * exp(0.9 * 3.29) = 773
    assert np.percentile(lengths, 84.13) == pytest.approx(40 * np.exp(0.9), rel=0.02)
    assert sorted(models.ragged_lengths(50, 40, seed=1)) == sorted(models.ragged_lengths(50, 40, seed=2))


def test_a_peer_answers_fails_and_ends(tmp_path):
    from peers.protocol import Peer, PeerError

    script = tmp_path / "peer.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(FOLDER / 'peers')!r})\n"
        "from protocol import serve\n"
        "def double(x):\n"
        "    print('noise')\n"
        "    return {'y': 2 * x}\n"
        "serve({'version': 1}, {'double': double})\n"
    )
    with Peer(sys.executable, str(script)) as peer:
        assert peer.facts == {"version": 1}
        assert peer.ask("double", x=21) == {"y": 42}
        with pytest.raises(PeerError, match="TypeError"):
            peer.ask("double", x=None)
        assert peer.ask("double", x=1) == {"y": 2}
    assert peer.process.returncode == 0
    with pytest.raises(PeerError, match="ended with status 3"):
        Peer(sys.executable, "-c", "raise SystemExit(3)")


# ---- one by one ----------------------------------------------------------------------------------------------------


def test_rollout_every_arm_generates_the_same_tokens(results):
    import models

    value = results("rollout", "--dtypes=float32")
    assert value["machine"]["cores"] >= 1 and value["machine"]["versions"]["jax"] == jax.__version__
    peers = {"transformers"} if TORCH else set()
    equal, ragged = by_arm(value, case="equal"), by_arm(value, case="ragged")
    assert equal.keys() == ragged.keys() == {"ours", "ours int8", "host loop"} | peers
    assert {row["tokens"] for row in equal.values()} == {4 * 6}
    assert {row["tokens"] for row in ragged.values()} == {int(models.ragged_lengths(4, 4).sum())}
    branches = by_arm(value, case="branches")
    both = {"transformers batched", "transformers one by one"} if TORCH else set()
    assert branches.keys() == {"ours", "ours re-prefill"} | both
    roots = int(models.ragged_lengths(2, 6).sum())
    (tokens,) = {row["tokens"] for row in branches.values()}
    assert roots < tokens <= 4 * roots
    assert all(has_spread(row["tokens_per_s"]) and has_spread(row["first_over_this"]) for row in value["results"])
    assert not any("python" in name for name in value["options"])


def test_rollout_notices_an_arm_that_does_other_work():
    check = runpy.run_path(str(FOLDER / "rollout.py"))["check"]
    check([[2, 1, 0], [0]], [3, 1])
    for wrong in ([[2, 1], [0]], [[2, 2, 0], [0]]):
        with pytest.raises(RuntimeError, match="response 0 should count down 3 tokens"):
            check(wrong, [3, 1])


def test_update_all_arms_take_the_same_step(results):
    value = results("update", "--shares=50")
    arms = by_arm(value, share="50%")
    ours = {"packed", "packed remat", "padded", "padded remat"}
    assert arms.keys() == ours | ({"torch", "torch checkpointing"} if TORCH else set())
    assert {row["tokens"] for row in arms.values()} == {16 * 12}
    for what in ("loss", "grad_norm"):
        values = [row[what] for row in arms.values()]
        assert max(values) - min(values) <= 1e-4 * abs(values[0])
    assert all(arms[name]["work_bytes"] > 0 and arms[name]["state_bytes"] > 0 for name in ours)


def test_two_checkouts_take_turns_and_ratios_are_within_a_turn():
    import versions

    asked = []

    class Checkout:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, iter(seconds)

        def ask(self, command, arm):
            asked.append((self.name, command))
            seconds = 8.0 if command == "warm" else next(self.seconds)
            return {"seconds": seconds, "cpu_seconds": 2 * seconds, "loss": 0.5}

    row = versions.compare("decode", Checkout("before", [1.0, 2.0, 4.0]), Checkout("after", [3.0, 4.0, 4.0]), 3)
    assert [name for name, command in asked if command == "run"] == "before after after before before after".split()
    assert row["wall_after_over_before"] == row["cpu_after_over_before"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert (row["before_s"], row["after_s"], row["compile_after_over_before"]) == (2.0, 4.0, 1.0)
    assert row["before"]["loss"] == row["after"]["loss"] == 0.5


def test_the_process_of_a_checkout_has_the_arms_of_its_own_benchmarks(tmp_path):
    from peers import version_peer

    options = argparse.Namespace(tiny=True, share=50)
    found = version_peer.arms(options, tmp_path)
    assert list(found) == [
        *("decode equal", "decode ragged", "decode branches"),
        *("update packed", "update packed remat", "update padded", "update padded remat"),
    ]
    began = version_peer.cpu_seconds()
    assert found["decode equal"].run()["tokens"] == 4 * 6
    assert version_peer.cpu_seconds() > began


def test_update_flops_by_hand():
    import models
    import update

    # 1 prompt of 6 tokens, 4 roots, 3 branches each that inherit 6 of 12 response tokens; the layers have 2 * 28,928
    # weights that multiply plus norms, the head 256 * 64.
    config = update.trained_model("tiny", "")
    bench = object.__new__(update.Bench)
    bench.config, bench.size, bench.params, bench.cut = config, update.SIZES["tiny"], models.random_params(config), 6
    bench.rows = update.shared_rows(config, bench.size, 6)
    layer, head = sum(x.size for x in jax.tree.leaves(bench.params["layers"])), 256 * 64
    attention = 3 * 4 * config.n_layers * config.n_heads * config.head_dim  # forward + backward, scores and values
    row = 6 * layer * 18 + attention * sum(range(1, 19)) + 6 * head * 12
    assert bench.flops(shared=False) == 16 * row
    other_root = 6 * layer * 12 + attention * sum(range(7, 19)) + 6 * head * 12
    branch = 6 * layer * 6 + attention * sum(range(13, 19)) + 6 * head * 6
    assert bench.flops(shared=True) == row + 3 * other_root + 12 * branch


def test_update_notices_another_gradient():
    import update

    same = {"loss": 0.5, "grad_norm": 2.0}
    update.check({"a": same, "b": {"loss": 0.5, "grad_norm": 2.0001}}, 1e-4)
    with pytest.raises(RuntimeError, match="b computes another grad_norm"):
        update.check({"a": same, "b": {"loss": 0.5, "grad_norm": 2.001}}, 1e-4)


def test_logprobs_in_chunks_needs_less_memory(results):
    value = results("logprobs")
    for v in (3000, 7000):
        arms = by_arm(value, vocabulary=v)
        assert arms["chunked"]["tokens"] == arms["naive"]["tokens"] == 64
        assert (
            arms["naive"]["work_bytes"]
            >= arms["naive"]["logits_bytes"]
            == 4 * 64 * v
            > arms["chunked"]["work_bytes"] / 2
        )


def test_compile_measures_every_program_cold_and_warm(results):
    cold, warm = results("compile")["results"]
    assert (cold["depth"], cold["cache"], warm["cache"]) == (1, "cold", "warm")
    for row in (cold, warm):
        parts = [row[f"{name}_seconds"]["median"] for name in ("rollout", "padded", "packed")]
        assert min(parts) > 0 and sum(parts) < row["start_seconds"]["median"]


def test_roofline_counts_the_bytes_a_step_reads(results):
    import models

    rows = {row["what"]: row for row in results("roofline", "--dtypes=float32")["results"]}
    assert rows.keys() == {"limit: read", "limit: matmul", "decode, B = 1", "decode, B = 2", "prefill", "update"}
    c = models.TINY
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 + 2 * 64 + 2 * 16  # q k v o, MLP, norms
    weights = 4 * (2 * layer + 256 * 64 + 64)  # the head is read whole, the embedding is not
    keys = 4 * 2 * 2 * 2 * 16 * (8 + (4 + 12) / 2)  # float32, k and v, layers, heads, width; prompt + mean response
    for batch in (1, 2):
        row = rows[f"decode, B = {batch}"]
        assert row["bytes_per_step"] == weights + batch * keys
        scores = 4 * 2 * 4 * 16 * (8 + (4 + 12) / 2)  # q k and p v: layers, heads, width, positions
        assert row["flops_per_step"] == batch * (2 * weights / 4 + scores)
        assert row["fraction"] > 0.999 * row["bandwidth_fraction"] > 0
    assert models.parameter_count(models.random_params(c)) == 2 * layer + 2 * 256 * 64 + 64


def test_soak_writes_a_row_every_twentieth(results):
    rows = results("soak")["results"]
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert all(row["rss_mib"] > 1 and row["descriptors"] > 3 and has_spread(row["step_seconds"]) for row in rows)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"rss_mib": 103.0}, ["memory grew from 100 MiB at step 100 to 103 MiB"]),
        ({"descriptors": 8}, ["1 descriptors were left open"]),
        ({"seconds_all": [0.07]}, ["a step took 50 ms early on and 70 ms at the end"]),
    ],
)
def test_soak_judges_the_end_against_the_start(changes, found):
    verdict = runpy.run_path(str(FOLDER / "soak.py"))["verdict"]
    rows = [{"step": 50 * i, "rss_mib": 100.0, "descriptors": 7, "seconds_all": [0.05]} for i in range(1, 21)]
    rows[0] |= {"rss_mib": 50.0, "descriptors": 5, "seconds_all": [9.0]}  # compiling
    for row in rows[-4:]:
        row |= changes
    assert verdict(rows) == found


def test_score_ranking_writes_a_row_a_score(results):
    rows = results("score_ranking", "--tasks=arithmetic")["results"]
    for groups in ("labelled", "rollouts"):
        by_score = {row["score"]: row for row in rows if row["groups"] == groups}
        assert {"default", "I(q;r)", "length"} <= by_score.keys()
        assert all(0 <= row["explained"] <= 1 and abs(row["corr_length"]) <= 1 for row in by_score.values())
        assert all(("ordered" in row) == (groups == "labelled") for row in by_score.values())


def test_collect_keeps_the_three_headline_numbers(tmp_path):
    spread = {"median": 10.0, "min": 9.0, "max": 11.0}
    files = {
        "rollout": [{"model": "m", "dtype": "bfloat16", "case": "equal", "arm": "ours", "tokens_per_s": spread}],
        "update": [{"share": "0%", "arm": "padded", "mfu": 0.4}, {"share": "0%", "arm": "torch"}],
        "roofline": [
            {"what": "limit: read", "dtype": "", "sheet": 1000.0},
            {"what": "decode, B = 1", "dtype": "bfloat16", "rate": 700.0, "fraction": 0.9},
        ],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"benchmark": name, "machine": {"cores": 1}, "results": rows})
        )
    out = tmp_path / "all.json"
    paths = [str(tmp_path / f"{name}.json") for name in (*files, "missing")]
    command = [sys.executable, str(FOLDER / "collect.py"), f"--out={out}", "--status=tests=0,compile=1", *paths]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    merged = json.loads(out.read_text())
    assert merged["status"] == {"tests": 0, "compile": 1} and merged["machine"] == {"cores": 1}
    assert merged["summary"]["rollout_tokens_per_s"] == {"m bfloat16 equal ours": 10.0}
    assert merged["summary"]["update_mfu"] == {"0% padded": 0.4}
    assert merged["summary"]["decode_bandwidth_fraction"] == {"bfloat16 decode, B = 1": 0.7}


# ---- latents ---------------------------------------------------------------------------------------------------------


def test_the_table_of_latents_is_that_of_its_file(tmp_path):
    """Two settings by hand: 6 and 4 plans against 4, two points less and one more right answers."""

    def arm(plans, accuracy):
        plain = {"plans": 4.0, "accuracy": 0.5, "ceiling": 1.25}
        found = {"plans": plans, "plan_ratio": plans / 4, "accuracy": accuracy, "accuracy_change": accuracy - 0.5}
        return found | {"plain": plain}

    def line(setting, plans, accuracy):
        trees = {f"{siblings}_{k}": arm(plans, accuracy) for siblings in ("independent", "stratified") for k in (3, 8)}
        gains = {"kl_next8": 0.06, "posterior_gain": 0.055, "prior_loss": 0.017, "mixture_loss": 0.002}
        return {"task": "t", "setting": setting} | gains | trees

    out = tmp_path / "latents.jsonl"
    out.write_text("".join(json.dumps(x) + "\n" for x in (line("loud", 6.0, 0.48), line("quiet", 4.0, 0.51))))
    command = [sys.executable, str(FOLDER / "latents.py"), f"--out={out}", "--tasks="]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in printed]
    assert cells[0] == ["t", "loud", "0.060", "-5.5%", "+1.7%", "+0.2%", *["1.50 (-2.0 pt)"] * 4, "1.25", "1.25"]
    assert cells[1] == ["t", "quiet", "0.060", "-5.5%", "+1.7%", "+0.2%", *["1.00 (+1.0 pt)"] * 4, "1.25", "1.25"]


# ---- variance ------------------------------------------------------------------------------------------------------


def test_variance_tells_signal_from_noise():
    """Gradients of known mean and covariance: |mean|^2 and the trace; and the cosine of two means under noise."""
    from variance import Moments

    rng, n, d = np.random.default_rng(0), 4_000, 20
    mean, other = rng.normal(size=d), rng.normal(size=d)
    deviation = rng.uniform(0.5, 2.0, d)
    a, b = Moments(), Moments()
    for _ in range(n):
        a.add(mean + deviation * rng.normal(size=d))
        b.add(3.0 * other + 5.0 * rng.normal(size=d))
    assert a.signal == pytest.approx(mean @ mean, rel=0.05)
    assert a.noise == pytest.approx((deviation**2).sum(), rel=0.05)
    cosine = mean @ other / np.sqrt((mean @ mean) * (other @ other))
    assert a.along(b) == pytest.approx(cosine, abs=0.03)


def test_variance_by_hand():
    from variance import Moments

    found = Moments()
    for gradient in ([1.0, 0.0], [1.0, 2.0], [4.0, 1.0]):
        found.add(np.array(gradient))
    assert found.signal == pytest.approx((1 + 4 + 6) / 3)  # of the three pairs
    assert found.noise == pytest.approx((1 + 5 + 17) / 3 - 11 / 3)
    nothing = Moments()
    nothing.add(np.array([1.0, 0.0]))
    nothing.add(np.array([-1.0, 0.0]))
    assert np.isnan(found.along(nothing))


@pytest.mark.slow
def test_variance_compares_arms_on_one_policy(results):
    value = results("variance", "--arms=grpo_weight,branches_no_replacement_weight")
    rows = by_arm(value)
    assert list(rows) == ["grpo_weight", "branches_no_replacement_weight"]
    for row in rows.values():
        assert row["tokens"] > 100 and 0 <= row["informative"] <= 1 and row["noise"] > 0
        assert row["snr"] == pytest.approx(1e6 / row["tokens"] * row["signal"] / row["noise"])
    assert rows["grpo_weight"]["along"] == 1.0


def test_overoptimisation_draws_every_arm_and_runs_none_twice(tmp_path):
    import overoptimisation

    curve = {name: [0.1 * n for n in range(12)] for name in overoptimisation.CURVES}
    lines = [{"arm": arm, "seed": 0, **curve} for arm in overoptimisation.ARMS]
    overoptimisation.plot(lines, tmp_path / "proxy.svg")
    drawn = (tmp_path / "proxy.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in [*overoptimisation.ARMS, *overoptimisation.CURVES.values()])
    assert not list(overoptimisation.runs(["proxy", "kl"], 0, {"steps": 12}, lines))


@pytest.mark.parametrize("arm", ["proxy", "ibl", "ibl_more", "kl", "kl_more"])
def test_arms_of_overoptimisation_learn_from_the_model_alone(arm):
    import overoptimisation

    from iiblpo_jax.config import files, validation

    config = overoptimisation.config_of(3, 12, 8, 2)
    config.reward.model = "judge"
    for key, value in overoptimisation.ARMS[arm].items():
        assert files.flatten(config)[key] == 0 != value  # it changes something
        section, name = key.split(".")
        config[section][name] = value
    validation.validate(config)
    assert config.reward.model_coef == 1 and config.ib.filter == "none" and config.train.seed == 3
