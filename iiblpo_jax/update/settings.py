"""Static settings of the update."""

import dataclasses

from jax.sharding import Mesh

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.derived import minibatch_mistake
from iiblpo_jax.devices import mesh as meshes


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """Static settings of the update.

    Attributes:
      temperature: the rollout's; log-probs and entropies are those of softmax(logits / temperature).
      never_ids: the rollout's: tokens that the policy's distributions do not have.
      minibatches: optimizer steps an epoch.
      epochs: passes over the rollout.
      pack_tokens: nodes of a bin (model/packed/), on each shard what one pass holds; 0 = padded rows.
      attention: attention.impl, how packed rows attend.
      microbatch: padded rows in one forward and backward pass; 0 = the whole minibatch.
      remat: recompute activations in the backward pass instead of keeping them.
      mesh: devices among which rows are split (each packs its own bins), and the nodes of a bin; None = one.
      condition: `marginal` scores branch tokens without z and weighs them; `conditioned` injects z again.
      importance: form of the importance weights (importance.py).
      importance_floor, importance_cap: their bounds; a cap of 0 = no weights.
      exact_rollout: tokens were drawn from this policy, by float32 products; otherwise every token is weighed.
      prefix_loss: the prefix a branch inherits counts in its loss.
      group_size: rows of one prompt; packing, and objectives that need it, keep them together.
      dtype: of the forward's weights and activations; master weights and gradients stay float32.
      average_decay: of the average of past policies (state.averaged), where there is one.
    """

    temperature: float = 1.0
    never_ids: tuple[int, ...] = ()
    minibatches: int = 1
    epochs: int = 1
    pack_tokens: int = 0
    attention: str = "blocks"
    microbatch: int = 0
    remat: bool = True
    mesh: Mesh | None = None
    condition: str = "marginal"
    importance: str = "token_truncate"
    importance_floor: float = 0.0
    importance_cap: float = 2.0
    exact_rollout: bool = True
    prefix_loss: bool = True
    group_size: int = 1
    dtype: str = "float32"
    average_decay: float = 0.0

    @property
    def shards(self) -> int:
        """Devices among which rows are split."""
        return meshes.shards(self.mesh)

    def unit(self, *, whole_groups: bool) -> int:
        """Rows that a minibatch never separates: those of a prompt where they are packed or the method needs them."""
        return self.group_size if whole_groups or self.pack_tokens else 1

    def check_rows(self, n: int, *, whole_groups: bool):
        """Raises InputError where n trajectories do not split into equal minibatches, shards and microbatches."""
        if mistake := minibatch_mistake(
            self.minibatches,
            n,
            unit=self.unit(whole_groups=whole_groups),
            shards=self.shards if self.pack_tokens else 1,
            microbatch=0 if self.pack_tokens else self.microbatch,
        ):
            raise InputError(mistake)
