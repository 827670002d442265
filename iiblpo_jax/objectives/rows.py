"""A trajectory as scoring, advantages, losses and the update see it: one row of one struct."""

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.environments.interface import SEEN
from iiblpo_jax.model.logprobs import response_positions
from iiblpo_jax.model.steering.psa import Latent
from iiblpo_jax.rewards.plans import PLAN

# What a method may ask for (Objective.needs); nobody reads what nobody asks for.
REF_LOGP = "ref_logp"  # [R,T] log-probs of the reference model, in Rows.ref_logp_RT
PROMPT_LOGP = "prompt_logp"  # [R] mean log-prob of the prompt's tokens under the policy that sampled, in Rows.extras
NOVELTY = "novelty"  # [R] how new prompt and response are (novelty.py), in Rows.extras
TURN = "turn"  # [R,T] whose turn a token is, as Forest.turn_RT, where turns are answered, in Rows.extras
# and PLAN, [R] numbers that are equal where two responses have the same plan (rewards/plans.py), in Rows.extras
# and SEEN, [R] the turn whose observation first says the gold answer, -1 where none does, in Rows.extras
ON_REQUEST = (REF_LOGP, PROMPT_LOGP, NOVELTY, PLAN, SEEN, TURN)
# In Rows.extras where a teacher is distilled (distillation.py): the final hidden states [R,T,D] with which it would
# emit the tokens of the response, or its K likeliest tokens there and their log-probs [R,T,K].
TEACHER_STATE, TEACHER_TOKEN, TEACHER_LOGP = "teacher_state", "teacher_token", "teacher_logp"
# In Rows.extras where Objective.record asks: of every draw the K likeliest tokens and their log-probs [R,T,K].
TOP_TOKEN, TOP_LOGP = "top_token", "top_logp"


class Rows(struct.PyTreeNode):
    """R trajectories, those of a prompt contiguous; rows lead every array.

    Attributes:
      tokens_RC: int32, prompt and response contiguous, right padded; C >= prompt + T.
      prompt_len_R: int32.
      length_R: int32 response tokens, inherited prefix included; 0 = a branch that was not grown.
      mask_RT: float32, 1 on the response tokens that count in a loss.
      own_mask_RT: the same without the prefix inherited from the parent.
      raw_logp_RT: log-prob in the rollout, at its temperature, z included, before truncation.
      reward_R, correct_R: float32; correct is 0 or 1.
      group_R: int32 prompt index.
      trajectory_R, parent_R: int32 ids in the Forest, parent -1 = root. A parent need not be among the rows.
      branch_at_R: int32 response index of the first own token, 0 = root.
      keep_R: bool, the row is trained on. Statistics of a group run over its kept rows unless a method says otherwise.
      baseline_R: bool, the rows whose mean reward a group's rewards are compared with; None = those of keep_R.
      weight_R: float32, what a trajectory counts for, in the statistics of its group and in its advantage, where
        branches are drawn without replacement (rollout/strata.py); None = all alike.
      ib_score_R: float32, information-bottleneck score, standardised; 0 without an estimator.
      advantage_R: float32, [R] or [R,T]; 0 where nothing was assigned.
      ref_logp_RT: log-probs of the reference model, or None.
      latent: where z was on, or None without a latent.
      extras: further arrays by their names above (ON_REQUEST, TEACHER_*, TOP_*), as far as the method needs them.
    """

    tokens_RC: jax.Array
    prompt_len_R: jax.Array
    length_R: jax.Array
    mask_RT: jax.Array
    own_mask_RT: jax.Array
    raw_logp_RT: jax.Array
    reward_R: jax.Array
    correct_R: jax.Array
    group_R: jax.Array
    trajectory_R: jax.Array
    parent_R: jax.Array
    branch_at_R: jax.Array
    keep_R: jax.Array
    ib_score_R: jax.Array
    advantage_R: jax.Array
    baseline_R: jax.Array | None = None
    weight_R: jax.Array | None = None
    ref_logp_RT: jax.Array | None = None
    latent: Latent | None = None
    extras: dict = struct.field(default_factory=dict)

    @property
    def count(self) -> int:
        """R."""
        return self.prompt_len_R.shape[0]

    @property
    def t(self) -> int:
        """T, the columns of what is said of response tokens."""
        return self.mask_RT.shape[1]

    @property
    def inputs_R(self) -> jax.Array:
        """int32 input positions of the row, one less than its tokens; 0 where no token counts."""
        return jnp.where(self.mask_RT.any(-1), self.prompt_len_R + self.length_R - 1, 0)

    @property
    def advantage_RT(self) -> jax.Array:
        """The advantage of every token."""
        advantage = self.advantage_R if self.advantage_R.ndim == 2 else self.advantage_R[:, None]
        return jnp.broadcast_to(advantage, self.mask_RT.shape)

    @property
    def z_on_RT(self) -> jax.Array:
        """float32, 1 where the input that emitted the token had a latent on."""
        if self.latent is None:
            return jnp.zeros(self.mask_RT.shape, jnp.float32)
        on_RC = (self.latent.segment_BT >= 0) & (self.latent.gamma_BT > 0)
        at_RT = response_positions(self.prompt_len_R, self.t)
        return jnp.take_along_axis(on_RC, at_RT, axis=1, mode="clip").astype(jnp.float32)
