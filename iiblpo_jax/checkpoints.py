"""Checkpoints of a run: everything that resuming bit-exactly needs, in one Orbax step.

A step holds the arrays of the train state (one flat dict, path -> array), the data iterator's state, a JSON dict of the
caller's, and the shape, dtype and checksum of every array. Saving is asynchronous. A step that cannot be read, or whose
arrays are not what was saved, is set aside with one loud line and the one before is used.
"""

import base64
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from iiblpo_jax.errors import InputError


class Checkpoints:
    """The folder `workdir`/checkpoints.

    Args:
      workdir: the run's folder; made if needed.
      keep: newest checkpoints that stay on disk.
      every: steps between checkpoints; 0 = only those that are forced.
    """

    def __init__(self, workdir: Path | str, *, keep: int, every: int):
        self.folder = Path(workdir).resolve() / "checkpoints"
        self._every = every
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state, *, iterator=None, extra: dict | None = None, force: bool = False) -> bool:
        """Starts writing a checkpoint if one is due; `state` may be donated as soon as this returns.

        Args:
          step: finished steps.
          state: pytree of arrays; typed random keys are stored as their uint32 key data.
          iterator: state of the data iterator, bytes or JSON.
          extra: JSON dict that `restore_latest` gives back, such as the best evaluation so far.
          force: save although `every` does not divide `step`.

        Returns:
          Whether a checkpoint was started; False too if this step already has one.
        """
        due = force or (self._every and step % self._every == 0)
        if not due or step in self._manager.all_steps():
            return False
        arrays = _flat(state)
        host = {
            "iterator": _encode(iterator),
            "extra": extra or {},
            "arrays": _describe(arrays),
            "checksums": _checksums_of(arrays),
        }
        items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(host))
        return self._manager.save(step, args=items)

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

    def restore_policy(self, abstract_params: dict) -> tuple[int, dict] | None:
        """(step, policy weights) of the newest checkpoint that can be read, whatever optimizer it was saved with.

        Raises:
          InputError: it holds another model, or every checkpoint is damaged.
        """
        return self._newest(lambda step: self._restore_policy(step, abstract_params))

    def _newest(self, read):
        """What `read(step)` gives for the newest step that it can read; None when there is no step."""
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = read(step)
            except InputError:
                raise
            except Exception as error:  # whatever a damaged file makes Orbax, TensorStore or JSON raise
                reason = " ".join(str(error).split())[:160]
                print(f"WARNING: checkpoint {step} is damaged ({reason}); trying the one before", file=sys.stderr)
                damaged.append(step)
            else:
                self._set_aside(damaged)
                return found
        if damaged:
            raise InputError(f"no checkpoint in {self.folder} can be read; start again with another --workdir")
        return None

    def wait(self) -> None:
        """Returns when every started checkpoint is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the manager."""
        self._manager.close()

    def _restore(self, step: int, abstract_state) -> tuple:
        host = self._host(step)
        self._check_arrays(step, host["arrays"], _describe(_flat(abstract_state)))
        arrays = self._arrays(step, host, jax.tree.map(_abstract, _flat(abstract_state)))
        return step, _unflat(arrays, abstract_state), _decode(host["iterator"]), host["extra"]

    def _restore_policy(self, step: int, abstract_params: dict) -> tuple[int, dict]:
        host, mine = self._host(step), {"params": {"policy": abstract_params}}
        stored = {name: what for name, what in host["arrays"].items() if name.startswith("params.policy.")}
        self._check_arrays(step, stored, _describe(_flat(mine)))
        everything = {n: jax.ShapeDtypeStruct(shape, dtype) for n, (shape, dtype) in host["arrays"].items()}
        arrays = self._arrays(step, host, jax.tree.map(_abstract, everything))
        return step, _unflat(arrays, mine)["params"]["policy"]

    def _host(self, step: int) -> dict:
        return self._manager.restore(step, args=ocp.args.Composite(host=ocp.args.JsonRestore())).host

    def _arrays(self, step: int, host: dict, target: dict) -> dict:
        arrays = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))).state
        wrong = [name for name, value in _checksums_of(arrays).items() if value != host["checksums"][name]]
        if wrong:
            raise ValueError(f"checksum of {wrong[0]} differs")
        return arrays

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
        self._manager.reload()


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


def _checksums_of(arrays: dict) -> dict:
    return {name: int(value) for name, value in jax.device_get(_checksums(arrays)).items()}


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
