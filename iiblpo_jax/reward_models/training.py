"""The fit of a reward model to pairs: one optimiser step, and what the model says of rows once it is fitted.

A step is a function of (state, pairs, which of them, key) alone, so that a run that is killed goes on with the same
numbers. With a frozen backbone the hidden states are computed once and there are only the head's weights to train; a
trained one is read anew in every step, in pieces of bounded size whose gradients are added up.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from iiblpo_jax.config.derived import divisors
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.devices.mesh import spread, whole
from iiblpo_jax.latents.features import chunks
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import bind, cast, hidden_states
from iiblpo_jax.model.reward import RewardHead, pair_terms
from iiblpo_jax.reward_models.pairs import PairRows

TOKENS_PER_PIECE = 2**14  # row positions whose activations exist at the same time on a device
ACTIVE = 0.01  # variance of mu from which a latent dimension is active (Burda et al., arXiv 1509.00519)

FitState = dict[str, Any]  # params: head, and the backbone where it is trained; opt_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """How a reward model is fitted; static.

    Attributes:
      model: architecture of the backbone; None = frozen, and pairs are hidden states.
      dtype: of a trained backbone's forward.
      beta: weight of the KL.
      lr, steps: Adam with the gradient norm clipped at 1, decaying to 0 along a cosine.
      mesh: devices among which pairs are split; None = one.
    """

    model: ModelConfig | None
    dtype: str = "float32"
    beta: float
    lr: float
    steps: int
    mesh: Mesh | None = None

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Of the fit."""
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(self.lr, self.steps)))

    def begin(self, params: dict) -> FitState:
        """A fresh state; `params` are the caller's to give away."""
        return {"params": params, "opt_state": self.optimizer.init(params)}


def batch_of(step: int, *, pairs: int, batch: int, seed: int) -> np.ndarray:
    """Which pairs step number `step`, from 0, learns from: every epoch goes through them in an order of its own, and
    what does not fill a batch is left to the next."""
    batch = min(batch, pairs)
    epoch, place = divmod(step, pairs // batch)
    return np.random.default_rng([seed, epoch]).permutation(pairs)[place * batch :][:batch]


def steps_of(*, pairs: int, batch: int, epochs: int) -> int:
    """Steps of so many epochs."""
    return epochs * (pairs // min(batch, pairs))


def make_step(fit: Fit, state: FitState) -> Callable:
    """jitted (state, donated; pairs; index_B; key) -> (state, {loss, kl}): one step on these of the pairs.

    `pairs` are (tokens_N2C, length_N2), or with a frozen backbone (h_N2D,). The noise of a pair depends on the key and
    its number alone. `state`: where its arrays lie decides where those of the next one do.
    """
    places = jax.tree.map(lambda x: x.sharding, state)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(places, None))
    def step(state, pairs, index_B, key):
        with meshes.using(fit.mesh):
            gradient, terms = _gradient(fit, state["params"], pairs, index_B, key)
            updates, opt_state = fit.optimizer.update(gradient, state["opt_state"], state["params"])
            return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, whole(terms)

    return step


def _gradient(fit: Fit, params, pairs, index_B, key):
    """(gradient of the mean loss over a batch, its terms), piece by piece."""
    b = index_B.shape[0]
    index_KP = index_B.reshape(-1, _piece(fit, b, pairs[0].shape[2] if fit.model else 0))
    differentiate = jax.value_and_grad(functools.partial(_objective, fit), has_aux=True)

    def add(total, index_P):
        (_, terms), gradient = differentiate(params, tuple(x[index_P] for x in pairs), index_P, key)
        return jax.tree.map(jnp.add, total, (gradient, terms)), None

    zeros = jax.tree.map(jnp.zeros_like, params), {"loss": jnp.float32(0), "kl": jnp.float32(0)}
    total, _ = jax.lax.scan(add, zeros, index_KP)
    return jax.tree.map(lambda x: x / b, total)


def _objective(fit: Fit, params, mine, index_P, key):
    """Sums over a piece: (what is minimised, its terms)."""
    mine = spread(mine)
    h_P2D = mine[0] if fit.model is None else _pair_states(fit, params["backbone"], *mine)
    keys_P = jax.vmap(jax.random.fold_in, (None, 0))(key, index_P)
    head: RewardHead = params["head"]
    noise_P2Z = jax.vmap(lambda key: jax.random.normal(key, (2, head.value_Z.shape[0])))(keys_P)
    loss_P, kl_P = pair_terms(head, h_P2D, noise_P2Z)
    return jnp.sum(loss_P + fit.beta * kl_P), {"loss": loss_P.sum(), "kl": kl_P.sum()}


def _pair_states(fit: Fit, backbone, tokens_P2C, length_P2):
    p, _, c = tokens_P2C.shape
    rows = tokens_P2C.reshape(2 * p, c), length_P2.reshape(2 * p)
    assert fit.model is not None
    return padded_last_states(fit.model, cast(backbone, fit.dtype), *rows, remat=True).reshape(p, 2, -1)


def _piece(fit: Fit, batch: int, width: int) -> int:
    """Pairs of a piece: the largest part of a batch that fits, if possible one that the devices divide."""
    shards = meshes.shards(fit.mesh)
    fitting = [d for d in divisors(batch) if 2 * d * width <= TOKENS_PER_PIECE * shards] or [1]
    return max([d for d in fitting if d % shards == 0] or fitting)


def padded_last_states(config: ModelConfig, params: dict, tokens_NC, length_N, *, remat: bool = False) -> jax.Array:
    """Final-norm hidden state [N,D] of the last token of right-padded rows."""
    h_NCD = hidden_states(bind(config, params), tokens_NC, remat=remat)
    return jnp.take_along_axis(h_NCD, length_N[:, None, None] - 1, axis=1)[:, 0]


def states_of(config: ModelConfig, params: dict, tokens_NC, length_N, *, mesh: Mesh | None = None) -> jax.Array:
    """`padded_last_states` in float32, chunk by chunk, whole on every device."""
    parts = [
        _states(config, params, *mine, mesh=mesh)[:keep]
        for mine, keep in chunks((tokens_NC, length_N), tokens_NC.shape[1], mesh)
    ]
    return jnp.concatenate(parts)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def _states(config, params, tokens_NC, length_N, *, mesh):
    with meshes.using(mesh):
        return whole(padded_last_states(config, params, *spread((tokens_NC, length_N))).astype(jnp.float32))


def rows_of(pairs: PairRows) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [2N,C], length [2N]) of pairs."""
    return pairs.tokens_N2C.reshape(-1, pairs.tokens_N2C.shape[2]), pairs.length_N2.reshape(-1)


def measure(head: RewardHead, h_N2D: jax.Array) -> dict[str, float]:
    """What the head says of pairs without noise: accuracy (equal rewards count half), mean margin, loss, KL (nats a
    response), and how many latent dimensions are active."""
    mean_N2Z = head.encode(h_N2D)[0]
    reward_N2 = head.reward(mean_N2Z)
    margin_N = reward_N2[:, 0] - reward_N2[:, 1]
    loss_N, kl_N = pair_terms(head, h_N2D, jnp.zeros_like(mean_N2Z))
    found = {
        "accuracy": jnp.mean(jnp.heaviside(margin_N, 0.5)),
        "margin": margin_N.mean(),
        "loss": loss_N.mean(),
        "kl": kl_N.mean(),
        "active": jnp.sum(jnp.var(mean_N2Z, axis=(0, 1)) > ACTIVE),
    }
    return {name: float(value) for name, value in found.items()}
