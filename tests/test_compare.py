"""The comparison of methods: which runs it does, what its tables say, and one tiny series from end to end."""

import json
import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iiblpo_jax import InputError

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
MODULES = ("arms", "clock", "plot", "run", "series", "stats", "store", "sweep", "table")
HOW = {"points": 3, "problems": 4, "samples": 4, "final_problems": 8, "final_samples": 16}


@pytest.fixture(autouse=True)
def benchmark_modules(monkeypatch):
    """The benchmark's own modules importable, and gone afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in MODULES:
        sys.modules.pop(f"learning_{name}", None)


def a_line(
    arm="a",
    seed=0,
    *,
    file="configs/arithmetic.py",
    overrides=(),
    late=(0.5, 0.5),
    final=0.5,
    tokens=900,
    rate=None,
) -> dict:
    """A finished run of 900 tokens: points at 0, 300, 600 and 900, of which the last two are `late`."""
    curve = (0.1, 0.3, *late)
    points = [
        {
            "tokens": 300 * i,
            "trajectories": 30 * i,
            "update_tokens": 400 * i,
            "seconds": float(i),
            "steps": 3 * i,
            "entropy": 0.2 * i or None,
            "eval": {"sums": {"pass@1": value}},
        }
        for i, value in enumerate(curve)
    ]
    return {
        "arm": arm,
        "file": file,
        "overrides": list(overrides),
        "seed": seed,
        "budget": {"tokens": 900},
        "rate": rate,
        "sweep": False,
        "lr": 3e-4,
        "evaluation": HOW,
        "tokens": tokens,
        "trajectories": 90,
        "update_tokens": 1200,
        "seconds": 3.0,
        "steps": 9,
        "stopped": None,
        "points": points,
        "before": {"sums": {"pass@1": 0.1}},
        "final": {"sums": {"pass@1": final}},
    }


def cells(markdown: str, arm: str) -> dict[str, str]:
    """The row of an arm in the first table that has one, by column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    row = next(row for row in rows if row[0] == arm)
    head = [row for row in rows[: rows.index(row)] if row[0] == "arm"][-1]
    return dict(zip(head, row, strict=True))


# ---- arms ----------------------------------------------------------------------------------------------------------


def test_an_arm_of_the_command_line():
    from compare_arms import parse_arm

    arm = parse_arm("mine:configs/arithmetic_grpo.py:optim.lr=1e-3:task.name=gym:chain_sum:train.steps=7")
    assert (arm.name, arm.family) == ("mine", "arithmetic")
    assert arm.overrides == ("optim.lr=1e-3", "task.name=gym:chain_sum", "train.steps=7")
    config = parse_arm("mine:configs/arithmetic_grpo.py:optim.lr=1e-3").config(5, ["eval.problems=3"])
    assert (config.optim.lr, config.train.seed, config.data.seed, config["eval"].problems) == (1e-3, 5, 5, 3)


@pytest.mark.parametrize("text", ["mine", ":configs/arithmetic.py", "mine:", "mine:configs/arithmetic.py:nonsense"])
def test_an_arm_that_is_none_is_refused(text):
    from compare_arms import parse_arm

    with pytest.raises(InputError, match="is not NAME:FILE:KEY=VALUE"):
        parse_arm(text)


def test_every_named_arm_has_a_config():
    from compare_arms import NAMED, TESTBEDS, named_arm, trajectories_of

    for testbed in TESTBEDS:
        for name in NAMED:
            arm = named_arm(name, testbed)
            assert arm.family == testbed
            arm.config(0, ["update.minibatches=4"])
    config = named_arm("as_shipped", "arithmetic").config(0)
    assert trajectories_of(config, {}) == 32 * 4 * (1 + 1)
    assert trajectories_of(config, {"rollout/refills": 2.0}) == 3 * 32 * 4 * (1 + 1)
    with pytest.raises(InputError, match="no arm is called 'gpro'"):
        named_arm("gpro", "arithmetic")


