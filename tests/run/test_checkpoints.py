"""What resuming relies on: the same bits back, whatever happens to the buffers or the newest checkpoint."""

import resource
import shutil
import tempfile
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.run.checkpoints import Checkpoints, check_writable


@flax.struct.dataclass
class State:
    params: dict
    opt_state: optax.OptState
    key: jax.Array
    step: jax.Array


OPTIMIZER = optax.adamw(1e-2)


def make_state(seed: int = 0, *, width: int = 5) -> State:
    params = {
        "policy": {"embed": jax.random.normal(jax.random.key(seed), (7, width))},
        "psa": {"gain": jnp.arange(6, dtype=jnp.bfloat16)},
    }
    return State(params=params, opt_state=OPTIMIZER.init(params), key=jax.random.key(seed + 9), step=jnp.int32(0))


@partial(jax.jit, donate_argnums=0)
def train_step(state: State) -> State:
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (7, 5))
    gradients = jax.grad(lambda p: jnp.sum(p["policy"]["embed"] * noise) + jnp.sum(p["psa"]["gain"]) ** 2)(state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    return state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state, step=state.step + 1)


def bits(state: State) -> list[bytes]:
    """Every array's bytes on the host: what "bit-exact" means."""
    data = [jax.random.key_data(x) if x.dtype == state.key.dtype else x for x in jax.tree.leaves(state)]
    return [np.asarray(x).tobytes() for x in data]


def run(folder, steps: int, *, every: int = 1, keep: int = 5) -> dict[int, list[bytes]]:
    """Trains and checkpoints, donating the state right after each save; the bits after every step."""
    checkpoints, state, history = Checkpoints(folder, keep=keep, every=every), make_state(), {}
    for step in range(1, steps + 1):
        state = train_step(state)
        history[step] = bits(state)
        checkpoints.save(step, state, iterator=b"\x00at %d" % step, extra={"best": step / 3})
    checkpoints.close()
    return history


def test_round_trip_is_bit_exact_and_donation_right_after_a_save_does_no_harm(tmp_path):
    history = run(tmp_path, 3)
    step, state, iterator, extra = Checkpoints(tmp_path, keep=5, every=1).restore_latest(make_state(seed=5))
    assert (step, iterator, extra) == (3, b"\x00at 3", {"best": 1.0})
    assert bits(state) == history[3]
    assert state.key.dtype == make_state().key.dtype
    assert bits(train_step(state)) == run(tmp_path / "straight", 4)[4]


def test_restores_from_shapes_alone(tmp_path):
    history = run(tmp_path, 1)
    abstract = jax.eval_shape(make_state)
    _, state, _, _ = Checkpoints(tmp_path, keep=5, every=1).restore_latest(abstract)
    assert bits(state) == history[1]


def test_an_empty_workdir_has_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path, keep=1, every=1).restore_latest(make_state()) is None


