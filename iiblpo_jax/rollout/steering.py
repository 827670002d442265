"""How branches get their z and what it does to them; nothing of it exists in a rollout without latents."""

import dataclasses

import jax
import jax.numpy as jnp

from iiblpo_jax.model.steering.codes import Codes, bind_latent, stratified
from iiblpo_jax.model.steering.cvae import CVAE
from iiblpo_jax.model.steering.psa import PSA, Projected, SlotSteering, bind_psa, gamma, project_latents, steer_slots
from iiblpo_jax.rollout.draws import Draws
from iiblpo_jax.rollout.publication import Published
from iiblpo_jax.rollout.slots import Slots
from iiblpo_jax.rollout.spec import RolloutSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steering:
    """The latents of a rollout, bound to their weights.

    Attributes:
      psa: projections of z.
      prior: what z is drawn from.
      layers: layers that decoding wants injections for: those that PSA injects, or all where it scans over layers.
      kv_copies: of the Published that decodes.
      spec: half life, strength, power of the prior, and whether siblings share it out.
    """

    psa: PSA
    prior: CVAE | Codes
    layers: int
    kv_copies: int
    spec: RolloutSpec

    @property
    def width(self) -> int:
        """Z."""
        return self.prior.latent

    def project(self, z_BZ: jax.Array) -> Projected:
        """A z a slot through the projections."""
        return project_latents(self.psa, z_BZ, self.layers, self.kv_copies)

    def inject(self, projected: Projected, slots: Slots) -> SlotSteering:
        """What z adds to the layers at the tokens that the slots feed; nothing where it is off."""
        since_B = slots.index_B - slots.branch_at_B
        gamma_B = gamma(since_B, half_life=self.spec.half_life, strength=self.spec.strength)
        return steer_slots(projected, jnp.where(slots.z_on_B, gamma_B, 0.0))

    def draw(self, hidden_BD: jax.Array, row_B: jax.Array, draws: Draws) -> jax.Array:
        """z [B,Z] of branches from the prior, independent or stratified among siblings.

        Args:
          hidden_BD: hidden state of the last prefix token, fed without z.
          row_B: the branches.
          draws: random numbers.
        """
        branching, power = self.spec.branching, self.spec.prior_power
        if not self.spec.stratified:
            return self.prior.sample_prior(hidden_BD, draws.latent_keys(row_B), power)
        siblings_B = draws.latent_keys(jnp.maximum(branching.grows_on(row_B), 0))  # one key for all of a parent
        uniform_BZ = stratified(siblings_B, branching.nth(row_B), branching.k, self.width)
        return self.prior.from_uniform(hidden_BD, uniform_BZ, power)


def steering_of(spec: RolloutSpec, published: Published, latents: dict | None) -> Steering | None:
    """The Steering of a rollout; None where no branch ever has a z."""
    if latents is None or spec.branching.k == 0 or spec.strength <= 0:
        return None
    psa = bind_psa(latents["psa"], spec.model)
    return Steering(
        psa=psa,
        prior=bind_latent(latents["cvae"]),
        layers=psa.gain.shape[0] if published.unrolled else spec.model.n_layers,
        kv_copies=published.kv_copies,
        spec=spec,
    )
