"""What the update takes: its rows and its static settings."""

import dataclasses

import flax.struct
import jax
from jax.sharding import Mesh

from iiblpo_jax import mesh as meshes
from iiblpo_jax.configuration import rollout_is_exact
from iiblpo_jax.errors import InputError
from iiblpo_jax.model.psa import Latent

CONDITIONS = ("marginal", "conditioned")
PACK_TOKENS = 2**13  # nodes of a bin where update.microbatch leaves it open


@flax.struct.dataclass
class UpdateRows:
    """N kept trajectories, rows of a prompt contiguous.

    Attributes:
      tokens_NC: int32, prompt and response contiguous, right padded; C >= prompt + T.
      prompt_len_N: int32.
      mask_NT: 1 on response tokens (t < length).
      own_mask_NT: 1 on tokens the trajectory generated itself.
      rollout_logp_NT: log-prob of the behaviour (after truncation, z on).
      raw_logp_NT: the rollout's temperature-only log-prob.
      advantage_N: float32, [N] or [N,T].
      reward_N, correct_N, ib_score_N: float32.
      group_N: int32 prompt index.
      length_N: int32 response tokens, inherited prefix included.
      trajectory_N, parent_N: int32 ids in the Forest, parent -1 = root.
      branch_at_N: int32, 0 = root.
      ref_logp_NT: log-probs of the reference model, or None.
      latent: where z was on (rows as leading axis), or None without a latent.
      extras: further arrays of one objective, rows leading.
    """

    tokens_NC: jax.Array
    prompt_len_N: jax.Array
    mask_NT: jax.Array
    own_mask_NT: jax.Array
    rollout_logp_NT: jax.Array
    raw_logp_NT: jax.Array
    advantage_N: jax.Array
    reward_N: jax.Array
    correct_N: jax.Array
    ib_score_N: jax.Array
    group_N: jax.Array
    length_N: jax.Array
    trajectory_N: jax.Array
    parent_N: jax.Array
    branch_at_N: jax.Array
    ref_logp_NT: jax.Array | None = None
    latent: Latent | None = None
    extras: dict = flax.struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """Static settings of the update.

    Attributes:
      temperature: the rollout's; log-probs and entropies are those of softmax(logits / temperature).
      minibatches: optimizer steps an epoch.
      epochs: passes over the rollout.
      pack_tokens: nodes of a bin (packing.py), on each shard the unit of a forward and backward pass; 0 = padded rows.
      attention: attention.impl, how packed rows attend.
      microbatch: padded rows in one forward and backward pass; 0 = the whole minibatch.
      remat: recompute activations in the backward pass instead of keeping them.
      mesh: devices among which rows are split (each packs its own bins), and the nodes of a bin; None = one.
      condition: `marginal` scores branch tokens without z and weighs them; `conditioned` injects z again.
      importance_cap: bound of the importance weights; 0 = none.
      exact_rollout: tokens were drawn from this policy but for rounding; otherwise every token is weighed.
      prefix_loss: the prefix a branch inherits counts in its loss.
      group_size: rows of one prompt; packing, and objectives that need it, keep them together.
      dtype: of the forward's weights and activations; master weights and gradients stay float32.
    """

    temperature: float = 1.0
    minibatches: int = 1
    epochs: int = 1
    pack_tokens: int = 0
    attention: str = "blocks"
    microbatch: int = 0
    remat: bool = True
    mesh: Mesh | None = None
    condition: str = "marginal"
    importance_cap: float = 2.0
    exact_rollout: bool = True
    prefix_loss: bool = True
    group_size: int = 1
    dtype: str = "float32"

    @classmethod
    def from_config(cls, config, *, group_size: int, mesh: Mesh | None = None) -> "UpdateSettings":
        """From the config; raises InputError on an unknown latent.condition."""
        if config.latent.condition not in CONDITIONS:
            known = ", ".join(CONDITIONS)
            raise InputError(f"latent.condition={config.latent.condition!r} is not known; choose one of {known}")
        return cls(
            temperature=config.rollout.temperature,
            minibatches=config.update.minibatches,
            epochs=config.update.epochs,
            pack_tokens=pack_tokens(config, shards=meshes.shards(mesh)) if config.update.packed else 0,
            attention=config.attention.impl,
            microbatch=config.update.microbatch,
            remat=config.update.remat,
            mesh=mesh,
            condition=config.latent.condition,
            importance_cap=config.update.importance_cap,
            exact_rollout=rollout_is_exact(config),
            prefix_loss=config.branch.prefix_loss,
            group_size=group_size,
            dtype=config.model.dtype,
        )

    @property
    def shards(self) -> int:
        """Devices among which rows are split."""
        return meshes.shards(self.mesh)

    def unit(self, *, whole_groups: bool) -> int:
        """Rows that a minibatch never separates: those of a prompt where they are packed or the method needs them."""
        return self.group_size if whole_groups or self.pack_tokens else 1

    def check_rows(self, n: int, *, whole_groups: bool):
        """Raises InputError where n trajectories do not split into equal minibatches, shards and microbatches."""
        unit = self.unit(whole_groups=whole_groups)
        what = "trajectories" if unit == 1 else "prompts"
        if n % (unit * self.minibatches):
            raise InputError(
                f"update.minibatches={self.minibatches} does not divide {n // unit} {what}; choose a divisor"
            )
        rows = n // self.minibatches
        if self.pack_tokens and rows // unit % self.shards:
            raise InputError(
                f"the {rows // unit} prompts of a minibatch do not split over mesh.data * mesh.fsdp = {self.shards} "
                "devices; change train.prompts_per_step or update.minibatches"
            )
        if not self.pack_tokens and self.microbatch and rows % self.microbatch:
            raise InputError(
                f"update.microbatch={self.microbatch} does not divide the {rows} rows of a minibatch; choose a divisor"
            )


def pack_tokens(config, *, shards: int = 1) -> int:
    """Nodes of a bin on each of `shards` devices: together those of update.microbatch rows, or PACK_TOKENS each."""
    rows = config.rollout.max_prompt + config.rollout.max_tokens
    return -(-config.update.microbatch * rows // shards) or PACK_TOKENS
