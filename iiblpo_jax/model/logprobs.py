"""Log-probabilities and entropies of given tokens, in chunks of the vocabulary projection.

A [tokens, V] array is the largest object of a naive update (4 GB for 8 x 4,096 tokens at V = 32k in float32). Here it
never exists whole, forward or backward: a scan over chunks of positions projects, normalises and reduces, under
jax.checkpoint, so the backward pass recomputes one chunk of logits at a time.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.contrast import shift
from iiblpo_jax.model.decoder import hidden_states, output_weights
from iiblpo_jax.model.divergence import Teacher, generalised_jsd, likeliest_jsd

NEVER = -1e30  # logit of a token that a distribution does not have: its probability is 0, its log-prob finite
LOGITS_PER_CHUNK = 2**26  # 256 MiB of float32: large enough to keep a matrix unit busy at V = 152k (441 tokens)


def without(logits_V, never: tuple[int, ...]):
    """Logits [...,V] of a distribution over all tokens but `never`."""
    if not never:
        return logits_V
    return jnp.where(np.isin(np.arange(logits_V.shape[-1]), never), NEVER, logits_V)


def chunked_logprobs(h_BTD, w_VD, targets_BT, *, temperature=1.0, chunk=None, used=None, never=(), teacher=None):
    """Log-probability of each target and entropy of its distribution, softmax(h @ W.T / temperature).

    Args:
      h_BTD: final hidden states; position t emits targets_BT[:, t].
      w_VD: output weights.
      targets_BT: int32 token ids.
      temperature: divides the logits.
      chunk: tokens whose logits exist at the same time (at least B: a chunk is a slice of positions over all rows, so
        that rows stay sharded over devices). Default: LOGITS_PER_CHUNK // V on each device.
      used: positions from here on may be left out and give zeros; None = none.
      never: token ids that the distributions do not have (RolloutSpec.never_ids).
      teacher: whose distributions, at the same temperature, these are compared with; None = nobody's.

    Returns:
      (logp_BT, entropy_BT) in nats, float32, both differentiable in h and w; with a teacher also divergence_BT.
    """
    b, t = targets_BT.shape
    mesh = meshes.current()
    parts = meshes.shards(mesh, "sequence")
    whole = teacher is not None and teacher.w_VD is not None  # logits of two models are there at the same time
    each = LOGITS_PER_CHUNK // (w_VD.shape[0] * (1 + whole))
    chunk = chunk or max(1, each * meshes.shards(mesh) * parts)
    n_chunks = min(t, math.ceil(b * t / chunk))
    width = math.ceil(t / n_chunks / parts) * parts

    def split(x_BT):
        pad = [(0, 0), (0, n_chunks * width - t)] + [(0, 0)] * (x_BT.ndim - 2)
        return jnp.pad(x_BT, pad).reshape(b, n_chunks, width, *x_BT.shape[2:]).swapaxes(0, 1)

    h_NBtD, targets_NBt = split(h_BTD), split(targets_BT)

    # Cast inside the scan: the gradient of W is then summed over chunks in float32, whatever the dtype of W.
    # On a mesh W is whole but for its vocabulary before the scan, so that chunks move no weights.
    wide_VD = meshes.constrain(w_VD, "vocab", None).astype(jnp.float32)
    needed_N = jnp.arange(n_chunks) * width < (t if used is None else used)
    how = {"dtype": w_VD.dtype, "temperature": temperature, "never": never}
    beside_NBt, teacher_VD = (), None
    if teacher is not None:
        teacher = jax.lax.stop_gradient(teacher)
        how |= {"beta": teacher.beta, "contrast": teacher.contrast}
        beside_NBt = tuple(map(split, teacher.columns))
        teacher_VD = teacher.w_VD if teacher.w_VD is None else meshes.constrain(teacher.w_VD, "vocab", None)
    scan = _on_mesh(functools.partial(_scan_chunks, **how), mesh, h_NBtD)
    found = scan((h_NBtD, targets_NBt, *beside_NBt), wide_VD, teacher_VD, needed_N)
    return tuple(x.swapaxes(0, 1).reshape(b, -1)[:, :t] for x in found)


def _on_mesh(scan, mesh, h_NBtD):
    """`scan` on every device's rows and positions: the gradient of W is summed over devices once, not once a chunk."""
    rows = PartitionSpec() if mesh is None else meshes.partition(mesh, (None, "batch", "sequence"), shape=h_NBtD.shape)
    axes, whole = set(jax.tree.leaves(tuple(rows))), PartitionSpec()
    if not axes:
        return scan
    return jax.shard_map(scan, in_specs=(rows, whole, whole, whole), out_specs=rows, axis_names=axes, check_vma=False)


