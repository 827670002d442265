"""Credit along a tree: advantages that know what trajectories have in common, in place of one number a trajectory.

A further one is a file here, a line in CREDITS, and a choice of branch.credit in config/defaults.py.
"""

import dataclasses
from collections.abc import Callable

import jax

from iiblpo_jax.objectives.credit.fr3e import fr3e_advantage
from iiblpo_jax.objectives.credit.ib_tpo import ib_tpo_advantage
from iiblpo_jax.objectives.credit.siblings import sibling_advantage
from iiblpo_jax.objectives.credit.tree import tree_advantage
from iiblpo_jax.objectives.credit.treepo import treepo_advantage
from iiblpo_jax.objectives.credit.treerl import treerl_advantage
from iiblpo_jax.objectives.interface import Objective
from iiblpo_jax.objectives.rows import REF_LOGP, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trees:
    """What a credit may know besides the rows.

    Attributes:
      parent_J: who grows on whom in a tree (common/trees.py). Its J trajectories are contiguous, the root first.
      local: weight of the comparison with the parent segment, or with the tree (branch.local_credit).
      ib_coef: weight of IB-TPO's second term (branch.ib_credit).
      plain: the advantages of the method itself.
    """

    parent_J: tuple[int, ...]
    local: float
    ib_coef: float
    plain: Callable[[Rows], jax.Array]


CREDITS: dict[str, Callable[[Rows, Trees], jax.Array]] = {
    "tree": lambda o, trees: tree_advantage(o, parent_J=trees.parent_J, local=trees.local),
    "siblings": lambda o, trees: sibling_advantage(o, tree_size=len(trees.parent_J), local=trees.local),
    "treerl": lambda o, trees: treerl_advantage(o, parent_J=trees.parent_J),
    "treepo": lambda o, trees: treepo_advantage(o, parent_J=trees.parent_J),
    "fr3e": lambda o, trees: fr3e_advantage(o, trees.plain(o), parent_J=trees.parent_J),
    "ib_tpo": lambda o, trees: ib_tpo_advantage(o, parent_J=trees.parent_J, coef=trees.ib_coef),
}


NEEDS = {"ib_tpo": (REF_LOGP,)}  # what rows have to hold besides (Objective.needs)


def with_credit(
    objective: Objective, name: str, *, parent_J: tuple[int, ...], local: float = 1.0, ib_coef: float = 0.1
) -> Objective:
    """The method with advantages along trees, [R,T] or [R]; its policy loss, aggregate and reward shaping stay.

    Args:
      objective: the method.
      name: a key of CREDITS.
      parent_J, local, ib_coef: see Trees.
    """
    trees = Trees(parent_J=parent_J, local=local, ib_coef=ib_coef, plain=objective.advantage)

    def advantage(rows: Rows) -> jax.Array:
        return CREDITS[name](rows, trees)

    needs = tuple(dict.fromkeys((*objective.needs, *NEEDS.get(name, ()))))
    return dataclasses.replace(objective, advantage=advantage, needs=needs)
