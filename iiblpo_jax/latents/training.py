"""Training of the latent stage: first the CVAE on features, then the PSA projections with model and CVAE frozen.

Both loops run as one jitted program per chunk of steps; the host only draws a progress bar in between. Batches are
drawn with replacement, by a key folded from the step, so that the result is a function of (data, key) alone. On a mesh
the rows of a batch are split, and what is trained, which is small, lies whole on every device.
"""

import dataclasses
import functools
import sys
import time

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from rich.progress import Progress

from iiblpo_jax.common import masked
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.devices.mesh import spread, whole
from iiblpo_jax.latents.features import Pairs
from iiblpo_jax.latents.likelihood import rest_logprobs
from iiblpo_jax.model.decoder import bind, params_of
from iiblpo_jax.model.steering import cvae as cvae_lib
from iiblpo_jax.model.steering.codes import Codes, bind_latent, fit_code_offset, fit_codes
from iiblpo_jax.model.steering.cvae import CVAE
from iiblpo_jax.model.steering.psa import PSA, bind_psa

CHUNK = 50  # steps per dispatch
PATIENCE_S = 5.0  # a loop that lasts longer shows a progress bar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """How the CVAE or the codes are fitted.

    Attributes:
      latent, hidden: Z and the width of the hidden layers.
      steps, batch, lr: Adam with the gradient norm clipped at 1; lr decays to 0 along a cosine.
      mesh: devices; None = one. A batch that they do not divide is not split.
    """

    latent: int
    hidden: int
    steps: int
    batch: int
    lr: float
    mesh: Mesh | None = None


def train_cvae(context_ND, target_ND, key, how: Fit, *, free_bits: float, kl_warmup: int) -> tuple[CVAE, jax.Array]:
    """Fits a CVAE to N training pairs.

    Args:
      context_ND, target_ND: features of training prompts only.
      key: initialisation, batches and noise.
      how: optimisation.
      free_bits: see `cvae.elbo_terms`.
      kl_warmup: steps over which the weight of the KL rises linearly to 1.

    Returns:
      The CVAE with its statistics and offset, and the loss of every chunk of steps.
    """
    cvae = CVAE(context_ND.shape[1], how.latent, how.hidden, rngs=nnx.Rngs(jax.random.fold_in(key, 0)))
    cvae_lib.fit_standardisation(cvae, context_ND, target_ND)

    def loss(cvae, rows, keys_B, step):
        weight = warmup(step, 1.0, kl_warmup)
        context_BD, target_BD = rows
        return cvae_lib.elbo_terms(cvae, context_BD, target_BD, keys_B, kl_weight=weight, free_bits=free_bits).loss

    cvae, losses = _fit(cvae, loss, (context_ND, target_ND), key, how, label="CVAE")
    cvae_lib.fit_offset(cvae, context_ND)
    return cvae, losses


def train_codes(context_ND, target_ND, key, how: Fit) -> tuple[Codes, jax.Array]:
    """Finds `how.latent` codes in N training pairs, then fits their prior by cross-entropy; arguments as above.

    Returns:
      The codes with their statistics, and the cross-entropy of every chunk of steps, nats a row.
    """
    codes = Codes(context_ND.shape[1], how.latent, how.hidden, rngs=nnx.Rngs(jax.random.fold_in(key, 0)))
    fit_codes(codes, context_ND, target_ND, jax.random.fold_in(key, 2))

    def loss(codes, rows, keys_B, step):
        context_BD, code_B = rows
        logits_BC = codes.prior_logits(context_BD)
        return optax.softmax_cross_entropy_with_integer_labels(logits_BC, code_B).mean()

    codes, losses = _fit(codes, loss, (context_ND, codes.code(target_ND)), key, how, label="codes")
    fit_code_offset(codes, context_ND)
    return codes, losses


def _fit(module, loss, data, key, how: Fit, *, label: str):
    """(the module fitted to loss(module, rows, keys_B, step) over batches of `data`, mean losses of the chunks)."""
    graph, weights, statistics = nnx.split(module, nnx.Param, ...)
    n = data[0].shape[0]
    batch = min(how.batch, n)

    def of_batch(weights, frozen, step):
        key, statistics, data = frozen
        index_B, keys_B = draw(key, step, batch, n)
        rows, keys_B = spread((tuple(x[index_B] for x in data), keys_B))
        return loss(nnx.merge(graph, weights, statistics), rows, keys_B, step)

    frozen = (jax.random.fold_in(key, 1), statistics, data)
    weights, losses = minimise(of_batch, weights, frozen, lr=how.lr, steps=how.steps, label=label, mesh=how.mesh)
    return nnx.merge(graph, weights, statistics), losses


def train_psa(
    config,
    params: dict,
    cvae: CVAE | Codes,
    pairs: Pairs,
    key,
    *,
    n_injected: int,
    steps: int,
    batch: int,
    lr: float,
    prior_weight: float = 0.0,
    mesh: Mesh | None = None,
    **how: float,
) -> tuple[PSA, jax.Array]:
    """Fits PSA projections to log pi(rest | prefix, z), with model and CVAE frozen (Adam).

    z ~ posterior is the likelihood term of the ELBO with the language model as decoder. It rewards trust in z without
    bound, and a z from the prior then costs much more than the plain policy. With v = `prior_weight`, the share of rows
    whose z is drawn from the prior in ignorance of the rest, the optimum is known in closed form:

        p(rest | prefix, z) = pi(rest | prefix) * (v + (1 - v) * q(z | prefix, rest) / p(z | prefix))

    Args:
      config, params: the frozen model; no gradient reaches it.
      cvae: the trained CVAE.
      pairs: N training rows with their cuts and features.
      key: initialisation, batches and noise.
      n_injected: how many of the last layers get z.
      steps, batch, lr: optimisation; lr decays to 0 along a cosine.
      prior_weight: v; 0 trusts z as much as the likelihood asks for.
      mesh: devices that hold the model; None = one.
      how: temperature, half_life, strength of `likelihood.rest_logprobs`, as in the rollout.

    Returns:
      The PSA module, and the negative log-likelihood per token of every chunk of steps.
    """
    latent = cvae.latent
    psa_params = params_of(PSA(config, latent, n_injected, rngs=nnx.Rngs(jax.random.fold_in(key, 0))))
    n = pairs.cut_N.shape[0]
    batch, shards = min(batch, n), meshes.shards(mesh)
    rows = -(-batch // shards) * shards  # the last one is repeated until every device has as many

    def loss(psa_params, frozen, step):
        key, params, cvae_params, pairs = frozen
        row_B = jnp.arange(rows)
        index_B, keys_B = (x[jnp.minimum(row_B, batch - 1)] for x in draw(key, step, batch, n))
        mine, keys_B = spread((pairs[index_B], keys_B))
        z_BZ = draw_mixed(bind_latent(cvae_params), mine, keys_B, prior_weight)
        logp_BT = rest_logprobs(bind(config, params), mine, z_BZ, bind_psa(psa_params, config), **how)
        return -masked.mean(logp_BT, mine.rows.mask_from(mine.cut_N) & (row_B < batch)[:, None])

    frozen = (jax.random.fold_in(key, 1), params, params_of(cvae), pairs)
    psa_params, losses = minimise(loss, psa_params, frozen, lr=lr, steps=steps, label="PSA", mesh=mesh)
    return bind_psa(psa_params, config), losses


def draw_mixed(cvae: CVAE | Codes, pairs: Pairs, keys_N, prior_weight: float):
    """z [N,Z] from the posterior, or with probability `prior_weight` from the prior."""
    z_NZ = cvae.sample_posterior(pairs.context_ND, pairs.target_ND, keys_N)
    if prior_weight == 0:
        return z_NZ
    prior_NZ = cvae.sample_prior(pairs.context_ND, jax.vmap(jax.random.fold_in, (0, None))(keys_N, 1))
    uniform_N = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 2)))(keys_N)
    return jnp.where((uniform_N < prior_weight)[:, None], prior_NZ, z_NZ)


def warmup(step, weight: float, steps: int):
    """weight * min(1, (step + 1) / steps): linear KL warm-up; the full weight at once for steps = 0."""
    return weight * jnp.minimum(1.0, (step + 1) / max(steps, 1))


def draw(key, step, batch: int, n: int):
    """(row indices [B], one noise key a row) of a step."""
    key = jax.random.fold_in(key, step)
    return jax.random.randint(key, (batch,), 0, n), jax.random.split(jax.random.fold_in(key, 1), batch)


def minimise(loss, weights, frozen, *, lr: float, steps: int, label: str, mesh: Mesh | None = None):
    """Adam with cosine decay on loss(weights, frozen, step): (weights, mean loss of each chunk of steps).

    Everything large that the loss reads travels in `frozen`: captured arrays would be compiled in as constants. The
    loss may speak of the mesh (`mesh.constrain`); weights and optimiser state lie whole on all of it.
    """
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(lr, max(steps, 1))))

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(state, frozen, first):
        def one(state, step):
            weights, optimiser_state = state
            value, gradient = jax.value_and_grad(loss)(weights, frozen, step)
            updates, optimiser_state = optimiser.update(gradient, optimiser_state, weights)
            return (optax.apply_updates(weights, updates), optimiser_state), value

        def maybe(state, step):  # steps past the end leave everything as it is: one shape, one compile
            return jax.lax.cond(step < steps, one, lambda state, _: (state, jnp.nan), state, step)

        with meshes.using(mesh):
            state, losses = jax.lax.scan(maybe, state, first + jnp.arange(CHUNK))
            return whole((state, jnp.nanmean(losses)))

    weights = jax.tree.map(jnp.copy, weights)  # the caller keeps what it passed: the state is donated
    state, losses, bar = meshes.to_devices((weights, optimiser.init(weights)), mesh), [], Bar(label, steps)
    for first in range(0, steps, CHUNK):
        state, value = chunk(state, frozen, first)
        losses.append(float(value))
        bar.update(min(first + CHUNK, steps), losses[-1])
    bar.close()
    return state[0], jnp.array(losses)


class Bar:
    """A progress bar that appears once a loop has run for PATIENCE_S seconds."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.began = label, total, time.monotonic()
        self.progress = Progress(transient=True, disable=not sys.stdout.isatty())
        self.task = self.progress.add_task(label, total=total)
        self.shown = False

    def update(self, done: int, loss: float):
        """Moves the bar and shows the loss beside it."""
        if not self.shown and time.monotonic() - self.began > PATIENCE_S:
            self.progress.start()
            self.shown = True
        self.progress.update(self.task, completed=done, description=f"{self.label} loss {loss:.3f}")

    def close(self):
        """Removes the bar."""
        if self.shown:
            self.progress.stop()
