"""What the update takes: its rows and its static settings."""

import flax.struct
import jax

from iiblpo_jax.model.steering.psa import Latent


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
