"""Checkpoints of a run: everything that resuming bit-exactly needs, in one Orbax step.

A step holds the arrays of the train state (one flat dict, path -> array), the data iterator's state, a JSON dict of the
caller's, and the shape, dtype and checksum of every array. Saving is asynchronous.

- A step that cannot be written (a full disk) costs one loud line: training goes on, and the next interval tries again.
- A step that cannot be read, or whose arrays are not what was saved, is set aside with one loud line and the one before
  is used.
- In a run of several processes what happens to one happens to all: a save that failed anywhere has failed, a step that
  one cannot read is set aside.
"""

import base64
import contextlib
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from iiblpo_jax.common.errors import InputError, warn
from iiblpo_jax.devices.processes import any_process
from iiblpo_jax.run import earlier_layout

# Orbax logs a stack trace for every thread that a failed save passes through; `Checkpoints` says it in one line.
logging.getLogger("absl").addFilter(lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname)

UNFINISHED = "*.orbax-checkpoint-tmp*"  # what a save that failed, or was killed, leaves behind
PATIENCE = 600  # seconds that a process which has written its part of a checkpoint waits for those of the others


def check_writable(workdir: Path | str) -> None:
    """Makes the folder and raises InputError where nothing can be written into it."""
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise InputError(f"workdir {workdir} cannot be written ({error.strerror}); give another --workdir") from None


