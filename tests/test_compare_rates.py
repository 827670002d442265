"""The statistics of the comparison, the sweep that chooses a learning rate, and the order in which runs are done."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from iiblpo_jax import InputError

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULES = ("arms", "clock", "run", "series", "stats", "store", "sweep", "table")


@pytest.fixture(autouse=True)
def benchmark_modules(monkeypatch):
    """The benchmark's own modules importable, and gone afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in MODULES:
        sys.modules.pop(f"compare_{name}", None)


# ---- statistics ----------------------------------------------------------------------------------------------------


def test_the_paired_test():
    from compare_stats import paired_p

    # t with 2 degrees of freedom: p = 1 - t / sqrt(2 + t^2); differences 1, 2, 3 have t = 2 sqrt(3)
    assert paired_p([1.0, 2.0, 3.0]) == pytest.approx(1 - np.sqrt(12 / 14))
    a, b = [0.71, 0.74, 0.69, 0.73, 0.75], [0.70, 0.70, 0.70, 0.71, 0.72]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assert paired_p(differences) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_p([0.1]) is None and paired_p([0.1, 0.1]) is None


def closed_bonferroni(ps: list[float]) -> list[float]:
    """The closed test: a hypothesis falls when Bonferroni rejects every set of hypotheses that it is in."""
    sets = [c for size in range(1, len(ps) + 1) for c in itertools.combinations(range(len(ps)), size)]
    return [max(min(1.0, len(c) * min(ps[j] for j in c)) for c in sets if i in c) for i in range(len(ps))]


def test_holm_is_the_closed_bonferroni_test():
    from compare_stats import holm

    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(0)
    for n in range(1, 7):
        for ps in (rng.random(n) ** 3, np.round(rng.random(n), 1)):  # with ties
            assert holm(list(ps)) == pytest.approx(closed_bonferroni(list(ps)))
    assert holm([]) == []


def test_the_table_has_p_and_holm():
    from compare_table import differences

    p = 1 - np.sqrt(12 / 14)
    assert differences([[1.0, 2.0, 3.0], [-0.5], [-1.0, -2.0, -3.0], []]) == [
        f"+2.000 +- 0.577 (p {p:.3f}, Holm {2 * p:.3f})",  # of two that have a p
        "-0.500",
        f"-2.000 +- 0.577 (p {p:.3f}, Holm {2 * p:.3f})",
        "-",
    ]


def ranks_by_brute_force(values_AS: np.ndarray) -> list[int]:
    """1 + the size of the largest set of other arms that all beat everything outside the set."""
    n = len(values_AS)
    pairs = list(itertools.permutations(range(n), 2))
    p = {pair: stats.ttest_rel(*values_AS[list(pair)]).pvalue for pair in pairs if pair[0] < pair[1]}
    adjusted = dict(zip(p, closed_bonferroni(list(p.values())), strict=True))
    mean_A = values_AS.mean(1)
    beats = {(a, b): adjusted[min(a, b), max(a, b)] < 0.05 and mean_A[a] > mean_A[b] for a, b in pairs}

    def above_all_others(top):
        return all(beats[a, b] for a in top for b in range(n) if b not in top)

    tops = [c for size in range(n + 1) for c in itertools.combinations(range(n), size) if above_all_others(c)]
    return [1 + max(len(top) for top in tops if arm not in top) for arm in range(n)]


def test_ranks_by_brute_force():
    from compare_stats import ranks

    rng, seen = np.random.default_rng(1), set()
    for _ in range(40):
        values_AS = rng.choice([0.0, 0.5, 0.6, 1.0], 4)[:, None] + rng.normal(0, 0.06, (4, 5))
        arms = {str(a): dict(enumerate(values_S)) for a, values_S in enumerate(values_AS)}
        expected = ranks_by_brute_force(values_AS)
        assert ranks(arms) == {str(a): rank for a, rank in enumerate(expected)}
        seen.add(tuple(sorted(expected)))
    assert {(1, 1, 1, 1), (1, 1, 3, 3), (1, 2, 3, 4), (1, 2, 2, 2)} <= seen


def test_what_a_chain_connects_shares_a_rank():
    from compare_stats import ranks

    values = {"a": [1.0, 1.02, 0.99], "b": [0.9, 0.2, 1.4], "c": [0.5, 0.51, 0.5], "d": [-9.0, -9.01, -8.98]}
    values = {arm: dict(enumerate(of_seed)) for arm, of_seed in values.items()}
    assert ranks({"a": values["a"], "c": values["c"]}) == {"a": 1, "c": 2}
    assert ranks(values) == {"a": 1, "b": 1, "c": 1, "d": 4}  # b is told from neither a nor c


def test_two_seeds_make_no_ranks():
    from compare_stats import ranks

    arms = {"a": {0: 1.0, 1: 1.1, 2: 1.2}, "b": {0: 0.0, 1: 0.2, 3: 0.1}}
    assert ranks(arms) is None  # two seeds in common
    assert ranks({"a": {0: 1.0, 1: 1.1, 2: 1.2}}) is None
    assert ranks(arms | {"b": {0: 0.0, 1: 0.12, 2: 0.19}}) == {"a": 1, "b": 2}


# ---- learning rates ------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    from compare_store import Store

    return Store(tmp_path / "runs.jsonl")


