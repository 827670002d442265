"""What the update takes: its rows and its static settings."""

import dataclasses

import flax.struct
import jax

from iiblpo_jax.errors import InputError
from iiblpo_jax.model.psa import Latent

CONDITIONS = ("marginal", "conditioned")


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
      microbatch: trajectories in one forward and backward pass; 0 = the whole minibatch.
      condition: `marginal` scores branch tokens without z and weighs them; `conditioned` injects z again.
      importance_cap: bound of the weights of `marginal`; 0 = no weights.
      prefix_loss: the prefix a branch inherits counts in its loss.
      group_size: rows of one prompt; used by objectives that need whole groups.
      dtype: of the forward's weights and activations; master weights and gradients stay float32.
    """

    temperature: float = 1.0
    minibatches: int = 1
    epochs: int = 1
    microbatch: int = 0
    condition: str = "marginal"
    importance_cap: float = 2.0
    prefix_loss: bool = True
    group_size: int = 1
    dtype: str = "float32"

    @classmethod
    def from_config(cls, config, *, group_size: int) -> "UpdateSettings":
        """From the config; raises InputError on an unknown latent.condition."""
        if config.latent.condition not in CONDITIONS:
            known = ", ".join(CONDITIONS)
            raise InputError(f"latent.condition={config.latent.condition!r} is not known; choose one of {known}")
        return cls(
            temperature=config.rollout.temperature,
            minibatches=config.update.minibatches,
            epochs=config.update.epochs,
            microbatch=config.update.microbatch,
            condition=config.latent.condition,
            importance_cap=config.update.importance_cap,
            prefix_loss=config.branch.prefix_loss,
            group_size=group_size,
            dtype=config.model.dtype,
        )

    def check_rows(self, n: int, *, whole_groups: bool):
        """Raises InputError where n trajectories do not split into equal minibatches and microbatches."""
        unit, what = (self.group_size, "prompts") if whole_groups else (1, "trajectories")
        if n % (unit * self.minibatches):
            raise InputError(
                f"update.minibatches={self.minibatches} does not divide {n // unit} {what}; choose a divisor"
            )
        rows = n // self.minibatches
        if self.microbatch and rows % self.microbatch:
            raise InputError(
                f"update.microbatch={self.microbatch} does not divide the {rows} rows of a minibatch; choose a divisor"
            )

    def with_microbatch(self, n: int) -> "UpdateSettings":
        """These settings with the microbatch of an update on n rows spelled out."""
        return dataclasses.replace(self, microbatch=self.microbatch or n // self.minibatches)