def test_saves_when_due_or_forced_and_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, every=2)
    saved = [checkpoints.save(step, make_state(), iterator={"at": step}, force=step == 5) for step in range(1, 7)]
    assert saved == [False, True, False, True, True, True]
    assert not checkpoints.save(6, make_state(), force=True), "a step is saved once"
    checkpoints.close()
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["5", "6"]
    assert Checkpoints(tmp_path, keep=2, every=2).restore_latest(make_state())[2] == {"at": 6}
    never = Checkpoints(tmp_path / "never", keep=1, every=0)
    assert not never.save(4, make_state())
    never.close()


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate_everything(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(folder):
    path = largest_file(folder / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


DAMAGE = {
    "truncated": truncate_everything,
    "arrays gone": lambda folder: shutil.rmtree(folder / "state"),
    "host data gone": lambda folder: shutil.rmtree(folder / "host"),
    "one byte flipped": flip_a_byte,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back_loudly(tmp_path, capfd, damage):
    history = run(tmp_path, 3)
    damage(tmp_path / "checkpoints" / "3")
    checkpoints = Checkpoints(tmp_path, keep=5, every=1)
    step, state, iterator, _ = checkpoints.restore_latest(make_state())
    assert (step, iterator) == (2, b"\x00at 2")
    assert bits(state) == history[2]
    loud = [line for line in capfd.readouterr().err.splitlines() if "WARNING: checkpoint 3 is damaged" in line]
    assert len(loud) == 1
    assert checkpoints.save(3, train_step(state)), "the step is free again"
    checkpoints.close()
    assert bits(Checkpoints(tmp_path, keep=5, every=1).restore_latest(make_state())[1]) == history[3]


def test_when_all_are_damaged_it_says_so(tmp_path):
    run(tmp_path, 2)
    for step in ("1", "2"):
        truncate_everything(tmp_path / "checkpoints" / step)
    with pytest.raises(InputError, match=r"no checkpoint .* can be read; start again with another --workdir"):
        Checkpoints(tmp_path, keep=5, every=1).restore_latest(make_state())


def test_a_state_of_another_shape_is_refused_and_left_alone(tmp_path):
    run(tmp_path, 1)
    wrong = make_state(width=6)
    with pytest.raises(InputError, match=r"params\.policy\.embed of shape \[7, 5\].*\[7, 6\].*; use the config"):
        Checkpoints(tmp_path, keep=5, every=1).restore_latest(wrong)
    missing = make_state().replace(params={"policy": make_state().params["policy"]})
    with pytest.raises(InputError, match=r"params\.psa\.gain of shape \[6\] and type bfloat16 .* absent"):
        Checkpoints(tmp_path, keep=5, every=1).restore_latest(missing)
    assert (tmp_path / "checkpoints" / "1").is_dir()


# -- what stays, and what happens when nothing can be written ---------------------------------------------------------


def steps_on_disk(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())


def test_the_newest_and_the_best_stay(tmp_path):
    """Scores .2 .5 .4 - .5 .1 with keep = 2: the first .5 stays, an equal one later does not replace it."""
    checkpoints, state = Checkpoints(tmp_path, keep=2, every=1, best=True), make_state()
    kept = []
    for step, score in enumerate((0.2, 0.5, 0.4, None, 0.5, 0.1), start=1):
        checkpoints.save(step, state, score=score)
        checkpoints.wait()
        kept.append(steps_on_disk(tmp_path))
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6]]
    checkpoints.close()

    resumed = Checkpoints(tmp_path, keep=2, every=1, best=True)
    assert resumed.restore_latest(make_state())[0] == 6 and resumed.best == {"step": 2, "score": 0.5}
    resumed.save(7, state, score=0.6)
    resumed.close()
    assert steps_on_disk(tmp_path) == [6, 7]


def test_a_new_best_is_saved_between_the_intervals(tmp_path):
    checkpoints, state = Checkpoints(tmp_path, keep=1, every=0, best=True), make_state()
    assert [checkpoints.save(step, state, score=score) for step, score in ((1, 0.2), (2, 0.1), (3, 0.3))] == [
        True,
        False,
        True,
    ]
    checkpoints.close()
    untracked = Checkpoints(tmp_path / "other", keep=1, every=0)
    assert not untracked.save(1, state, score=0.2)
    untracked.close()


def test_checksums_prepared_ahead_are_those_of_the_state(tmp_path):
    state = make_state()
    checkpoints = Checkpoints(tmp_path, keep=1, every=2)
    checkpoints.prepare(2, state)
    checkpoints.save(2, state)
    checkpoints.close()
    assert bits(Checkpoints(tmp_path, keep=1, every=2).restore_latest(make_state(seed=1))[1]) == bits(state)


@pytest.fixture
def full_disk():
    """A limit on the size of any file, as the kernel enforces it: writes beyond it fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))

    yield fill, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_a_line_and_the_old_checkpoint_stays(tmp_path, full_disk, capsys, caplog):
    fill, clear = full_disk
    checkpoints, history, state = Checkpoints(tmp_path, keep=1, every=1, best=True), {}, make_state()
    for step in (1, 2, 3):
        state = train_step(state)
        history[step] = bits(state)
        if step == 2:
            fill()
        checkpoints.save(step, state, score=step / 10)
        finished = checkpoints.wait()
        clear()
        assert finished == (step != 2)
        if step == 2:
            assert steps_on_disk(tmp_path) == [1] and checkpoints.latest() == 1
            assert checkpoints.best == {"step": 1, "score": 0.1}
    assert checkpoints.close() == 3 and steps_on_disk(tmp_path) == [3]
    assert not list(checkpoints.folder.glob("*tmp*"))  # the remains of step 2 took no room from step 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and not caplog.records and lines[0].startswith("WARNING: checkpoint 2 was NOT written (")
    assert bits(Checkpoints(tmp_path, keep=1, every=1).restore_latest(make_state())[1]) == history[3]


def test_what_a_killed_save_left_behind_is_removed(tmp_path):
    run(tmp_path, 1)
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    left.mkdir()
    checkpoints = Checkpoints(tmp_path, keep=1, every=1)
    assert checkpoints.latest() == 1
    checkpoints.remove_unfinished()
    assert not left.exists() and steps_on_disk(tmp_path) == [1]
    checkpoints.close()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"workdir .*file/run cannot be written \(Not a directory\); give another"):
        check_writable(tmp_path / "file" / "run")
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"):
        check_writable(tmp_path)