def test_every_method_and_every_weight_is_compared():
    from compare_arms import COMPARED, OF_TURNS, named_arm

    from iiblpo_jax.config.methods import METHODS
    from iiblpo_jax.objectives.weights import WEIGHTS

    names = [*COMPARED, *OF_TURNS]
    configs = [named_arm(name, "countdown").config(0) for name in names]
    assert len({config.to_json_best_effort() for config in configs}) == len(names)
    assert {config.objective.name for config in configs} == METHODS.keys()
    assert {config.advantage.weight for config in configs} == WEIGHTS.keys()


def test_a_preset_comes_before_the_changes():
    from compare_arms import parse_arm

    arm = parse_arm("mine:configs/countdown.py:ib.beta=2.0:preset=paper:latent.z=5")
    config = arm.config(0)
    assert (config.rollout.roots, config.branch.k, config.ib.filter) == (2, 3, "score")  # the paper's
    assert (config.latent.z, config.ib.beta) == (5, 2.0)
    with pytest.raises(InputError, match="preset=papers: no preset is called so; use one of dapo, fr3e, kepo, paper"):
        parse_arm("mine:configs/countdown.py:preset=papers").config(0)


def test_a_preset_leaves_a_testbed_its_sampler_rate_and_tokens_a_step():
    from compare_arms import named_arm

    config = named_arm("treerl", "countdown").config(0)  # which has 1.2, .95 and 1.5e-6
    assert (config.rollout.temperature, config.rollout.top_p, config.optim.lr) == (1.0, 1.0, 3e-4)
    assert (config.rollout.roots, config.branch.k, config.branch.credit) == (6, 4, "treerl")
    assert config.train.prompts_per_step == 8  # of 32
    assert named_arm("treepo", "arithmetic_long").config(0).branch.segment == 20  # of 120


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("iib_lpo", "configs/arithmetic.py:latent.z=0"),
        ("iib_lpo", "configs/arithmetic.py:ib.estimator=none"),
        ("iib_lpo_mine", "configs/arithmetic_grpo.py:ib.estimator=likelihood:latent.z=4"),
        ("branches", "configs/countdown.py"),  # has the weight
        ("branches_weight", "configs/countdown.py:advantage.weight=none"),
        ("branches_weight", "configs/arithmetic.py"),  # has a latent and the score
        ("branches_weight", "configs/countdown_grpo.py:advantage.weight=surprise"),
    ],
)
def test_an_arm_is_called_by_what_it_has(name, text):
    from compare_arms import parse_arm

    parse_arm(f"other:{text}").config(0)
    with pytest.raises(InputError, match=f"the arm {name} "):
        parse_arm(f"{name}:{text}").config(0)


# ---- which runs are done -------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    from compare_store import Store

    return Store(tmp_path / "runs.jsonl")


@pytest.fixture
def key():
    from compare_arms import Arm, Budget, Job
    from compare_store import key_of

    arm = Arm(name="a", file="configs/arithmetic.py")
    return lambda seed=0, tokens=900, **more: key_of(
        Job(arm=arm, seed=seed, budget=Budget(unit="tokens", amount=tokens), **more)
    )


def test_a_finished_run_is_not_done_again(store, key):
    with store.claim(key()) as mine:
        assert mine
        store.append(a_line())
    assert not store.path.with_name("runs.jsonl.claims").exists()
    others = (key(seed=1), key(tokens=901), key(rate=0.1), key(sweep=True))
    for again, todo in ((key(), False), *((other, True) for other in others)):
        with store.claim(again) as mine:
            assert mine == todo


def test_half_a_line_of_a_killed_process_is_replaced(store, key):
    store.append(a_line(seed=1))
    with store.path.open("a") as file:
        file.write('{"arm": "a", "se')
    store.append(a_line(seed=2))
    assert [line["seed"] for line in store.lines()] == [1, 2]


def _worker(path: str, name: str, keys: list[dict], barrier, log: str) -> None:
    """Another invocation: it claims what it can, and says so."""
    sys.path.insert(0, str(FOLDER))
    from compare_store import Store

    store = Store(Path(path))
    barrier.wait()
    for key in keys:
        with store.claim(key) as mine:
            if mine:
                with open(log, "a") as file:
                    file.write(f"{name} {key['seed']}\n")
                store.append(key | {"by": name})


