"""The batch that stopped a run: saved as plain arrays, and looked at again.

    python -m iiblpo_jax.train --workdir=DIR --replay=DIR/bad_step_000123.npz

loads the rows, takes the newest checkpoint and says which rows are bad; it changes nothing.
"""

import dataclasses
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.adapters.adapted import Adapted
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.update.gradient import MinibatchGradient

WORST = 10  # rows in the table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What one update on saved rows comes to.

    Attributes:
      loss, grad_norm: of all rows as one minibatch, before clipping; may be anything, NaN included.
      gap_R: per row, the largest |log-prob of the rollout - log-prob now| over tokens that count.
      finite_R: bool, per row: every number in it and every log-prob of it is finite.
    """

    loss: float
    grad_norm: float
    gap_R: np.ndarray
    finite_R: np.ndarray


def save_batch(workdir: Path, step: int, rows: Rows, key: jax.Array) -> Path:
    """Writes `bad_step_NNNNNN.npz`: every array of the rows by its path, the key of the update, the step."""
    path = workdir / f"bad_step_{step:06d}.npz"
    arrays = {f"rows.{name}": x for name, x in meshes.to_host(_named(rows)).items()}
    if jax.process_index() == 0:
        np.savez(path, **arrays, key=np.asarray(jax.random.key_data(key)), step=np.int32(step))
    return path


def load_batch(path: Path | str, like: Rows) -> tuple[int, Rows, jax.Array]:
    """(step, rows, key) of `save_batch`.

    Args:
      path: the file.
      like: rows of the same run, abstract ones will do: their structure.

    Raises:
      InputError: no such file, another kind of file, or rows of another config or version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        step, key = int(arrays.pop("step")), jax.random.wrap_key_data(jnp.asarray(arrays.pop("key")))
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"--replay={path} cannot be read ({error}); give a bad_step_NNNNNN.npz of a workdir") from None
    expected = {f"rows.{name}": x for name, x in _named(like).items()}
    for name in {**expected, **arrays}:
        if name not in arrays or name not in expected or arrays[name].shape != expected[name].shape:
            raise InputError(f"--replay={path} is of another config or version: {name} differs; use those of its run")
    rows = jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in expected])
    return step, rows, key


def examine(
    gradient: MinibatchGradient,
    params: dict,
    rows: Rows,
    key: jax.Array,
    *,
    step: int,
    teacher_VD=None,
    base: Adapted | None = None,
) -> Finding:
    """One loss and gradient of the rows under `params`, nothing applied.

    Args:
      gradient: what the update computes; `settings.minibatches` is ignored.
      params: {'policy': ..., 'psa': ...}.
      rows, key, step: of `load_batch`.
      teacher_VD: of `gradient`.
      base: of an adapter.
    """
    gradient = gradient.sized_for(rows.count)

    @jax.jit
    def look(params, rows, teacher_VD, base):
        over = gradient.over(base)
        with meshes.using(gradient.settings.mesh):
            logp_RT, _ = over.log_probs(params, rows)
            given = {"step": jnp.int32(step), "key": key, "teacher_VD": teacher_VD}
            loss, gradients, _ = over(params, rows, logp_RT, **given)
        counts_RT = rows.mask_RT > 0
        gap_RT = jnp.where(counts_RT, jnp.abs(rows.raw_logp_RT - logp_RT), 0.0)
        finite_R = jnp.where(counts_RT, jnp.isfinite(logp_RT), True).all(1)
        return loss, optax.tree.norm(gradients), gap_RT.max(1), finite_R

    loss, norm, gap_R, finite_R = jax.device_get(look(params, rows, teacher_VD, base))
    for x in meshes.to_host(jax.tree.leaves(rows)):
        if np.issubdtype(x.dtype, np.floating):
            finite_R = finite_R & np.isfinite(x).reshape(x.shape[0], -1).all(1)
    return Finding(loss=float(loss), grad_norm=float(norm), gap_R=gap_R, finite_R=finite_R)


def finding_table(finding: Finding, rows: Rows) -> Table:
    """The worst rows first: those that are not finite, then those with the largest gap."""
    bad = int((~finding.finite_R).sum())
    table = Table(
        "row",
        "trajectory",
        "tokens",
        "reward",
        "advantage",
        "max |logp gap|",
        "finite",
        title=f"loss {finding.loss:.6g}, gradient norm {finding.grad_norm:.6g}, {bad} rows not finite",
    )
    for n in np.lexsort((-finding.gap_R, finding.finite_R))[:WORST]:
        table.add_row(
            str(n),
            str(rows.trajectory_R[n]),
            str(rows.length_R[n]),
            f"{rows.reward_R[n]:.3g}",
            f"{jnp.mean(rows.advantage_R[n]):.4g}",
            f"{finding.gap_R[n]:.4g}",
            "yes" if finding.finite_R[n] else "NO",
        )
    return table


def _named(rows: Rows) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(rows)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
