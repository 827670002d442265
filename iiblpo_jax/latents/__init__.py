"""The latent stage: pairs from the frozen model, the CVAE, the PSA projections, diagnostics and storage."""

from iiblpo_jax.latents.stage import ensure_latents
from iiblpo_jax.latents.storage import load_latents

__all__ = ["ensure_latents", "load_latents"]
