"""Which sequences are new: random network distillation (Burda et al., arXiv 1810.12894) over whole sequences.

    e(x) = (f(x) - g(x))^2,   x = prompt and response

f and g are one small network: the embeddings of all tokens, by their positions, into layers of HIDDEN units, leaky ReLU
between them and a sigmoid at the end. g and the embeddings are random and stay so; f learns to be g on what it has
seen, one AdamW step on the mean of e a rollout. So e falls on what keeps coming, and stays on what is new.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import optax
from flax import struct

from iiblpo_jax.common import masked

EMBEDDING, HIDDEN = 16, (16, 8, 1)
LEARNING_RATE = 1e-3
ROWS = 64  # whose embeddings exist at the same time
OPTIMIZER = optax.adamw(LEARNING_RATE)


class Novelty(struct.PyTreeNode):
    """The networks and where f is in learning.

    Attributes:
      embed_VE: of tokens, frozen.
      target: weights of g, frozen.
      predictor: weights of f.
      opt_state: of f's AdamW.
    """

    embed_VE: jax.Array
    target: dict
    predictor: dict
    opt_state: optax.OptState


def make_novelty(key: jax.Array, *, vocab_size: int, width: int) -> Novelty:
    """Fresh networks for sequences of up to `width` tokens."""
    of_embed, of_target, of_predictor = jax.random.split(key, 3)
    predictor = _layers(of_predictor, width)
    return Novelty(
        embed_VE=jax.random.normal(of_embed, (vocab_size, EMBEDDING)),
        target=_layers(of_target, width),
        predictor=predictor,
        opt_state=OPTIMIZER.init(predictor),
    )


def errors(novelty: Novelty, tokens_RC: jax.Array, length_R: jax.Array) -> jax.Array:
    """e [R] of sequences of length_R tokens; what lies behind them does not matter."""
    return _errors(novelty.predictor, novelty, tokens_RC, length_R)


def learnt(novelty: Novelty, tokens_RC: jax.Array, length_R: jax.Array, counted_R: jax.Array) -> Novelty:
    """After one step of f towards g on the mean e of the rows that count; the same where none does."""

    def loss(predictor):
        return masked.mean(_errors(predictor, novelty, tokens_RC, length_R), counted_R)

    gradients = jax.grad(loss)(novelty.predictor)
    changes, opt_state = OPTIMIZER.update(gradients, novelty.opt_state, novelty.predictor)
    new = optax.apply_updates(novelty.predictor, changes), opt_state
    old = novelty.predictor, novelty.opt_state
    predictor, opt_state = jax.tree.map(functools.partial(jnp.where, jnp.any(counted_R)), new, old)
    return novelty.replace(predictor=predictor, opt_state=opt_state)


def _layers(key: jax.Array, width: int) -> dict:
    """Normal weights that keep the size of what they are given, and no biases."""
    first, *rest = jax.random.split(key, len(HIDDEN))
    weights = {
        "w0_CEH": jax.random.normal(first, (width, EMBEDDING, HIDDEN[0]))
    }  # divided by _errors, which knows the length
    for i, (k, shape) in enumerate(zip(rest, itertools.pairwise(HIDDEN), strict=True), start=1):
        weights[f"w{i}_HH"] = jax.random.normal(k, shape) / jnp.sqrt(shape[0])
    return weights


def _errors(predictor: dict, novelty: Novelty, tokens_RC, length_R) -> jax.Array:
    networks = predictor, jax.lax.stop_gradient(novelty.target)

    def row(args):
        tokens_C, length = args
        x_CE = jnp.where((jnp.arange(tokens_C.shape[0]) < length)[:, None], novelty.embed_VE[tokens_C], 0.0)
        f, g = (_network(w, x_CE / jnp.sqrt(EMBEDDING * jnp.maximum(length, 1))) for w in networks)
        return jnp.square(f - g)

    return jax.lax.map(jax.checkpoint(row), (tokens_RC, length_R), batch_size=ROWS)


def _network(weights: dict, x_CE) -> jax.Array:
    x_H = jnp.einsum("ce,ceh->h", x_CE, weights["w0_CEH"])
    for i in range(1, len(HIDDEN)):
        x_H = jax.nn.leaky_relu(x_H) @ weights[f"w{i}_HH"]
    return jax.nn.sigmoid(x_H[0])
