"""Does the language model listen to z? Measured on held-out prompts, printed as one table with a verdict in words."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from iiblpo_jax.common import masked
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.devices.mesh import spread, whole
from iiblpo_jax.latents.features import Pairs, chunks
from iiblpo_jax.latents.likelihood import rest_logprobs, steer_rest
from iiblpo_jax.model.decoder import bind, hidden_states, params_of, project
from iiblpo_jax.model.steering import cvae as cvae_lib
from iiblpo_jax.model.steering.codes import Codes, bind_latent
from iiblpo_jax.model.steering.psa import bind_psa

ACTIVE = 0.01  # Var_x E[z|x] of an active unit (Burda et al. 2016); a KL threshold says nothing under free bits
IGNORED_KL = 0.01  # nats between two z's under which they are the same policy
IGNORED_GAIN = 0.005  # share of the NLL that z must save to count as heard

NEXT = 8  # tokens from t* on whose KL is summed

ROWS = (  # metric, how it reads in the table; those of one kind of latent are missing in the other
    ("latent/code_entropy", "entropy of the prior over codes, nats"),
    ("latent/code_nll", "NLL of the true code under the prior, nats"),
    ("latent/elbo", "validation ELBO of the CVAE, nats a row"),
    ("latent/kl", "KL(posterior || prior), nats a row"),
    ("latent/active_units", "active units, Var E(z|x) > 0.01"),
    ("latent/prior_norm", "norm of the prior mean, centred"),
    ("latent/prior_norm_raw", "norm of the prior mean before centring"),
    ("latent/nll_plain", "NLL of the rest, plain, nats a token"),
    ("latent/nll_prior", "NLL of the rest, z ~ prior"),
    ("latent/nll_posterior", "NLL of the rest, z ~ posterior"),
    ("latent/nll_prior_mixture", "NLL of the rest, prior summed over"),
    ("latent/kl_between", "KL between two prior z's at t*, nats"),
    ("latent/kl_next8", "the same over 8 tokens of the rest"),
    ("latent/gain_norm", "norm of the PSA gain projections"),
)


def diagnose(
    config,
    params: dict,
    cvae,
    psa,
    pairs: Pairs,
    key,
    *,
    temperature: float,
    half_life: float,
    strength: float,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Metrics of a latent on held-out pairs (README "Method", latent).

    Args:
      config, params: the frozen model.
      cvae, psa: the trained latent stage.
      pairs: N held-out rows with cuts and features.
      key: row n draws its z's with fold_in(key, n).
      temperature, half_life, strength: as in the rollout.
      mesh: devices that hold the model, among which rows are split; None = one.

    Returns:
      `ROWS`' metrics. NLLs are means over the tokens of the rest; nll_prior_mixture is that of sum_z p(z) p(rest | z),
      which a latent at peace with its prior leaves at nll_plain; kl_between is the mean over rows of KL between the
      next-token distributions at the cut under two draws from the prior.
    """
    frozen = (params, params_of(cvae), params_of(psa))
    static = {"temperature": temperature, "half_life": half_life, "strength": strength, "mesh": mesh}
    keys_N = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(pairs.cut_N.shape[0]))
    parts = []
    for mine, keep in chunks((pairs, keys_N), pairs.rows.tokens_NC.shape[1], mesh):
        part = _listen(config, frozen, *mine, **static)
        parts.append(jax.tree.map(lambda x, keep=keep: np.asarray(x)[:keep], part))
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    nll = {
        name: float(rows[name].sum() / rows["tokens"].sum())
        for name in ("plain", "prior", "posterior", "prior_mixture")
    }
    return {
        **(code_metrics if isinstance(cvae, Codes) else cvae_metrics)(cvae, pairs.context_ND, pairs.target_ND, keys_N),
        **{f"latent/nll_{name}": value for name, value in nll.items()},
        "latent/kl_between": float(rows["kl_next"][:, 0].mean()),
        "latent/kl_next8": float(rows["kl_next"].sum(-1).mean()),
        "latent/gain_norm": gain_norm(frozen[2]),
    }


@functools.partial(jax.jit, static_argnames=("config", "temperature", "half_life", "strength", "mesh"))
def _listen(config, frozen, pairs, keys_N, *, mesh, **static):
    with meshes.using(mesh):
        return whole(_of_rows(config, frozen, *spread((pairs, keys_N)), **static))


