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
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.rows import UpdateRows

WORST = 10  # rows in the table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What one update on saved rows comes to.

    Attributes:
      loss, grad_norm: of all rows as one minibatch, before clipping; may be anything, NaN included.
      gap_N: per row, the largest |log-prob of the rollout - log-prob now| over tokens that count.
      finite_N: bool, per row: every number in it and every log-prob of it is finite.
    """

    loss: float
    grad_norm: float
    gap_N: np.ndarray
    finite_N: np.ndarray


def save_batch(workdir: Path, step: int, rows: UpdateRows, key: jax.Array) -> Path:
    """Writes `bad_step_NNNNNN.npz`: every array of the rows by its path, the key of the update, the step."""
    path = workdir / f"bad_step_{step:06d}.npz"
    arrays = {f"rows.{name}": x for name, x in meshes.to_host(_named(rows)).items()}
    if jax.process_index() == 0:
        np.savez(path, **arrays, key=np.asarray(jax.random.key_data(key)), step=np.int32(step))
    return path


def load_batch(path: Path | str, like: UpdateRows) -> tuple[int, UpdateRows, jax.Array]:
    """(step, rows, key) of `save_batch`.

    Args:
      path: the file.
      like: rows of the same run, abstract ones will do: their structure.

    Raises:
      InputError: no such file, another kind of file, or rows of another config.
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
            raise InputError(f"--replay={path} is of another config: {name} differs; use the config of its run")
    rows = jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in expected])
    return step, rows, key


def examine(gradient: MinibatchGradient, params: dict, rows: UpdateRows, key: jax.Array, *, step: int) -> Finding:
    """One loss and gradient of the rows under `params`, nothing applied.

    Args:
      gradient: what the update computes; `settings.minibatches` is ignored.
      params: {'policy': ..., 'psa': ...}.
      rows, key, step: of `load_batch`.
    """
    s = gradient.settings
    if not s.pack_tokens and not s.microbatch:
        n = rows.prompt_len_N.shape[0]
        gradient = dataclasses.replace(gradient, settings=dataclasses.replace(s, microbatch=n // s.minibatches))

    @jax.jit
    def look(params, rows):
        with meshes.using(s.mesh):
            logp_NT, _ = gradient.log_probs(params, rows)
            loss, gradients, _ = gradient(params, rows, logp_NT, step=jnp.int32(step), key=key)
        counts_NT = rows.mask_NT > 0
        gap_NT = jnp.where(counts_NT, jnp.abs(rows.raw_logp_NT - logp_NT), 0.0)
        finite_N = jnp.where(counts_NT, jnp.isfinite(logp_NT), True).all(1)
        return loss, optax.tree.norm(gradients), gap_NT.max(1), finite_N

    loss, norm, gap_N, finite_N = jax.device_get(look(params, rows))
    for x in meshes.to_host(jax.tree.leaves(rows)):
        if np.issubdtype(x.dtype, np.floating):
            finite_N = finite_N & np.isfinite(x).reshape(x.shape[0], -1).all(1)
    return Finding(loss=float(loss), grad_norm=float(norm), gap_N=gap_N, finite_N=finite_N)


def finding_table(finding: Finding, rows: UpdateRows) -> Table:
    """The worst rows first: those that are not finite, then those with the largest gap."""
    bad = int((~finding.finite_N).sum())
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
    for n in np.lexsort((-finding.gap_N, finding.finite_N))[:WORST]:
        table.add_row(
            str(n),
            str(rows.trajectory_N[n]),
            str(rows.length_N[n]),
            f"{rows.reward_N[n]:.3g}",
            f"{jnp.mean(rows.advantage_N[n]):.4g}",
            f"{finding.gap_N[n]:.4g}",
            "yes" if finding.finite_N[n] else "NO",
        )
    return table


def _named(rows: UpdateRows) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(rows)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
