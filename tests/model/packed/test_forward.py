"""The packed forward against the padded one, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.model.decoder import bind
from iiblpo_jax.model.logprobs import response_logprobs
from iiblpo_jax.model.packed.bins import PackedRows
from iiblpo_jax.model.packed.forward import packed_logprobs
from iiblpo_jax.model.steering.psa import bind_psa, latent_inputs, steer_nodes, steer_rows

N, S, T = 8, 3, 9


@pytest.fixture(scope="module")
def rows():
    """Two prompts of four rows; rows 1 and 2 of a prompt inherit from row 0, row 3 repeats it."""
    rng = np.random.default_rng(3)
    tokens, length = rng.integers(1, 23, (N, S + T)), np.array([12, 10, 7, 12, 9, 12, 5, 9])
    for n in range(N):
        tokens[n, : S + [0, 4, 2, 12][n % 4]] = tokens[n - n % 4, : S + [0, 4, 2, 12][n % 4]]
    tokens *= np.arange(S + T) < length[:, None]
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(length, jnp.int32)


@pytest.mark.parametrize("shards, tokens", [(1, 100), (2, 14)])
@pytest.mark.parametrize("with_z", [False, True])
def test_log_probs_and_entropies(tiny_config, tiny_params, tiny_psa_params, rows, shards, tokens, with_z):
    tokens_NC, length_N = rows
    model, context_N, latent, psa, private_N = bind(tiny_config, tiny_params), jnp.full(N, S), None, None, None
    if with_z:
        branch_at_N = jnp.array([0, 4, 2, 0, 0, 4, 2, 0])
        z_N1Z = jax.random.normal(jax.random.key(4), (N, 1, 4))
        latent = latent_inputs(z_N1Z, branch_at_N[:, None], context_N, S + T, half_life=5.0, strength=0.8)
        psa, private_N = bind_psa(tiny_psa_params, tiny_config), jnp.where(branch_at_N > 0, S + branch_at_N - 1, S + T)

    def by_shard(x):
        return x.reshape(shards, -1, *x.shape[1:])

    @jax.jit
    def packed_forward():
        packed = PackedRows(tokens_NC, length_N, tokens=tokens, group=4, shards=shards, private_N=private_N)

        def forward(bins):
            nodes = None if latent is None else steer_nodes(psa, 2, jax.tree.map(by_shard, latent), bins)
            return packed_logprobs(
                model,
                packed.tokens_WNC,
                by_shard(context_N),
                bins,
                T,
                block=packed.spec.block,
                temperature=0.9,
                inject=nodes,
            )

        return packed.collect(forward)

    inject = steer_rows(psa, 2, latent) if with_z else None
    expected = response_logprobs(model, tokens_NC, context_N, T, temperature=0.9, inject=inject)
    inside = np.arange(T) < np.asarray(length_N - S)[:, None]
    for found, wanted in zip(packed_forward(), expected, strict=True):
        np.testing.assert_allclose(found, np.where(inside, wanted, 0.0), atol=2e-5)
