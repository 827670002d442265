"""The Forest: everything a rollout produces, and the only thing that travels between stages.

A prompt grows M trees. A tree is one root trajectory and its branches, which may have branches themselves: J = 1 + K +
... + K^depth trajectories, numbered depth first (common/trees.py). Trajectory r = (p*M + m)*J + j, with j = 0 the root,
so that all trajectories of a prompt are contiguous and `x_R.reshape(P, -1)` is its group.

    root      a b c d e f <eos>          branch_at 0, parent -1
    branch    a b c|x y <eos>            branch_at 3, parent = the root: tokens [0,3) are inherited, own from 3 on
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from iiblpo_jax.common.padded import join
from iiblpo_jax.devices.mesh import to_host

LENGTH, STOP, DONE = 0, 1, 2  # finish reasons: ran into max_tokens, sampled a stop token, ended by its environment
FINISH_NAMES = ("length", "eos", "done")


class Forest(struct.PyTreeNode):
    """Trajectories as whole paths: a branch's row repeats its inherited prefix, `own_RT` tells the rest apart.

    Attributes:
      prompt_PS, prompt_len_P: right-padded prompt tokens and their lengths.
      tokens_RT: response tokens at their response index; 0 from `length_R` on.
      raw_logp_RT: log-probability at the sampling temperature, z included, before truncation, nats.
      entropy_RT: entropy of the emitting distribution at the sampling temperature over the full vocabulary, nats.
      length_R: response tokens, inherited prefix and stop token included.
      finish_R: LENGTH, STOP or DONE.
      parent_R: trajectory a branch grew from, -1 for roots.
      branch_at_R: response index t* of a branch's first own token, 0 for roots.
      z_RZ: latent of a branch, zeros for roots (Z may be 0).
      fallback_R: branch whose parent had no candidate position: a plain resample without z.
      left_R: probability, as sampled, of the tokens among which a branch without replacement drew its first own one: 1
        less that of those which its parent and its elder siblings drew at t*. 0 = there was none, and it drew like
        any other. 1 for roots and with replacement.
      top_token_RTK, top_logp_RTK: the K likeliest tokens of every position, likeliest first, with log-probabilities as
        in raw_logp_RT; None where the rollout did not note them (Sampling.record).
      codes_PN: tokens of the codes (steering/code_tokens.py) of every prompt, in the order in which its trees take
        them, one after the other and again from the first (draws.shared_out); None without codes. `prompt_PS` is the
        plain prompt even so.
      turn_RT: number of the turn that a token belongs to; -k for those of the k-th observation, which the policy did
        not draw (turns.py). None where a response is one turn.
    """

    prompt_PS: jax.Array
    prompt_len_P: jax.Array
    tokens_RT: jax.Array
    raw_logp_RT: jax.Array
    entropy_RT: jax.Array
    length_R: jax.Array
    finish_R: jax.Array
    parent_R: jax.Array
    branch_at_R: jax.Array
    z_RZ: jax.Array
    fallback_R: jax.Array
    left_R: jax.Array
    top_token_RTK: jax.Array | None = None
    top_logp_RTK: jax.Array | None = None
    codes_PN: jax.Array | None = None
    turn_RT: jax.Array | None = None

    @property
    def group_size(self) -> int:
        """Trajectories of one prompt, M*J."""
        return self.length_R.shape[0] // self.prompt_len_P.shape[0]

    @property
    def group_R(self) -> jax.Array:
        """Prompt index of every trajectory."""
        return jnp.arange(self.length_R.shape[0]) // self.group_size

    def code_R(self, trees: int, ahead: int = 0) -> jax.Array:
        """The code token of every trajectory, that of its tree.

        Args:
          trees: M, of a prompt.
          ahead: in its place the one so many places later in the prompt's order.

        Raises:
          ValueError: it was grown without codes.
        """
        if self.codes_PN is None:
            raise ValueError("a Forest without codes")
        size = self.group_size // trees
        nth_G = np.arange(self.group_size) // size + ahead
        return self.codes_PN[:, nth_G % self.codes_PN.shape[1]].ravel()

    def by_prompt(self, x_R: jax.Array) -> jax.Array:
        """[P, G, ...]: what is said of the trajectories [R, ...], a group a prompt."""
        return x_R.reshape(-1, self.group_size, *x_R.shape[1:])

    @property
    def emitted_RT(self) -> jax.Array:
        """Tokens of the response, inherited prefix and observations included."""
        return jnp.arange(self.tokens_RT.shape[1]) < self.length_R[:, None]

    @property
    def mask_RT(self) -> jax.Array:
        """Tokens of the response that the policy drew, inherited prefix included."""
        return self.emitted_RT if self.turn_RT is None else self.emitted_RT & (self.turn_RT >= 0)

    @property
    def own_RT(self) -> jax.Array:
        """Tokens the trajectory generated itself; over a tree every sampled token is owned once."""
        return self.mask_RT & (jnp.arange(self.tokens_RT.shape[1]) >= self.branch_at_R[:, None])

    @property
    def sequences_RC(self) -> jax.Array:
        """Rows [prompt, response], contiguous and right padded with 0, C = S + T."""
        prompt_RS, prompt_len_R = self.prompt_PS[self.group_R], self.prompt_len_P[self.group_R]
        return join(prompt_RS, prompt_len_R, self.tokens_RT, self.length_R)

    def latent_path(self, levels: int) -> tuple[jax.Array, jax.Array]:
        """Latents along each trajectory's path, root side first, for `psa.latent_inputs`.

        Args:
          levels: most branches on a path (Branching.levels).

        Returns:
          z_RJZ and branch_at_RJ; 0 in branch_at where there is no such level, -t* where one switches the z of those
          before it off (a resample without z on a branch).
        """
        on_branch_R = jnp.where(self.parent_R >= 0, self.parent_R[self.parent_R], -1) >= 0
        begins_R = jnp.where(self.fallback_R, jnp.where(on_branch_R, -self.branch_at_R, 0), self.branch_at_R)
        at, z, here = [], [], jnp.arange(self.length_R.shape[0])
        for _ in range(levels):
            exists = here >= 0
            at.append(jnp.where(exists, begins_R[here], 0))
            z.append(self.z_RZ[here])
            here = jnp.where(exists, self.parent_R[here], -1)
        return jnp.stack(z[::-1], 1), jnp.stack(at[::-1], 1)


def by_token(x_RT: jax.Array, forest: Forest) -> list[np.ndarray]:
    """What is said of tokens, such as `forest.raw_logp_RT`: each trajectory's [length], stop token included, on the
    host of every process."""
    x_RT, length_R = to_host((x_RT, forest.length_R))
    return [row[:end] for row, end in zip(x_RT, length_R, strict=True)]


def response_tokens(forest: Forest, *, stop: bool = False, observations: bool = True) -> list[list[int]]:
    """Each trajectory's response as a list of ids, in every process; `stop` keeps the stop token, and without
    `observations` there is only what the policy drew."""
    tokens_RT, length_R, finish_R = to_host((forest.tokens_RT, forest.length_R, forest.finish_R))
    ends_R = length_R if stop else length_R - (finish_R == STOP)
    if observations or forest.turn_RT is None:
        return [row[:end].tolist() for row, end in zip(tokens_RT, ends_R, strict=True)]
    mask_RT = to_host(forest.mask_RT)
    return [row[:end][mask[:end]].tolist() for row, end, mask in zip(tokens_RT, ends_R, mask_RT, strict=True)]
