"""The pool against graders that hang, die and misbehave on purpose."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing import connection

import pytest

from iiblpo_jax.rewards import worker
from iiblpo_jax.rewards.pool import Job, Pool, PoolError

HOSTILE = """
import os, re, signal, sys, time

def echo(x): return x
def sleep(): time.sleep(60)
def spin():
    while True: pass
def swallow():  # ignores every exception: only the pool can end it
    while True:
        try: time.sleep(60)
        except BaseException: pass
def deaf():  # the worker's alarm never arrives
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(60)
def regex(): return bool(re.match(r"(a+)+$", "a" * 40 + "b"))
def die(): os._exit(3)
def segfault(): os.kill(os.getpid(), signal.SIGSEGV)
def leave(): sys.exit(0)
def fail(): raise ValueError("no")
def recurse(): return recurse()
def nan(): return float("nan")
def memory(): return len(bytearray(1 << 36))
def pid(): return os.getpid()
def parent(): return os.getppid()
def nap():
    time.sleep(0.3)
    return 1.0
def write(path):
    try: open(path, "w").close()
    except Exception: pass
    return 1.0
def program():
    try: return float(os.system("true") == 0)
    except Exception: return 1.0
def fork():
    if os.fork() == 0: os._exit(0)
    return 1.0
def sock():
    import socket
    return float(socket.socket().fileno() > 0)
def grow():  # keeps 300 MB
    sys.hoard = bytearray(300 << 20)
    return 1.0
def forge():  # a pickle where the pool expects JSON
    import gc, pickle
    from multiprocessing.connection import Connection
    for fd in range(3, 512):  # the parent may have many files open
        try: Connection(fd).send(("ok", 1.0, False))
        except OSError: pass
    time.sleep(60)
def prepare(word):
    time.sleep(0.8)
    sys.prepared = word
def prepared(): return float(getattr(sys, "prepared", "") == "done")
def jax(): return "jax" in sys.modules or "iiblpo_jax.data" in sys.modules
"""
NAMES = """
    echo sleep spin swallow deaf regex die segfault leave fail recurse nan memory pid parent nap jax
    write program fork sock grow forge prepare prepared
