"""What a loss on cases is: a function of the log-probs of their responses."""

import dataclasses
from collections.abc import Callable

import jax
from flax import struct


class Read(struct.PyTreeNode):
    """What a loss reads of P cases of G responses each.

    Attributes:
      tokens_PG: tokens of every response, the one that ends it included; 0 = there is none.
      logp_PG: log-prob of every response under the policy, nats; differentiable.
    """

    tokens_PG: jax.Array
    logp_PG: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss by its function; hashable.

    Attributes:
      name: of the registry.
      function: Read -> scalar.
      linear: in the log-probs, so that its gradient needs none of them.
    """

    name: str
    function: Callable[[Read], jax.Array]
    linear: bool = False

    def __call__(self, read: Read) -> jax.Array:
        """The loss of P cases."""
        return self.function(read)
