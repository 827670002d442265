"""`treepo`: a trajectory against all the groups that it has a prefix in common with (TreePO, arXiv 2508.17445).

    A_r = whiten(mean_d [R_r - mean(group_d)]),     d = 0, 1, ...: the prompt, then what shares r's first segment, ...

Group d > 0 holds the trajectories that pass through the d-th segment of r's path (forks.py); alone there, r is compared
with nobody, and the depth is left out. The plain mean over depths is that of the authors' training script
(`average`; the default of their function weighs by group size). Whitening makes mean 0 and variance 1 over all tokens
of the kept responses. With depth 0 alone this is `reinforce_pp_baseline`.

Ours: depths are counted from branch point to branch point, where the authors count segments of 512 tokens; what is not
kept is in no group and makes no depth.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.advantage import centred
from iiblpo_jax.objectives.credit.forks import NEVER, forks_of_kept
from iiblpo_jax.objectives.reinforce_pp import whitened
from iiblpo_jax.objectives.rows import Rows


def treepo_advantage(o: Rows, *, parent_J: tuple[int, ...]) -> jax.Array:
    """A_r [R] of the module's formula; 0 before whitening where the kept rewards of a prompt are all equal."""

    def by_tree(x_R):
        return x_R.reshape(-1, len(parent_J))

    fork_NJJ = forks_of_kept(by_tree(o.branch_at_R), by_tree(o.keep_R != 0), parent_J)
    # The groups of r, one for every other k: who is still with r where k leaves. Several may leave at once.
    leaves_NJJ = (fork_NJJ > 0) & (fork_NJJ < NEVER)
    at_once_NJJ = (fork_NJJ[..., None] == fork_NJJ[:, :, None]).sum(-1)
    depth_NJJ = jnp.where(leaves_NJJ, 1.0 / at_once_NJJ, 0.0)
    group_NJJJ = fork_NJJ[:, :, None] >= fork_NJJ[..., None]
    mean_NJJ = masked.sum(by_tree(o.reward_R)[:, None, None], group_NJJJ, axis=-1) / group_NJJJ.sum(-1)
    gain_NJ = (depth_NJJ * (by_tree(o.reward_R)[..., None] - mean_NJJ)).sum(-1)
    gain_R, depths_R = (centred(o) + gain_NJ.ravel()), 1.0 + depth_NJJ.sum(-1).ravel()
    differ_R = masked.group_spread(o.reward_R, o.group_R, o.keep_R) > 0
    return whitened(jnp.where(differ_R, gain_R / depths_R, 0.0), o)