class Checkpoints:
    """The folder `workdir`/checkpoints.

    Args:
      workdir: the run's folder; made if needed.
      keep: newest checkpoints that stay on disk.
      every: steps between checkpoints; 0 = only those that are forced.
      best: keep the one with the best score too, and take one whenever a score is the best so far.
    """

    def __init__(self, workdir: Path | str, *, keep: int, every: int, best: bool = False):
        self.folder = Path(workdir).resolve() / "checkpoints"
        self._every, self._track = every, best
        self._kept = _NewestAndBest(keep)
        self._before: dict | None = None  # the best one, should the save under way fail
        self._prepared: tuple = (None, None)
        self._manager = self._open()

    @property
    def best(self) -> dict | None:
        """{"step", "score"} of the best checkpoint so far."""
        return self._kept.best

    def due(self, step: int, score: float | None = None) -> bool:
        """Whether a checkpoint belongs after `step`, which was evaluated with `score` if it is not None."""
        improves = self._track and score is not None and (self.best is None or score > self.best["score"])
        return improves or bool(self._every and step % self._every == 0)

    def prepare(self, step: int, state) -> None:
        """Starts the checksums of a checkpoint that is due after `step`, so that `save` need not wait for programs
        which are dispatched between now and then."""
        if self.due(step):
            self._prepared = step, _checksums(_flat(state))

    def save(
        self,
        step: int,
        state,
        *,
        iterator=None,
        extra: dict | None = None,
        score: float | None = None,
        force: bool = False,
    ) -> bool:
        """Starts writing a checkpoint if one is due; `state` may be donated as soon as this returns.

        A failure, of this save or of the one before it, is one line on stderr.

        Args:
          step: finished steps.
          state: pytree of arrays; typed random keys are stored as their uint32 key data.
          iterator: state of the data iterator, bytes or JSON.
          extra: JSON dict that `restore_latest` gives back.
          score: of an evaluation of this state, higher is better; None = not evaluated.
          force: save although none is due.

        Returns:
          Whether a checkpoint was started; False too if this step already has one.
        """
        if not (force or self.due(step, score)):
            return False
        self.wait()
        if step in self._manager.all_steps():
            return False
        self.remove_unfinished()  # threads of a save that failed may have gone on writing after it was removed
        arrays = _flat(state)
        prepared, checksums = self._prepared
        self._prepared = None, None
        self._before = self.best
        if score is not None and (self.best is None or score > self.best["score"]):
            self._kept.best = {"step": step, "score": score}
        host = {
            "iterator": _encode(iterator),
            "extra": extra or {},
            "best": self.best,
            "arrays": _describe(arrays),
            "checksums": _integers(checksums if prepared == step else _checksums(arrays)),
        }
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), host=ocp.args.JsonSave(host))
        return bool(self._attempt(step, lambda: self._manager.save(step, args=items)))

    def remove_unfinished(self) -> None:
        """Deletes what failed or killed saves have left behind; not for use while another process is saving here."""
        if jax.process_index() == 0:
            for path in self.folder.glob(UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)

    def restore_latest(self, abstract_state) -> tuple | None:
        """The newest checkpoint that can be read, or None when there is none.

        Args:
          abstract_state: arrays, or ShapeDtypeStructs with shardings, in the structure of the saved state. The result
            has these shardings, which need not be those of the run that saved.

        Returns:
          (step, state, iterator, extra).

        Raises:
          InputError: the checkpoint belongs to another config, or every checkpoint is damaged.
        """
        return self._newest(lambda step: self._restore(step, abstract_state))

    def newest(self) -> dict | None:
        """What is known of the newest checkpoint whose description can be read, or None without one; no array is read.

        Returns:
          {"step", "arrays", "extra"}; `arrays` is path -> [shape, type].

        Raises:
          InputError: the descriptions of all are damaged.
        """
        return self._newest(lambda step: {"step": step} | {key: self._host(step)[key] for key in ("arrays", "extra")})

    def restore_policy(self, abstract_params: dict, which: str = "latest", *, part: str = "policy"):
        """(step, policy weights) of a checkpoint, whatever optimizer it was saved with; nothing else of it is read.

        Args:
          abstract_params: as in `restore_latest`.
          part: of the params; `lora`: the weights of an adapter.
          which: `latest`, the newest one that can be read; `best`; or the number of a step.

        Returns:
          None where `latest` finds no checkpoint.

        Raises:
          InputError: there is no such checkpoint, it holds another model, or it is damaged (`latest`: all are).
        """
        if which == "latest":
            return self._newest(lambda step: self._restore_policy(step, abstract_params, part))
        step = self._best_step() if which == "best" else self._step(which)
        try:
            return self._restore_policy(step, abstract_params, part)
        except InputError:
            raise
        except Exception as error:  # as in `_newest`
            mend = "use --checkpoint=latest"
            raise InputError(f"checkpoint {step} of {self.folder} is damaged ({_short(error)}); {mend}") from None

    def _step(self, number: str) -> int:
        """A step that exists."""
        steps = sorted(self._manager.all_steps())
        if not number.isdecimal():
            raise InputError(f"--checkpoint={number} is not known; use latest, best or the number of a step")
        if int(number) not in steps:
            found = f"there are {', '.join(map(str, steps))}" if steps else "there is none; train first"
            raise InputError(f"{self.folder} has no checkpoint {number}; {found}")
        return int(number)

    def _best_step(self) -> int:
        """The step that the newest readable checkpoint names as the best one."""
        best = self._newest(lambda step: self._host(step)["best"])
        if best is None:
            raise InputError(f"no checkpoint in {self.folder} is known to be the best; use --checkpoint=latest")
        return self._step(str(best["step"]))

    def _newest(self, read):
        """What `read(step)` gives for the newest step that it can read; None when there is no step."""
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = read(step)
            except InputError:
                raise
            except Exception as error:  # whatever a damaged file makes Orbax, TensorStore or JSON raise
                reason = _short(error)
                _warn(f"checkpoint {step} is damaged ({reason}); trying the one before")
                damaged.append(step)
            else:
                self._set_aside(damaged)
                return found
        if damaged:
            raise InputError(f"no checkpoint in {self.folder} can be read; start again with another --workdir")
        return None

    def wait(self) -> bool:
        """Returns when the last save has ended; False if that one just turned out to have failed."""
        return self._attempt(self._manager.latest_step(), self._manager.wait_until_finished) is not False

    def latest(self) -> int | None:
        """The newest step on disk or on its way there."""
        return self._manager.latest_step()

    def close(self) -> int | None:
        """Waits, then releases the manager; the newest step on disk."""
        self.wait()
        newest = self.latest()
        self._manager.close()
        return newest

    def _attempt(self, step: int | None, save):
        """`save()`, or False after one loud line."""
        try:
            return _together(save)
        except Exception as error:  # whatever a full disk or a lost file system makes Orbax or TensorStore raise
            _warn(f"checkpoint {step} was NOT written ({_short(error)}); training goes on, the next one is tried again")
            with contextlib.suppress(Exception):  # the same error once more, from a thread that ends only now
                self._manager.close()
            self._kept.best = self._before
            self.remove_unfinished()
            multihost_utils.sync_global_devices("unfinished checkpoint removed")
            self._manager = self._open()
            return False

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            create=True,
            enable_async_checkpointing=True,
            async_options=ocp.options.AsyncOptions(timeout_secs=PATIENCE),
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _restore(self, step: int, abstract_state) -> tuple:
        host = self._host(step)
        arrays = self._arrays(step, host, host["arrays"], abstract_state)
        self._kept.best = host["best"]
        return step, _unflat(arrays, abstract_state), _decode(host["iterator"]), host["extra"]

    def _restore_policy(self, step: int, abstract_params: dict, part: str) -> tuple[int, dict]:
        host, mine = self._host(step), {"params": {part: abstract_params}}
        trained = ("params.policy.", "params.lora.")
        stored = {name: what for name, what in host["arrays"].items() if name.startswith(trained)}
        arrays = self._arrays(step, host, stored, mine)
        return step, _unflat(arrays, mine)["params"][part]

    def _host(self, step: int) -> dict:
        return self._read(step, host=ocp.args.JsonRestore()).host

    def _arrays(self, step: int, host: dict, stored: dict, abstract_state) -> dict:
        """The arrays of a step that the state wants, all of which must be among those `stored`, and they among them."""
        target = {name: _abstract(leaf) for name, leaf in _flat(abstract_state).items()}
        then, stored = earlier_layout.earlier(target, stored)
        return earlier_layout.today(self._read_arrays(step, host, stored, then), target)

    def _read_arrays(self, step: int, host: dict, stored: dict, target: dict) -> dict:
        """The arrays that `target` names, checked."""
        self._check_arrays(step, stored, _describe(target))
        places = ocp.checkpoint_utils.construct_restore_args(target)
        part = ocp.args.PyTreeRestore(item=target, restore_args=places, partial_restore=True)
        arrays = self._read(step, state=part).state
        wrong = [name for name, value in _integers(_checksums(arrays)).items() if value != host["checksums"][name]]
        if wrong:
            raise ValueError(f"checksum of {wrong[0]} differs")
        return arrays

    def _read(self, step: int, **items) -> Any:
        return _together(lambda: self._manager.restore(step, args=ocp.args.Composite(**items)))

    def _check_arrays(self, step: int, stored: dict, expected: dict) -> None:
        for name in [*expected, *stored]:
            if stored.get(name) != expected.get(name):
                raise InputError(
                    f"checkpoint {step} of {self.folder} has {name} {_text(stored.get(name))} and this config makes it "
                    f"{_text(expected.get(name))}; use the config the run began with, or another --workdir"
                )

    def _set_aside(self, steps: list[int]) -> None:
        """Out of the way of the step that will be saved again, but not deleted."""
        if jax.process_index() == 0:
            for step in steps:
                (self.folder / str(step)).rename(self.folder / f"damaged-{step}")
        multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()