""".split()


def job(name, *args):
    return Job(f"hostile:{name}", args)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return [f"hostile:{name}" for name in NAMES]


@pytest.fixture
def pool(hostile):
    with Pool(hostile, workers=2, timeout_s=0.5) as pool:
        yield pool


@pytest.fixture
def patient(hostile):
    """For items that import modules first, which takes a busy machine a while."""
    with Pool(hostile, workers=2, timeout_s=10.0) as pool:
        yield pool


def test_scores_keep_the_order_of_the_jobs(pool):
    values = [i / 64 for i in range(64)]
    assert pool.run([job("echo", value) for value in values]) == (values, {"timeouts": 0, "crashes": 0})


def test_workers_start_with_the_first_job(hostile):
    pool = Pool(hostile, workers=2, timeout_s=1.0)
    assert pool.run([]) == ([], {"timeouts": 0, "crashes": 0})
    assert pool._workers == []
    pool.run([job("echo", 1.0)])
    assert len(pool._workers) == 1  # no more workers than jobs
    pool.close()


def test_a_worker_is_prepared_before_its_first_clock_runs(hostile):
    """The preparation takes longer than an answer may."""
    with Pool(hostile, workers=1, timeout_s=0.5, preparations=[job("prepare", "done")]) as pool:
        assert pool.run([job("prepared")] * 2) == ([1.0, 1.0], {"timeouts": 0, "crashes": 0})


def test_a_worker_that_cannot_be_prepared_is_an_error(hostile):
    pool = Pool(hostile, workers=1, timeout_s=0.5, preparations=[job("fail")])
    with pool, pytest.raises(PoolError, match="ValueError: no"):
        pool.run([job("echo", 1.0)])


@pytest.mark.parametrize("name", ["sleep", "spin", "swallow", "deaf", "regex"])
def test_a_hanging_item_scores_zero_and_is_counted(pool, name):
    pool.run([job("echo", 1.0)] * 2)  # workers are up
    start = time.monotonic()
    scores, counts = pool.run([job("echo", 1.0), job(name), job("echo", 0.5)])
    assert scores == [1.0, 0.0, 0.5]
    assert counts == {"timeouts": 1, "crashes": 0}
    assert time.monotonic() - start < 5.0


@pytest.mark.parametrize("name", ["die", "segfault", "leave", "fail", "recurse", "nan", "memory"])
def test_a_crashing_item_scores_zero_and_is_counted(pool, name):
    scores, counts = pool.run([job("echo", 1.0), job(name), job("echo", 0.5)])
    assert (scores, counts) == ([1.0, 0.0, 0.5], {"timeouts": 0, "crashes": 1})


def test_python_code_is_interrupted_without_losing_the_worker_and_stuck_code_with_it(hostile):
    with Pool(hostile, workers=1, timeout_s=0.3) as pool:
        before, *_, after = pool.run([job("pid"), job("spin"), job("fail"), job("pid")])[0]
        assert before == after
        _, replaced = pool.run([job("swallow"), job("pid")])[0]
        assert replaced != before
        assert not alive(int(before))


def test_many_bad_items_in_a_row(pool):
    scores, counts = pool.run([job("die"), job("echo", 1.0)] * 6)
    assert scores == [0.0, 1.0] * 6
    assert counts == {"timeouts": 0, "crashes": 6}


def test_a_worker_that_dies_between_runs_costs_no_item(pool):
    (pid,) = pool.run([job("pid")])[0]
    os.kill(int(pid), 9)
    assert pool.run([job("echo", 1.0)] * 3) == ([1.0] * 3, {"timeouts": 0, "crashes": 0})


def test_an_item_whose_process_was_killed_from_outside_is_tried_again(hostile):
    with Pool(hostile, workers=1, timeout_s=5.0) as pool:
        (pid,) = pool.run([job("pid")])[0]
        killer = threading.Timer(0.1, os.kill, (int(pid), signal.SIGKILL))
        killer.start()
        assert pool.run([job("nap"), job("echo", 0.5)]) == ([1.0, 0.5], {"timeouts": 0, "crashes": 0})
        killer.join()
        assert pool.started == 2


@pytest.mark.parametrize("name", ["write", "program", "fork", "sock"])
def test_an_item_cannot_reach_out_of_its_worker(patient, tmp_path, name):
    path = tmp_path / "written"
    scores, counts = patient.run([job(name, *([str(path)] if name == "write" else [])), job("echo", 0.5)])
    assert (scores, counts) == ([0.0, 0.5], {"timeouts": 0, "crashes": 1})
    assert not path.exists()


def test_a_worker_that_has_grown_is_replaced_and_its_score_counts(hostile):
    with Pool(hostile, workers=1, timeout_s=2.0) as pool:
        before, grown, after = pool.run([job("pid"), job("grow"), job("pid")])[0]
        assert grown == 1.0 and after != before and pool.started == 2
        assert not alive(int(before))


def test_a_worker_is_replaced_after_so_many_answers(hostile):
    with Pool(hostile, workers=1, timeout_s=2.0) as pool:
        pids = pool.run([job("pid")] * (worker.ANSWERS + 1))[0]
        assert len(set(pids)) == 2 and pids[-2] != pids[-1] and pool.started == 2


def test_what_a_worker_sends_is_never_unpickled(patient, monkeypatch):
    monkeypatch.setattr(connection._ForkingPickler, "loads", lambda *_: pytest.fail("unpickled"))
    scores, counts = patient.run([job("echo", 1.0), job("forge")])
    assert (scores, counts) == ([1.0, 0.0], {"timeouts": 0, "crashes": 1})


def test_an_interrupted_run_leaves_nothing_behind(pool, monkeypatch):
    pool.run([job("echo", 1.0)] * 2)

    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pool, "_next_events", interrupt)
        pool.run([job("echo", 0.25)] * 2)
    assert pool.run([job("echo", 0.5)] * 4)[0] == [0.5] * 4


def test_close_ends_the_workers_and_a_later_run_starts_new_ones(pool):
    (pid,) = pool.run([job("pid")])[0]
    pool.close()
    assert not alive(int(pid))
    assert pool.run([job("echo", 1.0)])[0] == [1.0]


def test_workers_import_neither_jax_nor_the_data_package(pool):
    assert pool.run([job("jax"), job("parent")])[0] == [0.0, float(os.getpid())]


def test_a_grader_that_cannot_be_imported_is_an_error():
    name = "no_such_module:grade"
    with Pool([name], workers=1, timeout_s=1.0) as pool, pytest.raises(PoolError, match="no_such_module"):
        pool.run([Job(name, ())])


def test_workers_end_with_a_parent_that_is_killed(hostile, tmp_path):
    script = textwrap.dedent("""
        import os, sys
        sys.path.insert(0, sys.argv[1])
        from iiblpo_jax.rewards.pool import Job, Pool
        pool = Pool(["hostile:pid"], workers=1, timeout_s=1.0)
        print(int(pool.run([Job("hostile:pid", ())])[0][0]), flush=True)
        os.kill(os.getpid(), 9)
    """)
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    pid = int(run.stdout)
    for _ in range(50):
        if not alive(pid):
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived its parent")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"  # a zombie waits for its parent, it does not run
    except FileNotFoundError:
        return False
