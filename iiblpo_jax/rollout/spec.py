"""What is fixed about a rollout before it is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.steering.code_tokens import CodeTokens
from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.sampling import Sampling
from iiblpo_jax.rollout.turns import TurnSpec

NO_BRANCHES = Branching()
AS_IT_IS = Sampling()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutSpec:
    """Everything static about a rollout; hashable, one compilation for each.

    Attributes:
      model: architecture.
      roots: M trees a prompt.
      branching: how branches grow.
      slots: B sequences decoded at once, on all devices together.
      refill_at: idle slots with work waiting that end the inner loop, on all devices together.
      max_tokens: T.
      min_tokens: response length before a stop token may be drawn.
      sampling: how tokens are drawn.
      stop_ids: token ids that end a response.
      never_ids: token ids that the distributions do not have, because no text does (Tokenizer.textless_ids). The update
        leaves them out too: else no sample would ever push back the probability that leaks to them.
      kv_dtype: of the key/value caches; `` = the publication's.
      half_life, strength: decay and strength of z (psa.gamma).
      stratified: siblings share out the prior between them (codes.stratified); each alone is still drawn from it.
      prior_power: latents are drawn from the prior's power: 1 = as it is, towards 0 flatter.
      codes: which the trees of a prompt share out between them; None = every tree grows on the plain prompt.
      turns: limits of turns that an environment answers (conversing.py); None = a response is one turn.
      mesh: devices to split it over; None = one.
    """

    model: ModelConfig
    roots: int
    branching: Branching = NO_BRANCHES
    slots: int
    refill_at: int = 1
    max_tokens: int
    min_tokens: int = 0
    sampling: Sampling = AS_IT_IS
    stop_ids: tuple[int, ...]
    never_ids: tuple[int, ...] = ()
    kv_dtype: str = ""
    half_life: float = 256.0
    strength: float = 1.0
    stratified: bool = False
    prior_power: float = 1.0
    codes: CodeTokens | None = None
    turns: TurnSpec | None = None
    mesh: Mesh | None = None

    @property
    def group_size(self) -> int:
        """Trajectories of one prompt."""
        return self.roots * self.branching.tree_size

    def prompt(self, trajectory: jax.Array) -> jax.Array:
        """The prompt that a trajectory answers; 0 for the number -1 of none."""
        return jnp.maximum(trajectory, 0) // self.group_size
