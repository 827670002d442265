"""The shape of a tree of trajectories: a root, k branches on it, k on each of them, down to `depth` levels.

Trajectories of a tree are numbered depth first, and a parent comes before its branches:

    k = 2, depth = 2        0              j          0  1  2  3  4  5  6
                       1         4         parent_J  -1  0  1  1  0  4  4
                      2 3       5 6        level_J    0  1  2  2  1  2  2
                                           nth_J      0  0  0  1  1  0  1
"""

import dataclasses
import functools


@dataclasses.dataclass(frozen=True)
class TreeShape:
    """Attributes, one entry a trajectory:

    parent_J: the trajectory it grows on, -1 for the root.
    level_J: branches between the root and it, itself included.
    nth_J: its number among the branches of its parent, from 0; 0 for the root.
    """

    parent_J: tuple[int, ...]
    level_J: tuple[int, ...]
    nth_J: tuple[int, ...]


def tree_size(k: int, depth: int) -> int:
    """Trajectories of a tree, 1 + k + k^2 + ... + k^depth."""
    return sum(k**level for level in range(depth + 1))


def levels(k: int, depth: int, parent: str) -> int:
    """Levels that a tree of `branch.k`, `branch.depth` and `branch.parent` has below its root."""
    return 0 if k == 0 else 1 if parent == "root" else depth


@functools.cache
def tree_shape(k: int, depth: int) -> TreeShape:
    """Who grows on whom."""
    parent_J, level_J, nth_J = [], [], []

    def grow(parent: int, level: int, nth: int) -> None:
        j = len(parent_J)
        parent_J.append(parent)
        level_J.append(level)
        nth_J.append(nth)
        for i in range(k if level < depth else 0):
            grow(j, level + 1, i)

    grow(-1, 0, 0)
    return TreeShape(tuple(parent_J), tuple(level_J), tuple(nth_J))