@pytest.fixture
def arm():
    from compare_arms import Arm

    return lambda name: Arm(name=name, file="configs/arithmetic_grpo.py", overrides=("optim.lr=2e-4",))


@pytest.fixture
def budget():
    from compare_arms import Budget

    return Budget(unit="tokens", amount=5000)


def a_line(job, value: float) -> dict:
    from compare_store import key_of

    points = [{"eval": {"sums": {"pass@1": 0.9}}}, {"eval": {"sums": {"pass@1": value}, "more": {"pass@1": 0.5}}}]
    return key_of(job) | {"points": points, "evaluation": {}}


def test_the_sweep_is_about_the_rate_of_the_arm(arm, budget):
    from compare_sweep import rates_of, sweep_of

    assert rates_of(arm("x")) == (6.67e-5, 2e-4, 6e-4)
    sweep = sweep_of(arm("x"), budget, rates_of(arm("x")))
    assert [job.config().optim.lr for job in sweep] == [6.67e-5, 2e-4, 6e-4]
    assert {(job.seed, job.budget.amount, job.sweep) for job in sweep} == {(1000, 500, True)}
    assert sweep_of(arm("x"), budget, [None]) == sweep_of(arm("x"), budget, [1e-3]) == []


def test_the_best_rate_is_chosen_and_the_smaller_of_equals(arm, budget):
    from compare_sweep import best, results, sweep_of

    sweep, other = (sweep_of(arm(name), budget, [1e-4, 2e-4, 3e-4]) for name in "xy")
    lines = [a_line(job, value) for job, value in zip(sweep, (0.1, 0.3, 0.3), strict=True)]
    found = results([*lines, a_line(other[2], 0.9)], sweep)
    assert found == pytest.approx({1e-4: 0.3, 2e-4: 0.4, 3e-4: 0.4})  # means over two tasks
    assert best(found) == 2e-4
    assert best({3e-4: 0.4, 1e-4: 0.4, 2e-4: 0.3}) == 1e-4


@pytest.fixture
def series(store, budget, arm, monkeypatch):
    """A series of two arms whose runs are said and not done; the second rate is the better one of x, the first of y."""
    import compare_series

    done = []

    def run(job, plan, **_):
        done.append((job.arm.name, job.seed, job.rate, job.sweep))
        if job.arm.name == "broken" and job.sweep:
            raise RuntimeError("it is broken")
        return a_line(job, 0.5 + (0.1 if (job.rate == 2e-4) == (job.arm.name == "x") else 0.0))

    def make(names="xy", rates=(1e-4, 2e-4)):
        names = [compare_series.Contestant(arm(name), budget, rates) for name in names]
        return compare_series.Series(store, None, names, [0, 1], budget, latents=Path())

    monkeypatch.setattr(compare_series, "run", run)
    return make, done


SWEEP = [("x", 1000, 1e-4, True), ("x", 1000, 2e-4, True), ("y", 1000, 1e-4, True), ("y", 1000, 2e-4, True)]
RUNS = [("x", 0, 2e-4, False), ("y", 0, 1e-4, False), ("x", 1, 2e-4, False), ("y", 1, 1e-4, False)]


def test_sweeps_come_first_and_every_arm_gets_its_own_rate(series):
    make, done = series
    assert make().attempt()
    assert done == SWEEP + RUNS
    assert make().attempt() and len(done) == 8  # all of it is there
    assert make(rates=(1e-4, 2e-4, 3e-4)).attempt() and len(done) == 10  # one more rate, which is not better


def test_a_rate_that_would_change_in_the_middle_is_refused(series):
    make, done = series
    make().attempt()
    with pytest.raises(InputError, match=r"a run of x with learning rate 0\.0002, and this one would have"):
        make(rates=(1e-4,))
    assert len(done) == 8


def test_nothing_to_choose_from_needs_no_sweep(series):
    make, done = series
    assert make("x", rates=[None]).attempt()
    assert done == [("x", 0, None, False), ("x", 1, None, False)]


def test_what_another_process_sweeps_is_waited_for(series, store, arm, budget):
    from compare_store import key_of
    from compare_sweep import sweep_of

    make, done = series
    here, [_, elsewhere] = make(), sweep_of(arm("x"), budget, [1e-4, 2e-4])
    with store.claim(key_of(elsewhere)):
        assert not here.attempt()
        assert done == [x for x in SWEEP if x != SWEEP[1]] + [x for x in RUNS if x[0] == "y"]
        store.append(a_line(elsewhere, 0.9))
    assert here.attempt()
    assert sorted(done[-2:]) == [x for x in RUNS if x[0] == "x"]


def test_a_run_that_fails_leaves_the_other_arms_alone(series, capsys):
    make, done = series
    here = make(("broken", "x"))
    assert here.attempt()
    assert [str(job) for job in here.failed] == [
        "arithmetic/broken lr 0.0001 seed 1000 (sweep)",
        "arithmetic/broken lr 0.0002 seed 1000 (sweep)",
    ]
    assert [entry for entry in done if entry[0] == "x"] == SWEEP[:2] + [RUNS[0], RUNS[2]]
    assert "RuntimeError: it is broken" in capsys.readouterr().err
    assert here.attempt() and len(done) == 6  # not tried again by this process