def _of_rows(config, frozen, pairs, keys_N, *, temperature, half_life, strength):
    params, cvae_params, psa_params = frozen
    model, cvae, psa = bind(config, params), bind_latent(cvae_params), bind_psa(psa_params, config)
    keys_3N = jnp.stack([jax.vmap(jax.random.fold_in, (0, None))(keys_N, i) for i in range(3)])
    z1_NZ, z2_NZ = (cvae.sample_prior(pairs.context_ND, keys_N) for keys_N in keys_3N[:2])
    posterior_NZ = cvae.sample_posterior(pairs.context_ND, pairs.target_ND, keys_3N[2])
    mask_NT = pairs.rows.mask_from(pairs.cut_N)
    how = {"half_life": half_life, "strength": strength}

    def nll_N(z_NZ):
        return -masked.sum(rest_logprobs(model, pairs, z_NZ, psa, temperature=temperature, **how), mask_NT, -1)

    def next_hidden_NID(z_NZ):
        h_NCD = hidden_states(model, pairs.rows.tokens_NC, inject=steer_rest(model, pairs, z_NZ, psa, **how))
        at_NI = (pairs.rows.prompt_len_N + pairs.cut_N - 1)[:, None] + jnp.arange(NEXT)
        return jnp.take_along_axis(h_NCD, at_NI[..., None], axis=1, mode="clip")

    def kl_N(hidden):  # one position at a time: logits of a whole vocabulary
        first_NV, second_NV = (jax.nn.log_softmax(project(model, h_ND) / temperature) for h_ND in hidden)
        return jnp.sum(jnp.exp(first_NV) * (first_NV - second_NV), -1)

    kl_IN = jax.lax.map(kl_N, tuple(next_hidden_NID(z).swapaxes(0, 1) for z in (z1_NZ, z2_NZ)))
    within_NI = pairs.cut_N[:, None] + jnp.arange(NEXT) < pairs.rows.length_N[:, None]
    z_NIZ, logp_NI = cvae.support(pairs.context_ND, keys_3N[0])
    each_IN = -jax.lax.map(nll_N, z_NIZ.swapaxes(0, 1))
    return {
        "plain": nll_N(None),
        "prior": nll_N(z1_NZ),
        "posterior": nll_N(posterior_NZ),
        "tokens": mask_NT.sum(-1),
        "prior_mixture": -jax.nn.logsumexp(each_IN.T + logp_NI, axis=-1),
        "kl_next": jnp.where(within_NI, kl_IN.T, 0.0),
    }


def cvae_metrics(cvae, context_ND, target_ND, keys_N) -> dict[str, float]:
    """ELBO (with the decoder's Gaussian constant), KL, active units and prior norms over N rows."""
    terms = cvae_lib.elbo_terms(cvae, context_ND, target_ND, keys_N, kl_weight=1.0, free_bits=0.0)
    prior_NZ = cvae.prior(context_ND)[0]
    posterior_NZ = cvae.posterior(context_ND, target_ND)[0]
    constant = 0.5 * cvae.width * math.log(2 * math.pi)
    return {
        "latent/elbo": float(-terms.loss - constant),
        "latent/kl": float(terms.kl),
        "latent/active_units": float(jnp.sum(jnp.var(posterior_NZ, 0) > ACTIVE)),
        "latent/prior_norm": float(jnp.mean(jnp.linalg.norm(prior_NZ - cvae.offset[...], axis=-1))),
        "latent/prior_norm_raw": float(jnp.mean(jnp.linalg.norm(prior_NZ, axis=-1))),
    }


def code_metrics(codes, context_ND, target_ND, keys_N) -> dict[str, float]:
    """Entropy of the prior over codes and its NLL of the true code over N rows: equal where the prior is calibrated."""
    logp_NZ = jax.nn.log_softmax(codes.prior_logits(context_ND))
    code_N = codes.code(target_ND)
    return {
        "latent/code_entropy": float(-jnp.mean(jnp.sum(jnp.exp(logp_NZ) * logp_NZ, -1))),
        "latent/code_nll": float(-jnp.mean(jnp.take_along_axis(logp_NZ, code_N[:, None], 1))),
    }


def gain_norm(psa_params: dict) -> float:
    """Frobenius norm of the gain projections over all injected layers."""
    return float(jnp.linalg.norm(psa_params["gain"]))


def verdict(metrics: dict[str, float]) -> str:
    """One plain sentence: does the model listen to z?"""
    saved = 1 - metrics["latent/nll_posterior"] / metrics["latent/nll_plain"]
    kl = metrics["latent/kl_between"]
    if kl < IGNORED_KL and saved < IGNORED_GAIN:
        return f"z is IGNORED: two z's give one policy (KL {kl:.4f} nat) and the true z saves {saved:.1%} of the NLL"
    if kl < IGNORED_KL:
        return f"z is IGNORED at the branch: two z's give the same next-token distribution (KL {kl:.4f} nat)"
    if saved < IGNORED_GAIN:
        return f"z is NOISE: it changes the policy (KL {kl:.3f} nat), but the true z saves only {saved:.1%} of the NLL"
    change = metrics["latent/nll_prior"] / metrics["latent/nll_plain"] - 1
    return (
        f"z is heard: two z's differ by {kl:.3f} nat at the branch; the true z saves {saved:.1%} of the NLL, "
        f"a z from the prior changes it by {change:+.1%}"
    )


def show(metrics: dict[str, float], console: Console | None = None) -> None:
    """Prints the table and the verdict."""
    console = console or Console()
    table = Table(title="Latent, on held-out prompts")
    table.add_column("metric")
    table.add_column("meaning")
    table.add_column("value", justify="right")
    for name, meaning in ROWS:
        if name in metrics:
            table.add_row(name, meaning, f"{metrics[name]:.4g}")
    console.print(table)
    sentence = verdict(metrics)
    console.print(sentence, soft_wrap=True, style="bold green" if sentence.startswith("z is heard") else "bold red")