def _scan_chunks(tokens_NBt, wide_VD, teacher_VD, needed_N, *, dtype, temperature, never, beta=None, contrast=None):
    """(logp, entropy) [N,B,t], with `beta` and divergence; zeros in chunks that are not needed."""

    def compute(h_BtD, targets_Bt, *columns):
        teacher = None if beta is None else Teacher(columns, teacher_VD, beta, contrast)
        return _logprobs(h_BtD, targets_Bt, wide_VD.astype(dtype), temperature, never, teacher)

    @jax.checkpoint  # around the condition: what a branch saves would be kept for every chunk, W included
    def chunk(tokens, needed):
        nothing = (jnp.zeros(tokens[1].shape),) * (2 if beta is None else 3)
        return jax.lax.cond(needed, compute, lambda *_: nothing, *tokens)

    return jax.lax.scan(lambda _, x: (None, chunk(*x)), None, (tokens_NBt, needed_N))[1]


def _logits(h_BtD, w_VD, temperature, never):
    logits_BtV = jnp.einsum("btd,vd->btv", h_BtD, w_VD, preferred_element_type=jnp.float32) / temperature
    return without(logits_BtV, never)


def _logprobs(h_BtD, targets_Bt, w_VD, temperature, never, teacher=None):
    logits_BtV = _logits(h_BtD, w_VD, temperature, never)
    norm_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
    target_Bt = jnp.take_along_axis(logits_BtV, targets_Bt[..., None], axis=-1)[..., 0]
    expected_Bt = jnp.sum(jnp.exp(logits_BtV - norm_Bt[..., None]) * logits_BtV, axis=-1)
    if teacher is None:
        return target_Bt - norm_Bt, norm_Bt - expected_Bt
    logp_BtV = logits_BtV - norm_Bt[..., None]
    if teacher.w_VD is None:
        token_BtK, theirs_BtK = teacher.columns
        divergence_Bt = likeliest_jsd(logp_BtV, token_BtK, theirs_BtK, teacher.beta)
    else:
        (g_BtD,) = teacher.columns
        theirs_BtV = _logits(g_BtD, teacher.w_VD, temperature, never)
        if teacher.contrast is None:
            divergence_Bt = generalised_jsd(logp_BtV, jax.nn.log_softmax(theirs_BtV), teacher.beta)
        else:
            divergence_Bt = shift(logits_BtV, theirs_BtV, *teacher.contrast)
    return target_Bt - norm_Bt, norm_Bt - expected_Bt, divergence_Bt


def likeliest(h_NTD, w_VD, k, *, temperature=1.0, never=()):
    """The k likeliest tokens [N,T,k] of softmax(h @ W.T / temperature) and their log-probs, likeliest first; constants.

    `temperature`, `never`: of `chunked_logprobs`; the logits of so many positions as there exist at the same time.
    """
    n, t, d = h_NTD.shape
    chunks = min(t, math.ceil(n * t * w_VD.shape[0] / LOGITS_PER_CHUNK))
    h_CNtD = jnp.pad(h_NTD, [(0, 0), (0, -t % chunks), (0, 0)]).reshape(n, chunks, -1, d).swapaxes(0, 1)

    def chunk(h_NtD):
        logits_NtV = _logits(h_NtD, w_VD, temperature, never)
        top_NtK, token_NtK = jax.lax.top_k(logits_NtV, k)
        return token_NtK, top_NtK - jax.nn.logsumexp(logits_NtV, axis=-1, keepdims=True)

    found = jax.lax.map(chunk, jax.lax.stop_gradient(h_CNtD))
    return tuple(x_CNtK.swapaxes(0, 1).reshape(n, -1, k)[:, :t] for x_CNtK in found)


