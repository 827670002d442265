"""Prefill in chunks against prefill at once, and against what decoding the prompt writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.rollout import prefill as module
from iiblpo_jax.rollout.cache import empty_cache
from iiblpo_jax.rollout.decoding import decode_step
from iiblpo_jax.rollout.prefill import prefill
from iiblpo_jax.rollout.publication import PublicationSpec, publish

PROMPT_PS = jax.random.randint(jax.random.key(5), (5, 6), 2, 23)


@pytest.fixture(scope="module")
def published(tiny_config, tiny_params):
    return publish(tiny_params, spec=PublicationSpec(model=tiny_config))


def test_chunks_of_rows_and_tokens_change_nothing(monkeypatch, published, tiny_config):
    whole = prefill(published, PROMPT_PS, tiny_config, "float32")
    monkeypatch.setattr(module, "ROW_TOKENS", 13)  # two prompts of six: three chunks, the last one half empty
    monkeypatch.setattr(module, "MLP_TOKENS", 5)  # does not divide them
    for at_once, chunked in zip(whole, prefill(published, PROMPT_PS, tiny_config, "float32"), strict=True):
        np.testing.assert_allclose(at_once, chunked, atol=1e-5)


def test_prefill_holds_what_decoding_token_by_token_writes(published, tiny_config):
    (p, s), n = PROMPT_PS.shape, tiny_config.n_layers
    cache = empty_cache(tiny_config, p, s, "float32", unrolled=True, kv_copies=1)
    for c in range(s):
        _, cache = decode_step(published, tiny_config, cache, PROMPT_PS[:, c], jnp.full(p, c), jnp.int32(c))
    k_LPGES, v_LPGSE = prefill(published, PROMPT_PS, tiny_config, "float32")
    for layer in range(n):
        k_PGES, v_PGSE = cache.read(layer, 0)
        np.testing.assert_allclose(k_LPGES[layer], k_PGES, atol=1e-4)
        np.testing.assert_allclose(v_LPGSE[layer], v_PGSE, atol=1e-4)
