"""The verifiers under fire: 2,000 answers that mean harm, one at a time.

    python benchmarks/verifier_fire.py --json=benchmarks/results/verifier_fire.json [--count=2000] [--timeout=1.0]

Every answer of tests/fuzz/hostile.py goes through the `Scorer` of the trainer alone, with one worker, so the seconds of
an answer are its own: the wait for a new worker, where the last answer cost the old one its life, is measured apart.
An answer is wrongly scored if it gets more than its task gives to nonsense (nothing; reasoning-gym gives up to 0.05 for
trying). The resident memory is the largest that a worker, or this process, had after any answer.
"""

import collections
import json
import platform
import sys
import time
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

import hostile  # noqa: E402

from iiblpo_jax.data.arithmetic import make_arithmetic  # noqa: E402
from iiblpo_jax.data.gym import make_gym  # noqa: E402
from iiblpo_jax.data.task import Task, boxed_task  # noqa: E402
from iiblpo_jax.rewards.scorer import Scorer  # noqa: E402
from iiblpo_jax.rewards.verifier import Problem  # noqa: E402

CONSOLATION = 0.051  # float32 of the 0.05 that reasoning-gym gives an answer of the right form

JSON = flags.DEFINE_string("json", "", "File for the result; empty = only the terminal.")
COUNT = flags.DEFINE_integer("count", hostile.COUNT, "Answers.")
TIMEOUT = flags.DEFINE_float("timeout", 1.0, "Seconds an answer may take, as data.verifier_timeout.")


def main(_):
    result = measure(list(hostile.attacks(COUNT.value)), timeout_s=TIMEOUT.value)
    text = json.dumps(result, indent=2)
    print(text)
    if JSON.value:
        Path(JSON.value).write_text(text + "\n")


def measure(attacks: list[hostile.Attack], *, timeout_s: float) -> dict:
    """Seconds, scores, counts, processes and memory over all attacks."""
    gyms = {f"gym:{name}": gym_task(name) for name in hostile.GYM}
    tasks = [boxed_task("math", [], []), make_arithmetic(seed=0, train_size=1, heldout_size=1), *gyms.values()]
    seconds, wrong, counts = [], [], collections.Counter()
    worker_mib = main_mib = restart = 0.0
    before = resident_mib("self")
    with Scorer(tasks, workers=1, timeout_s=timeout_s) as scorer:
        pool = scorer._pool
        for attack in attacks:
            problem = problem_of(attack, gyms)
            alive = pool.started, pool.pids()
            if not alive[1]:  # a new worker starts on an easy answer
                restart = max(restart, timed(scorer, right_problem(), "\\boxed{0.5}")[0])
            elapsed, score, new = timed(scorer, problem, attack.response)
            counts.update(new)
            seconds.append((round(elapsed, 3), attack.family, attack.verifier, attack.response[:60]))
            allowed = CONSOLATION if attack.verifier.startswith("gym:") else 0.0
            if score > allowed:
                wrong.append([attack.family, attack.verifier, attack.gold, attack.response[:200], score])
            worker_mib = max([worker_mib, *map(resident_mib, pool.pids())])
            main_mib = max(main_mib, resident_mib("self"))
        started = pool.started
    seconds.sort(reverse=True)
    return {
        "answers": len(attacks),
        "by_verifier": collections.Counter(attack.verifier.split(":")[0] for attack in attacks),
        "timeout_s": timeout_s,
        "max_seconds": seconds[0][0],
        "median_seconds": seconds[len(seconds) // 2][0],
        "total_seconds": round(sum(s[0] for s in seconds), 1),
        "over_2_seconds": sum(s[0] > 2 for s in seconds),
        "slowest": seconds[:5],
        "wrong_scores": len(wrong),
        "wrong": wrong[:20],
        **counts,
        "workers_replaced": started - 1,
        "worker_start_max_seconds": round(restart, 2),
        "worker_rss_max_mib": round(worker_mib),
        "main_rss_before_mib": round(before),
        "main_rss_max_mib": round(main_mib),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def gym_task(name: str) -> Task:
    """A task of one problem; sums long enough that nonsense does not contain them, which would earn a share."""
    options = {"min_digits": 6, "max_digits": 6} if name == "chain_sum" else {}
    return make_gym(name, seed=0, train_size=1, heldout_size=1, **options)


def timed(scorer: Scorer, problem: Problem, response: str) -> tuple[float, float, dict]:
    """(seconds, score, counts) of one response."""
    start = time.perf_counter()
    grades = scorer.score([problem], [response])
    return time.perf_counter() - start, float(grades.rewards[0]), grades.counts


def problem_of(attack: hostile.Attack, gyms: dict) -> Problem:
    if attack.verifier in gyms:
        return gyms[attack.verifier].heldout[0]
    task = {"math": "math", "exact": "arithmetic"}[attack.verifier]
    return Problem(id="attack", question="?", answer=attack.gold, task=task)


def right_problem() -> Problem:
    return Problem(id="right", question="?", answer="\\frac{1}{2}", task="math")


def resident_mib(pid: int | str) -> float:
    """Resident memory of a process; 0 where there is no /proc, or no such process any more."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in text.splitlines() if line.startswith("VmRSS")), "VmRSS 0")
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    app.run(main)
