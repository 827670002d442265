"""Loss and gradient of a step against the whole model in one piece, however rows are split and packed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.model.contrast import shift
from iiblpo_jax.model.decoder import bind, logits
from iiblpo_jax.offline.examples import rows_of
from iiblpo_jax.offline.losses import make_loss
from iiblpo_jax.offline.losses.interface import Read
from iiblpo_jax.offline.losses.sft import sft
from iiblpo_jax.offline.update import CaseGradient
from iiblpo_jax.update.settings import UpdateSettings

S, T = 5, 6


def on_device(cases):
    return jax.tree.map(jnp.asarray, rows_of(cases, max_prompt=S, max_tokens=T))


def dense(config, params, cases, reference=None):
    """[P,G] log-probs of responses and their shifts (alpha .7, k 3), from whole logits."""
    examples = [example for case in cases for example in case]
    rows = np.zeros((len(examples), S + T), int)
    counts = np.zeros((len(examples), S + T, config.vocab_size))
    for row, count, (prompt, response) in zip(rows, counts, examples, strict=True):
        row[: len(prompt + response)] = prompt + response
        for at, token in enumerate(response, len(prompt) - 1):
            count[at, token] = 1
    logits_NCV = logits(bind(config, params), jnp.asarray(rows))
    logp_N = (jax.nn.log_softmax(logits_NCV) * counts).sum((1, 2))
    shift_N = jnp.zeros(len(rows))
    if reference is not None:
        shift_NC = shift(logits_NCV, logits(bind(config, reference), jnp.asarray(rows)), alpha=0.7, k=3)
        shift_N = (shift_NC * counts.sum(-1)).sum(1)
    return logp_N.reshape(len(cases), -1), shift_N.reshape(len(cases), -1)


LOSSES = {
    "sft": (sft(), 1, UpdateSettings(microbatch=2)),
    "dpo": (make_loss("dpo", {"beta": 0.5}, retain=0.4), 3, UpdateSettings(group_size=3, pack_tokens=16)),
    "dipo": (
        make_loss("dipo", {"beta": 0.5, "alpha": 0.7, "k": 3}, retain=0.4),
        3,
        UpdateSettings(group_size=3, microbatch=3),
    ),
}


@pytest.fixture(scope="module")
def reference(tiny_params):
    return jax.tree.map(lambda x: x * 0.8, tiny_params)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_those_of_the_whole_model_however_rows_are_split(
    name, tiny_config, tiny_params, reference, make_cases
):
    loss, group, settings = LOSSES[name]
    cases = make_cases(4, group)
    tokens_PG = jnp.array([[len(example.response) for example in case] for case in cases], jnp.float32)

    @jax.jit
    @jax.value_and_grad
    def whole(params):
        against = dense(tiny_config, reference, cases)[0] if loss.reference else 0 * tokens_PG
        scores = dense(tiny_config, params, cases, reference if loss.contrast else None)
        return loss(Read(tokens_PG, *scores, against))

    expected, gradients = whole(tiny_params)
    step = jax.jit(CaseGradient(settings=settings, loss=loss, model_config=tiny_config))
    found, slopes, totals = step({"policy": tiny_params}, {"policy": reference}, on_device(cases))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), slopes["policy"], gradients)
    assert totals["tokens"] == tokens_PG.sum() and np.isfinite(totals["entropy"])
    assert group == 1 or totals["pairs/count"] == 3
    assert not settings.pack_tokens or totals["nodes"] < totals["inputs"]  # prompts are shared


MESH = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from ml_collections import ConfigDict
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.offline.examples import Example, rows_of
from iiblpo_jax.offline.losses import make_loss
from iiblpo_jax.offline.update import CaseGradient
from iiblpo_jax.update.settings import UpdateSettings

model = ModelConfig(family="qwen3", vocab_size=20, d_model=16, d_ff=32, n_layers=1, n_heads=2, n_kv_heads=2,
    head_dim=8, qk_norm=True)
module, rng = Decoder(model, rngs=nnx.Rngs(0)), np.random.default_rng(0)
params = {"policy": params_of(module)}
reference = jax.tree.map(lambda x: 0.8 * x, params)
cases = [tuple(Example((1, 2), tuple(rng.integers(1, 20, n))) for n in (3, 5)) for _ in range(4)]
rows = rows_of(cases, max_prompt=2, max_tokens=5)
loss = make_loss("dipo", {"k": 3})

def gradient(mesh, weights, rows, **how):
    step = CaseGradient(settings=UpdateSettings(group_size=2, mesh=mesh, **how), loss=loss, model_config=model)
    def run(*arguments):
        with meshes.using(mesh):
            return step(*arguments)
    return jax.jit(run)(*weights, rows)

mesh = meshes.make_mesh(ConfigDict({"data": 2, "fsdp": 2, "sequence": 1, "tensor": 1}))
places = {"policy": meshes.param_shardings(module, mesh, meshes.TRAIN)}
spread = [meshes.shard_params(x, places) for x in (params, reference)]
one = gradient(None, (params, reference), jax.tree.map(jnp.asarray, rows))
four = gradient(mesh, spread, meshes.to_devices(rows, mesh, "batch"), pack_tokens=16)
np.testing.assert_allclose(one[0], four[0], rtol=1e-5)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one[1], four[1])
print("equal")
"""


def test_four_devices_with_packed_rows_are_one_with_padded_ones(run_script):
    assert "equal" in run_script(MESH, devices=4)
