"""How well a latent explains what follows."""

from iiblpo_jax.latents.features import Pairs
from iiblpo_jax.model.logprobs import response_logprobs
from iiblpo_jax.model.steering.psa import latent_inputs


def injection(pairs: Pairs, z_NZ, *, half_life: float, strength: float):
    """Latent that switches z on from the cut of every row."""
    rows = pairs.rows
    return latent_inputs(
        z_NZ[:, None],
        pairs.cut_N[:, None],
        rows.prompt_len_N,
        rows.tokens_NC.shape[1],
        half_life=half_life,
        strength=strength,
    )


def rest_logprobs(model, pairs: Pairs, z_NZ, psa, *, temperature: float, half_life: float, strength: float):
    """Log-probability [N,T] of the response tokens, z on from the cut; z_NZ = None is the plain model."""
    rows, with_z = pairs.rows, {}
    if z_NZ is not None:
        with_z = {"latent": injection(pairs, z_NZ, half_life=half_life, strength=strength), "psa": psa}
    return response_logprobs(model, rows.tokens_NC, rows.prompt_len_N, rows.t, temperature=temperature, **with_z)[0]
