"""How well a latent explains what follows."""

from iiblpo_jax.latents.features import Pairs
from iiblpo_jax.model.decoder import Decoder
from iiblpo_jax.model.layer import Inject
from iiblpo_jax.model.logprobs import response_logprobs
from iiblpo_jax.model.steering.psa import PSA, latent_inputs, steer_rows


def steer_rest(model: Decoder, pairs: Pairs, z_NZ, psa: PSA, *, half_life: float, strength: float) -> Inject:
    """The `Inject` that switches z on from the cut of every row."""
    rows = pairs.rows
    latent = latent_inputs(
        z_NZ[:, None],
        pairs.cut_N[:, None],
        rows.prompt_len_N,
        rows.tokens_NC.shape[1],
        half_life=half_life,
        strength=strength,
    )
    return steer_rows(psa, model.config.n_layers, latent)


def rest_logprobs(model, pairs: Pairs, z_NZ, psa, *, temperature: float, half_life: float, strength: float):
    """Log-probability [N,T] of the response tokens, z on from the cut; z_NZ = None is the plain model."""
    rows, inject = pairs.rows, None
    if z_NZ is not None:
        inject = steer_rest(model, pairs, z_NZ, psa, half_life=half_life, strength=strength)
    how = {"temperature": temperature, "inject": inject}
    return response_logprobs(model, rows.tokens_NC, rows.prompt_len_N, rows.t, **how)[0]