def other_logprobs(h_NUD, at_NX, w_VD, targets_NX, logp_NX, others_NXK, *, temperature=1.0, never=()):
    """Log-probabilities [N,X,K] of other tokens than the target, constants.

    log p(v) = log p(target) + h . (w_v - w_target) / temperature: that of the target, which is known, has the
    normaliser in it, so only K + 1 columns of the projection are needed.

    Args:
      h_NUD: final hidden states; at_NX: which of them emits each target.
      w_VD: output weights.
      targets_NX, logp_NX: tokens and their log-probs, as of `chunked_logprobs`.
      others_NXK: tokens.
      temperature, never: of `chunked_logprobs`.
    """
    h_NUD, w_VD, logp_NX = jax.lax.stop_gradient((h_NUD, w_VD, logp_NX))
    (n, x, k), d = others_NXK.shape, w_VD.shape[1]
    chunks = min(x, math.ceil(n * x * (k + 1) * d / LOGITS_PER_CHUNK))  # [tokens, K + 1, D] never exists whole

    def split(x_NX):
        pad = [(0, 0), (0, -x % chunks)] + [(0, 0)] * (x_NX.ndim - 2)
        return jnp.pad(x_NX, pad).reshape(n, chunks, -1, *x_NX.shape[2:]).swapaxes(0, 1)

    def chunk(args):
        at_Nx, ids_Nxk, logp_Nx = args
        h_NxD = jnp.take_along_axis(h_NUD, at_Nx[..., None], axis=1, mode="clip")
        logits_Nxk = jnp.einsum("nxd,nxkd->nxk", h_NxD, w_VD[ids_Nxk], preferred_element_type=jnp.float32)
        return logp_Nx[..., None] + (logits_Nxk[..., 1:] - logits_Nxk[..., :1]) / temperature

    ids_NXk = jnp.concatenate([targets_NX[..., None], others_NXK], axis=-1)
    found_CNxK = jax.lax.map(chunk, tuple(map(split, (at_NX, ids_NXk, logp_NX))))
    found_NXK = found_CNxK.swapaxes(0, 1).reshape(n, -1, k)[:, :x]
    return jnp.where(jnp.isin(others_NXK, jnp.array(never, jnp.int32)), NEVER, found_NXK) if never else found_NXK


def response_positions(prompt_len_N, t):
    """[N,T] row position of the *input* token whose output distribution emits response token t."""
    return prompt_len_N[:, None] + jnp.arange(t)[None, :] - 1


def response_logprobs(
    model,
    rows_NC,
    prompt_len_N,
    t,
    *,
    temperature=1.0,
    never=(),
    inject=None,
    remat=True,
    teacher=None,
    others_NTK=None,
):
    """Log-probabilities and entropies of the first `t` response tokens of each row, teacher-forced.

    Args:
      model: Decoder.
      rows_NC: prompt and response, contiguous, right padded.
      prompt_len_N: where the response starts (at least 1).
      t: response length T; entries past a row's end are finite and meaningless.
      temperature, never: of `chunked_logprobs`.
      inject, remat: of `hidden_states`.
      teacher: of `chunked_logprobs`.
      others_NTK: tokens whose log-probs in place of each response token are wanted too; None = none.

    Returns:
      (logp_NT, entropy_NT), float32, differentiable; with a teacher and divergence_NT, likewise; with `others_NTK` and
      their log-probs [N,T,K], constants.
    """
    h_NCD = hidden_states(model, rows_NC, inject=inject, remat=remat)
    at_NT = response_positions(prompt_len_N, t)
    h_NTD = jnp.take_along_axis(h_NCD, at_NT[..., None], axis=1, mode="clip")
    targets_NT = jnp.take_along_axis(rows_NC, at_NT + 1, axis=1, mode="clip")
    w_VD = output_weights(model)
    how = {"temperature": temperature, "never": never}
    found = chunked_logprobs(h_NTD, w_VD, targets_NT, teacher=teacher, **how)
    if others_NTK is None:
        return found
    return *found, other_logprobs(h_NCD, at_NT, w_VD, targets_NT, found[0], others_NTK, **how)
