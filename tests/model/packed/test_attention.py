"""Attention along paths against a masked softmax over the whole bin, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.model.packed import attention as path_attention
from iiblpo_jax.model.packed.attention import path_attend
from iiblpo_jax.model.packed.bins import PackedRows

G, R, E = 2, 2, 4


@pytest.fixture(scope="module")
def packed():
    """Two shards of two prompts with four rows each, some of which begin alike; one bin a shard."""
    rng, rows, lengths = np.random.default_rng(1), np.zeros((16, 40), np.int32), rng_lengths()
    for n, length in enumerate(lengths):
        rows[n, :length] = rng.integers(1, 3, length)
        if n % 4:
            alike = rng.integers(0, min(lengths[n - 1], length) + 1)
            rows[n, :alike] = rows[n - 1, :alike]
    return PackedRows(jnp.asarray(rows), jnp.asarray(lengths), tokens=300, group=4, shards=2)


def rng_lengths():
    return np.random.default_rng(2).integers(0, 41, 16)


def masked_softmax(bins, window):
    """(q, k, v) -> (out, norm) with an ancestor matrix built node by node."""
    owner, position, path = (np.asarray(x) for x in (bins.owner_U, bins.position_U, bins.path_JC))
    w_count, u_count = owner.shape
    sees = np.zeros((w_count, u_count, u_count), bool)
    for w in range(w_count):
        for u in range(u_count):
            mine, p = path[w, owner[w, u]], position[w, u]
            if mine[p] == u:  # not a place past the last node
                sees[w, u, mine[max(0, p - (window or 99) + 1) : p + 1]] = True
    sees = jnp.asarray(sees)[:, None, None]
    used = sees.any(-1)

    def attend(q, k, v):
        s = jnp.where(sees, jnp.einsum("wugre,wsge->wgrus", q, k) * E**-0.5, -1e9)
        norm = jnp.where(used, jax.nn.logsumexp(s, -1), 0.0)
        p = jnp.where(sees, jnp.exp(s - norm[..., None]), 0.0)
        return jnp.einsum("wgrus,wsge->wugre", p, v), norm.transpose(0, 3, 1, 2)

    return attend


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("tile, at_once", [(512, 2**19), (8, 2**11)], ids=["one tile", "many tiles and chunks"])
def test_values_and_gradients(packed, monkeypatch, window, tile, at_once):
    monkeypatch.setattr(path_attention, "KEY_TILE", tile)
    monkeypatch.setattr(path_attention, "SCORES_AT_ONCE_CPU", at_once)
    bins = packed.bins(0)
    w, u = bins.token_U.shape
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (jax.random.normal(key, (w, u, *s)) for key, s in zip(keys, [(G, R, E), (G, E), (G, E)], strict=False))
    weigh_out, weigh_norm = jax.random.normal(keys[3], q.shape), jax.random.normal(keys[4], q.shape[:-1])

    def compute(attend):
        def loss(q, k, v):
            out, norm = attend(q, k, v)
            return (out * weigh_out).sum() + (norm * weigh_norm).sum(), (out, norm)

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    found = compute(lambda *x: path_attend(*x, bins, packed.spec.block, window))
    expected = compute(masked_softmax(bins, window))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found, expected)