class _NewestAndBest:
    """Orbax's question which checkpoints stay: the `keep` newest, and the best one."""

    def __init__(self, keep: int):
        self.best: dict | None = None
        self._keep = keep

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        newest, best = checkpoints[-self._keep :], self.best and self.best["step"]
        return [c in newest or c.step == best for c in checkpoints]


def _together(act):
    """`act()`; where it raises in one process it raises in all."""
    try:
        result, error = act(), None
    except Exception as raised:
        result, error = None, raised
    if any_process(error is not None):
        raise error or RuntimeError("another process failed, see its output")
    return result


def _warn(line: str) -> None:
    if jax.process_index() == 0:
        warn(line)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flat(state) -> dict:
    """Path -> array, keys as their uint32 data."""

    def data(leaf):
        if not _is_key(leaf):
            return leaf
        struct = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.eval_shape(jax.random.key_data, leaf) if struct else jax.random.key_data(leaf)

    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): data(leaf) for path, leaf in leaves}


def _unflat(arrays: dict, abstract_state):
    leaves, structure = jax.tree.flatten(abstract_state)

    values = [arrays[name] for name in _flat(abstract_state)]
    values = [jax.random.wrap_key_data(x) if _is_key(leaf) else x for leaf, x in zip(leaves, values, strict=True)]
    return jax.tree.unflatten(structure, values)


def _abstract(leaf) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _describe(arrays: dict) -> dict:
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in arrays.items()}


def _text(description) -> str:
    return "absent" if description is None else f"of shape {description[0]} and type {description[1]}"


def _integers(checksums: dict) -> dict:
    return {name: int(value) for name, value in jax.device_get(checksums).items()}


@jax.jit
def _checksums(arrays: dict) -> dict:
    """Sum of an array's bits modulo 2^32: independent of its sharding, and the same bits give the same number."""

    def bits(leaf):
        if leaf.dtype == bool:
            return leaf.astype(jnp.uint32)
        return jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")

    return {name: jnp.sum(bits(leaf), dtype=jnp.uint32) for name, leaf in arrays.items()}


def _encode(iterator):
    return {"base64": base64.b64encode(iterator).decode()} if isinstance(iterator, bytes) else {"json": iterator}


def _decode(stored: dict):
    return base64.b64decode(stored["base64"]) if "base64" in stored else stored["json"]
