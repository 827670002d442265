"""A tracker of the user's own gets every row, and costs a run nothing where it fails."""

import textwrap
import threading

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.defaults import default_config
from iiblpo_jax.run import tracking
from iiblpo_jax.run.metrics import MetricWriter

MINE = """
    import threading
    SEEN, RELEASE = [], threading.Event()

    class Tracker:
        def __init__(self, config, start, project):
            SEEN.append((config["train"]["steps"], start, project, threading.current_thread().name))
        def log(self, step, metrics):
            if metrics.get("fail"):
                raise ConnectionError("no network")
            if metrics.get("hang"):
                RELEASE.wait(60)
            SEEN.append((step, metrics))
        def close(self):
            SEEN.append("closed")

    def offline():
        raise OSError("no server")
"""


@pytest.fixture
def start(tmp_path):
    """start(name, **options) -> the function that a writer starts the tracker with, and its module."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))

    def start(name, **options):
        config = default_config()
        config.tracker.path = f"{tmp_path / 'mine.py'}:{name}"
        config.tracker.options = options
        return tracking.prepare(config, tmp_path)

    return start


def module(tmp_path):
    return tracking.own_code.load_file(tmp_path / "mine.py")


def test_it_gets_every_row_in_a_thread_of_its_own(start, tmp_path):
    with MetricWriter(tmp_path / "run", resume_step=2, track=start("Tracker", project="p")) as writer:
        writer.write(3, {"x": 0.5})
        writer.write(4, {"x": float("nan")})
    opened, *rest = module(tmp_path).SEEN
    assert opened == (1000, 2, "p", "tracker")
    assert rest == [(3, {"x": 0.5}), (4, {"x": None}), "closed"]


def test_a_failure_is_one_line_and_later_rows_still_arrive(start, tmp_path, capsys):
    tracker = start("Tracker", project="p")(None)
    for step, metrics in enumerate([{"fail": 1}, {"fail": 1}, {"x": 1}]):
        tracker.log(step, metrics)
    tracker.close()
    assert module(tmp_path).SEEN[1:] == [(2, {"x": 1}), "closed"]
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1
        and "mine.py:Tracker: ConnectionError: no network (mine.py line 10); the run goes on" in err
    )


def test_one_that_cannot_be_opened_is_one_line(start, capsys):
    tracker = start("offline")(None)
    tracker.log(1, {"x": 1})
    tracker.close()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "mine.py:offline: OSError: no server (mine.py line 18)" in err


def test_one_that_hangs_is_left_behind(start, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE", 0.1)
    monkeypatch.setattr(tracking, "WAITING", 2)
    tracker = start("Tracker", project="p")(None)
    for step in range(6):
        tracker.log(step, {"hang": 1})
    tracker.close()
    err = capsys.readouterr().err
    assert "it is too slow and misses rows" in err and "it does not come to an end and is left alone" in err
    assert threading.active_count() > 1
    module(tmp_path).RELEASE.set()


def test_what_is_wrong_with_the_config_is_said_at_once(start):
    with pytest.raises(InputError, match=r"tracker\.path = .* needs project; give defaults, or set them among its opt"):
        start("Tracker")
    with pytest.raises(InputError, match=r"has no parameter team"):
        start("Tracker", project="p", team="t")
    with pytest.raises(InputError, match=r"has no Traker; did you mean Tracker\?"):
        start("Traker")
    with pytest.raises(InputError, match=r"tracker\.path = .* is a list; name a class or a function"):
        start("SEEN")
    assert tracking.prepare(default_config(), None)(None) is None
