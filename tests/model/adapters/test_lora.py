"""An adapter against products of whole matrices, written apart from it; a base in every dtype; one without effect."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import LORA_TARGETS
from iiblpo_jax.model.adapters.adapted import Adapted, bound, merged, stored
from iiblpo_jax.model.adapters.lora import LoRA, LoRASpec, check_rank
from iiblpo_jax.model.decoder import bind, logits, params_of
from iiblpo_jax.model.layer import multiply
from iiblpo_jax.model.quantised import INT8_MAX
from iiblpo_jax.rollout.publication import PublicationSpec, publish

TOKENS_BT = np.array([[3, 7, 1, 9, 4], [2, 2, 8, 5, 6]])
ALL = LoRASpec(rank=3, alpha=6.0, targets=LORA_TARGETS)
SOME = LoRASpec(rank=2, alpha=3.0, targets=("v_proj", "q_proj", "up_proj", "o_proj"))


def adapter_of(config, spec, *, seed=1):
    """An adapter whose B is far from zero."""
    weights = params_of(LoRA(config, spec, rngs=nnx.Rngs(seed)))
    keys = jax.random.split(jax.random.key(seed), len(weights))
    return {
        name: 0.3 * jax.random.normal(key, w.shape) if name.endswith("_b") else w
        for key, (name, w) in zip(keys, weights.items(), strict=True)
    }


def by_hand(config, params, spec, adapter):
    """The weights with every B A added, projection by projection, head by head, as Hugging Face orders them."""
    layers = {name: np.array(w) for name, w in params["layers"].items()}
    g, r, e = config.n_kv_heads, config.n_heads // config.n_kv_heads, config.head_dim
    for i in range(config.n_layers):
        for name in spec.targets:
            a, b = (np.asarray(adapter[f"{name}_{side}"][i]) for side in "ab")
            ba = spec.alpha / spec.rank * (b.reshape(-1, spec.rank) @ a.reshape(spec.rank, -1))  # [out, in]
            if name == "q_proj":
                for h in range(config.n_heads):
                    layers["qkv"][i, h // r, h % r] += ba[h * e : (h + 1) * e]
            elif name in ("k_proj", "v_proj"):
                for h in range(g):
                    layers["qkv"][i, h, r + "kv".index(name[0])] += ba[h * e : (h + 1) * e]
            elif name == "o_proj":
                layers["o"][i] += ba.reshape(layers["o"][i].shape)
            elif name == "down_proj":
                layers["down"][i] += ba
            else:
                layers["gate_up"][i, "gu".index(name[0])] += ba
    return {**params, "layers": layers}


def adapted(config, params, spec, adapter, *, base="float32", dtype="float32"):
    return Adapted(base=stored(params, base), adapter=adapter, model=config, spec=spec, dtype=dtype)


@functools.partial(jax.jit, static_argnames="config")
def logits_of(weights, config):
    return logits(bound(config, weights), TOKENS_BT)


@pytest.mark.parametrize("spec", [ALL, SOME], ids=["all", "some"])
def test_beside_and_merged_are_the_products_of_whole_matrices(tiny_config, tiny_params, spec):
    adapter = adapter_of(tiny_config, spec)
    policy = adapted(tiny_config, tiny_params, spec, adapter)
    expected = by_hand(tiny_config, tiny_params, spec, adapter)
    whole = merged(policy)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), whole, expected)
    truth = logits_of(expected, tiny_config)
    assert float(jnp.abs(truth - logits_of(tiny_params, tiny_config)).max()) > 0.1
    np.testing.assert_allclose(logits_of(policy, tiny_config), truth, atol=1e-5 * float(jnp.abs(truth).max()))
    as_list = PublicationSpec(model=tiny_config, unroll=spec is ALL)
    one, other = publish(policy, spec=as_list), publish(whole, spec=as_list)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one, other)


def test_one_that_has_learnt_nothing_is_the_base_to_the_bit(tiny_config, tiny_params):
    policy = adapted(tiny_config, tiny_params, ALL, params_of(LoRA(tiny_config, ALL, rngs=nnx.Rngs(0))))
    truth = logits_of(tiny_params, tiny_config)
    np.testing.assert_array_equal(logits_of(policy, tiny_config), truth)
    np.testing.assert_array_equal(logits_of(policy.replace(adapter=None), tiny_config), truth)


def test_its_gradient_is_that_of_the_products(tiny_config, tiny_params):
    """d/dA = s B^T G and d/dB = s G A^T, of the gradients G of whole matrices."""
    adapter = adapter_of(tiny_config, ALL)
    policy = adapted(tiny_config, tiny_params, ALL, adapter)
    towards = jax.random.normal(jax.random.key(5), (*TOKENS_BT.shape, tiny_config.vocab_size))

    def loss(weights):
        return jnp.sum(towards * jax.nn.log_softmax(logits(bound(tiny_config, weights), TOKENS_BT)))

    found = jax.jit(jax.grad(lambda adapter: loss(policy.replace(adapter=adapter))))(adapter)
    of_whole = jax.jit(jax.grad(loss))(merged(policy))["layers"]
    r, scale = tiny_config.n_heads // tiny_config.n_kv_heads, ALL.scale
    parts = {
        "q_proj": of_whole["qkv"][:, :, :r],
        "k_proj": of_whole["qkv"][:, :, r],
        "v_proj": of_whole["qkv"][:, :, r + 1],
        "o_proj": of_whole["o"],
        "gate_proj": of_whole["gate_up"][:, 0],
        "up_proj": of_whole["gate_up"][:, 1],
        "down_proj": of_whole["down"],
    }
    for name, part in parts.items():
        for i in range(tiny_config.n_layers):
            a = np.asarray(adapter[f"{name}_a"][i]).reshape(ALL.rank, -1)
            b = np.asarray(adapter[f"{name}_b"][i]).reshape(-1, ALL.rank)
            g = np.asarray(part[i]).reshape(len(b), -1)
            for side, truth in (("a", scale * b.T @ g), ("b", scale * g @ a.T)):
                mine = np.asarray(found[f"{name}_{side}"][i]).reshape(truth.shape)
                np.testing.assert_allclose(mine, truth, atol=2e-5 * np.abs(truth).max(), err_msg=f"{name}_{side}")


def test_an_int8_base_is_within_half_a_step_and_computed_with_as_it_is(tiny_config, tiny_params):
    base = stored(tiny_params, "int8")
    for name, inputs in (("qkv", 1), ("o", 3), ("gate_up", 1), ("down", 1)):
        weight, held = np.asarray(tiny_params["layers"][name]), base["layers"][name]
        summed = tuple(range(-inputs, 0))
        step = np.abs(weight).max(summed, keepdims=True) / INT8_MAX
        error = np.abs(np.asarray(held.weight, np.float32) * np.expand_dims(held.scale, summed) - weight)
        assert held.weight.dtype == jnp.int8 and (error <= step / 2 * (1 + 1e-5)).all() and error.max() > step.min() / 4
    assert base["embed"].dtype == base["layers"]["attn_norm"].dtype == jnp.bfloat16
    policy = adapted(tiny_config, tiny_params, ALL, adapter_of(tiny_config, ALL), base="int8")
    truth = logits_of(merged(policy), tiny_config)
    np.testing.assert_allclose(logits_of(policy, tiny_config), truth, atol=2e-5 * float(jnp.abs(truth).max()))


def test_the_backward_pass_keeps_a_base_as_it_is_stored(tiny_config, tiny_params):
    """Of layers that are not recomputed: their matrices cast to float32 would be a copy of the model."""

    def kept(base):
        policy = adapted(tiny_config, tiny_params, ALL, adapter_of(tiny_config, ALL), base=base)

        def back(policy):
            def of_adapter(adapter):
                return logits(bound(tiny_config, policy.replace(adapter=adapter)), TOKENS_BT)

            return jax.vjp(of_adapter, policy.adapter)[1]

        wide = tiny_params["layers"]["gate_up"].shape
        return {str(x.dtype) for x in jax.tree.leaves(jax.eval_shape(back, policy)) if x.shape == wide}

    assert kept("float32") == {"float32"} and kept("bfloat16") == {"bfloat16"} and kept("int8") == {"int8"}


def test_a_matrix_of_integers_passes_a_gradient_on(tiny_params):
    matrix = jax.tree.map(lambda w: w[0], stored(tiny_params, "int8")["layers"]["down"])
    x = jax.random.normal(jax.random.key(0), (4, matrix.weight.shape[1]))
    whole = np.asarray(matrix.weight, np.float32) * np.asarray(matrix.scale)[:, None]
    found = jax.grad(lambda x: multiply(x, matrix).sum())(x)
    np.testing.assert_allclose(found, np.tile(whole.sum(0), (4, 1)), rtol=1e-5)


def test_a_base_is_read_in_the_dtype_of_the_computation(tiny_config, tiny_params):
    policy = adapted(tiny_config, tiny_params, ALL, adapter_of(tiny_config, ALL), dtype="bfloat16")
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), merged(policy))
    truth = logits_of(half, tiny_config)
    close = float(jnp.abs(logits_of(policy, tiny_config) - truth).max()) / float(jnp.abs(truth).max())
    assert 0 < close < 0.05


def test_a_rank_that_saves_nothing_is_refused(tiny_config):
    check_rank(LoRASpec(rank=16, alpha=1.0, targets=("k_proj",)), tiny_config)
    with pytest.raises(InputError, match=r"lora\.rank = 17 exceeds 16, the rank of q_proj; use at most 16, or leave"):
        check_rank(LoRASpec(rank=17, alpha=1.0, targets=("q_proj",)), tiny_config)


def test_whole_weights_are_bound_as_they_are(tiny_config, tiny_params):
    assert bound(tiny_config, tiny_params).embed[...] is bind(tiny_config, tiny_params).embed[...]
