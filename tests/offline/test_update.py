"""Loss and gradient of a step against the whole model in one piece, however rows are split and packed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.model.decoder import bind, logits
from iiblpo_jax.offline.examples import rows_of
from iiblpo_jax.offline.losses.sft import sft
from iiblpo_jax.offline.update import CaseGradient
from iiblpo_jax.update.settings import UpdateSettings

S, T = 5, 6


@functools.cache
def compiled(config, loss, settings):
    return jax.jit(CaseGradient(settings=settings, loss=loss, model_config=config))


def on_device(cases):
    return jax.tree.map(jnp.asarray, rows_of(cases, max_prompt=S, max_tokens=T))


def log_probs(config, params, cases):
    """[P,G] from dense logits, none of the masks of the package taken."""
    examples = [example for case in cases for example in case]
    rows = np.zeros((len(examples), S + T), int)
    counts = np.zeros((len(examples), S + T, config.vocab_size))
    for row, count, (prompt, response) in zip(rows, counts, examples, strict=True):
        row[: len(prompt + response)] = prompt + response
        for at, token in enumerate(response, len(prompt) - 1):
            count[at, token] = 1
    logp_NCV = jax.nn.log_softmax(logits(bind(config, params), jnp.asarray(rows)))
    return (logp_NCV * counts).sum((1, 2)).reshape(len(cases), -1)


SETTINGS = {
    "microbatches": UpdateSettings(microbatch=2),
    "packed": UpdateSettings(pack_tokens=16),
}


def test_sft_is_the_mean_over_tokens_of_whole_responses(tiny_config, tiny_params, make_cases):
    cases = make_cases(4, 1)
    tokens = sum(len(example.response) for case in cases for example in case)

    @jax.jit
    @jax.value_and_grad
    def whole(params):
        return -log_probs(tiny_config, params, cases).sum() / tokens

    expected, gradients = whole(tiny_params)
    for settings in SETTINGS.values():
        step = compiled(tiny_config, sft(), settings)
        loss, found, totals = step({"policy": tiny_params}, None, on_device(cases))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found["policy"], gradients)
        assert totals["tokens"] == tokens and np.isfinite(totals["entropy"])