def test_two_invocations_share_the_runs(store, key, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    barrier, log = spawn.Barrier(2), tmp_path / "log"
    keys = [key(seed) for seed in range(60)]
    workers = [
        spawn.Process(target=_worker, args=(str(store.path), name, keys, barrier, str(log))) for name in ("x", "y")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sorted(int(line.split()[1]) for line in log.read_text().splitlines()) == list(range(60))
    assert sorted(line["seed"] for line in store.lines()) == list(range(60))


def test_a_run_under_way_elsewhere_is_left_alone_and_taken_over_if_that_dies(store, key):
    script = (
        f"import sys, time, json; sys.path[:0] = [{str(FOLDER)!r}, {str(ROOT)!r}]\n"
        "from pathlib import Path\n"
        "from compare_store import Store\n"
        f"with Store(Path({str(store.path)!r})).claim(json.loads({json.dumps(json.dumps(key()))})) as mine:\n"
        "    print(mine, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        with store.claim(key()) as mine:
            assert not mine
        with store.claim(key(seed=1)) as mine:
            assert mine
        other.kill()
    with store.claim(key()) as mine:
        assert mine


def test_an_arm_with_the_name_of_another_is_refused(store):
    from compare_arms import Arm

    store.append(a_line("a", overrides=["optim.lr=0.1"]))
    same = Arm(name="a", file="configs/arithmetic.py", overrides=("optim.lr=0.1",))
    elsewhere = Arm(name="a", file="configs/countdown.py")
    store.check([same, elsewhere], HOW)
    clash = Arm(name="a", file="configs/arithmetic.py", overrides=("optim.lr=0.2",))
    with pytest.raises(
        InputError, match=r"called a, configs/arithmetic.py:optim.lr=0.1 and .*lr=0.2; give one"
    ) as told:
        store.check([clash], HOW)
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="two arms of arithmetic are called b"):
        store.check(
            [Arm(name="b", file="configs/arithmetic.py"), Arm(name="b", file="configs/arithmetic_grpo.py")], HOW
        )
    with pytest.raises(InputError, match=r"evaluated with .*--points=3.* and this one has .*--points=9"):
        store.check([same], HOW | {"points": 9})


def test_a_line_from_before_there_were_sweeps_is_a_run_without_one(store, key):
    line = a_line()
    store.append({name: value for name, value in line.items() if name not in ("rate", "sweep")})
    assert store.lines() == [line]
    assert store.has(key()) and not store.has(key(rate=3e-4))


def test_one_arm_has_one_learning_rate_in_a_comparison(store):
    from compare_arms import Arm, Budget

    arm, budget = Arm(name="a", file="configs/arithmetic.py"), Budget(unit="tokens", amount=900)
    store.append(a_line(rate=1e-3))
    store.append(a_line(rate=9e-3) | {"sweep": True})
    store.check_rates(arm, budget, [1e-4, 1e-3])
    store.check_rates(arm, Budget(unit="tokens", amount=901), [None])
    with pytest.raises(InputError, match=r"a run of a with learning rate 0\.001, and .* have learning rate 0\.1; use"):
        store.check_rates(arm, budget, [0.1])
    with pytest.raises(InputError, match="this one would have the learning rate of its config"):
        store.check_rates(arm, budget, [None])


# ---- the clock -----------------------------------------------------------------------------------------------------


def test_compilations_inside_others_count_once():
    from compare_clock import Compilations

    heard = Compilations()
    for span in ((1.0, 2.0), (2.5, 3.0), (0.5, 4.0), (6.0, 7.0)):  # the third one holds the first two
        heard.add(*span)
    assert heard.seconds() == pytest.approx(3.5 + 1.0)


def test_the_clock_leaves_out_evaluation_and_compilation(monkeypatch):
    import compare_clock

    now, compilations = [100.0], compare_clock.Compilations()
    monkeypatch.setattr(compare_clock, "COMPILATIONS", compilations)
    monkeypatch.setattr(compare_clock.time, "monotonic", lambda: now[0])
    compilations.add(90.0, 95.0)  # before
    clock = compare_clock.Clock()
    now[0] = 110.0
    compilations.add(101.0, 104.0)
    assert clock.seconds() == pytest.approx(10 - 3)

    def evaluate():  # waits 2 s for a rollout, then measures for 5 s, 1 s of which compiles
        now[0] = 117.0
        compilations.add(113.0, 114.0)
        return {"time/eval_s": 5.0, "x": 1}

    assert clock.aside(evaluate)["x"] == 1
    assert clock.seconds() == pytest.approx(10 - 3 + 2)


# ---- latents -------------------------------------------------------------------------------------------------------


def test_arms_share_latents_if_they_train_the_same():
    from compare_arms import named_arm
    from compare_run import latent_digest

    def digest(*changes, seed=0):
        return latent_digest(named_arm("as_shipped", "arithmetic").config(seed, changes))

    same = ("ib.filter=none", "optim.lr=1e-2", "rollout.roots=3", "latent.condition=conditioned", "eval.samples=16")
    assert {digest(change) for change in same} == {digest()}
    others = ("latent.steps=7", "psa.half_life=3.0", "rollout.temperature=0.5", "branch.fraction=0.5", "model.path=x")
    assert len({digest(), digest(seed=1), *(digest(change) for change in others)}) == 2 + len(others)


# ---- tables --------------------------------------------------------------------------------------------------------


def test_the_table_by_hand():
    from compare_table import tables

    lines = [a_line("a", seed, final=value) for seed, value in enumerate((0.2, 0.4, 0.9))]
    lines += [a_line("grpo", 0, file="configs/arithmetic_grpo.py", final=0.3, tokens=1100)]
    text = tables(lines, against="grpo")
    assert text.startswith("**arithmetic, sums: 900 generated tokens a run.**")
    a = cells(text, "a")
    assert (a["seeds"], a["steps"], a["generated tokens"], a["update tokens"]) == ("3", "9", "900", "1,200")
    assert a["learning rate"] == "0.0003"
    assert a["pass@1"] == f"0.500 +- {math.sqrt((0.09 + 0.01 + 0.16) / 2 / 3):.3f}" == "0.500 +- 0.208"
    assert a["entropy"] == "0.600 +- 0.000"
    grpo = cells(text, "grpo")
    assert (grpo["seeds"], grpo["generated tokens"], grpo["pass@1"]) == ("1", "1,100", "0.300")
    assert cells(text, "before training")["pass@1"] == "0.100"
    assert cells(text[text.index("Difference") :], "a") == {"arm": "a", "pairs": "1", "pass@1": "-0.100"}


def test_the_table_says_how_rates_were_chosen_and_what_the_arms_are():
    from compare_table import tables

    def sweep(rate, value, **more):
        line = a_line("a", 1000, rate=rate, late=(0.5, value), overrides=["ib.beta=2.0"], **more)
        del line["final"], line["before"]
        return line | {"sweep": True, "budget": {"tokens": 90}}

    sweeps = [sweep(3e-4, 0.2), sweep(1e-4, 0.3), sweep(1e-5, 0.9, file="configs/countdown.py")]
    text = tables([*sweeps, a_line("a", rate=1e-4, overrides=["ib.beta=2.0"]), a_line("grpo")], against="grpo")
    assert cells(text, "a")["seeds"] == "1" and text.count("**arithmetic, sums") == 1  # the sweep is no run of it
    legend = text[text.index("What the arms are") :]
    assert "learning rates, 90 generated tokens with seed 1000." in legend
    assert cells(legend, "a") == {
        "arm": "a",
        "config": "configs/arithmetic.py",
        "changes": "ib.beta=2.0",
        "sweep: learning rate: pass@1": "**0.0001: 0.300**, 0.0003: 0.200",
    }
    assert cells(legend, "grpo")["sweep: learning rate: pass@1"] == "-"


def test_ranks_stand_in_the_table_from_three_seeds_on():
    from compare_table import tables

    good, bad = (0.80, 0.82, 0.81), (0.30, 0.31, 0.33)
    lines = [a_line(arm, s, final=x) for arm, of in (("grpo", bad), ("a", good)) for s, x in enumerate(of)]
    text = tables(lines, against="grpo")
    assert [cells(text, arm)["rank by pass@1"] for arm in ("a", "grpo")] == ["1", "2"]
    # differences .50, .51, .48: t = mean / (sd / sqrt 3), p = 1 - t / sqrt(2 + t^2), alone and so not corrected
    t = 0.49667 / (0.015275 / math.sqrt(3))
    p = 1 - t / math.sqrt(2 + t * t)
    assert cells(text[text.index("Difference") :], "a")["pass@1"] == f"+0.497 +- 0.009 (p {p:.3f}, Holm {p:.3f})"
    assert "rank" not in tables(lines[1:], against="grpo")


def test_budgets_and_families_have_tables_of_their_own():
    from compare_table import tables

    other = a_line("a", 1, final=0.8) | {"budget": {"seconds": 3.0}}
    text = tables([a_line("a"), other, a_line("a", file="configs/countdown.py")], against="grpo")
    titles = [line.split(":**")[0].split(".**")[0] for line in text.splitlines() if line.startswith("**")]
    assert titles == [
        "**arithmetic, sums: 900 generated tokens a run",
        "**arithmetic, sums: 3 seconds of training a run",
        "**countdown, sums: 900 generated tokens a run",
    ]


def test_the_last_third_of_a_curve():
    from compare_table import plateau

    # from two thirds of the budget to its end pass@1 rises from .5 to .5 + gain, which is all of the last third
    def said(*gains):
        return plateau([a_line(seed=i, late=(0.5, 0.5 + gain)) for i, gain in enumerate(gains)], "sums")

    assert said(0.03) == "0.030"
    assert said(0.02, 0.04) == "0.030 +- 0.010, rising"
    assert said(-0.02, 0.04) == "0.010 +- 0.030, flat"
    assert said(-0.2, -0.21) == "-0.205 +- 0.005, falling"
    assert plateau([a_line() | {"points": a_line()["points"][:2]}], "sums") == "-"


def test_curves_are_read_off_at_what_the_shortest_run_spent():
    from compare_table import tables, value_at

    slow = a_line("slow", late=(0.5, 0.9))
    for point in slow["points"]:
        point["seconds"] *= 2  # 0, 2, 4, 6 against 0, 1, 2, 3
    assert value_at(slow, "sums", "pass@1", "seconds", 5.0) == pytest.approx(0.7)
    text = tables([slow, a_line("fast", late=(0.5, 0.8))], against="fast")
    text = text[text.index("At equal trajectories and equal update tokens and equal seconds of training") :]
    assert cells(text, "slow") == {
        "arm": "slow",
        "pass@1 at 90 trajectories": "0.900",
        "pass@1 at 1,200 update_tokens": "0.900",
        "pass@1 at 3 seconds": "0.400",
    }
    assert cells(text, "fast")["pass@1 at 3 seconds"] == "0.800"


def test_the_band_of_a_curve():
    from compare_plot import band
    from compare_table import points_of

    assert points_of(a_line(), "sums", "pass@1", "tokens") == [(0, 0.1), (300, 0.3), (600, 0.5), (900, 0.5)]
    assert [x for x, _ in points_of(a_line(), "sums", "entropy", "trajectories")] == [30, 60, 90]
    # the second run ended at 15 and stays at 4; the error of two values is half their distance
    assert band([[(0, 1.0), (10, 2.0), (20, 9.0)], [(0, 1.0), (15, 4.0)]]) == [
        (0, 1.0, 0.0),
        (10, 2.5, 0.5),
        (20, 6.5, 2.5),
    ]
    assert band([[(0, 1.0), (10, 2.0)]]) == [(0, 1.0, 0.0), (10, 2.0, 0.0)] and band([[]]) == []


def test_a_run_that_ended_before_its_time_does_not_shorten_the_others():
    from compare_table import tables

    short = a_line("short") | {"points": a_line()["points"][:2], "stopped": "nothing to learn from", "steps": 3}
    text = tables([short, a_line("long", late=(0.5, 0.8))], against="long")
    found = cells(text[text.index("At equal") :], "short")
    assert found["pass@1 at 90 trajectories"] == "0.300"
    assert "short, seed 0, ended after 3 steps: nothing to learn from." in text


# ---- from end to end -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tiny_series(tmp_path):
    small = (
        "train.prompts_per_step=4:rollout.slots=8:update.microbatch=8:"
        "task.options.train_size=16:task.options.heldout_size=8:latent.prompts=32:latent.steps=5:latent.psa_steps=2"
    )
    out = tmp_path / "runs.jsonl"

    def invoke(*arguments: str) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            str(FOLDER / "compare.py"),
            f"--out={out}",
            "--seeds=0",
            "--points=2",
            "--problems=4",
            "--samples=4",
            "--final_problems=4",
            "--final_samples=16",
            *arguments,
        ]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "IIBLPO_CACHE": str(tmp_path / "compiled"),
            "JAX_PLATFORMS": "cpu",
        }
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    arms = [f"--arm=grpo:configs/arithmetic_grpo.py:{small}", f"--arm=iib:configs/arithmetic.py:{small}"]
    arms += [f"--arm=patient:configs/arithmetic.py:{small}:reward.timeout=20"]
    plain = ("--trajectories=60", "--no_sweep", *arms)
    done = invoke(*plain, f"--plot={tmp_path / 'curves.svg'}")
    assert done.returncode == 0, done.stderr
    lines = {line["arm"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert lines.keys() == {"grpo", "iib", "patient"}
    assert [lines[arm]["trajectories"] for arm in lines] == [72, 64, 64]  # 3 steps of 24, 2 of 32
    assert [lines[arm]["steps"] for arm in lines] == [3, 2, 2]
    assert [[p["steps"] for p in line["points"]] for line in lines.values()] == [[0, 2, 3], [0, 1, 2], [0, 1, 2]]
    for line in lines.values():
        assert line["before"] == lines["grpo"]["before"] and line["before"] != line["final"]
        assert {"pass@1", "pass@16", "greedy", "unique_correct", "self_bleu"} <= line["final"]["arithmetic"].keys()
        assert line["points"][0]["entropy"] is None and line["points"][-1]["entropy"] > 0
        assert line["points"][-1]["tokens"] == line["tokens"] and line["seconds"] > 0
        assert 0 < line["points"][1]["update_tokens"] < line["update_tokens"]
        assert (line["rate"], line["lr"], line["stopped"]) == (None, 3e-4, None)
    assert len([p for p in Path(f"{out}.latents").iterdir() if p.is_dir()]) == 1  # patient took those of iib
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    assert "iib" in done.stdout.split("Difference to grpo")[1]

    before = out.read_bytes()
    again = invoke(*plain)
    assert again.returncode == 0 and "[" not in again.stdout.split("**")[0] and out.read_bytes() == before
    clash = invoke("--trajectories=60", "--arm=grpo:configs/arithmetic_grpo.py")
    assert clash.returncode == 2 and clash.stderr.count("\n") == 1 and "two arms of arithmetic" in clash.stderr
    both = invoke("--trajectories=60", "--tokens=5", *arms)
    assert both.returncode == 2 and "--tokens and --trajectories are both given" in both.stderr
    swept = invoke("--trajectories=60", arms[0])
    assert swept.returncode == 2 and "with the learning rate of its config, and this one would" in swept.stderr
    seconds = invoke("--seconds=0.01", "--rates=1e-3", arms[0])  # one rate needs no sweep
    assert seconds.returncode == 0, seconds.stderr
    [run] = [json.loads(line) for line in out.read_text().splitlines()][3:]
    assert (run["rate"], run["seed"], run["sweep"], run["lr"]) == (1e-3, 0, False, 1e-3)
    printed = invoke("--arms=")
    assert printed.returncode == 0 and cells(printed.stdout, "patient")["seeds"] == "1"
