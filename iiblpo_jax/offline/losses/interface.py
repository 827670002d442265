"""What a loss on cases is: a function of a few numbers of each of their responses."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

CHOSEN, REJECTED, RETAIN = 0, 1, 2  # roles of the responses of a case, in their order; there may be fewer


class Read(struct.PyTreeNode):
    """What a loss reads of P cases of G responses each. An array that the loss does not ask for holds zeros.

    Attributes:
      tokens_PG: tokens of every response, the one that ends it included; 0 = there is none.
      logp_PG: log-prob of every response under the policy, nats; differentiable.
      shift_PG: sum over its tokens of contrast.shift; differentiable.
      reference_PG: log-prob under the reference (constant).
    """

    tokens_PG: jax.Array
    logp_PG: jax.Array
    shift_PG: jax.Array
    reference_PG: jax.Array

    def there(self, *roles: int) -> jax.Array:
        """bool [P]; the case has responses in all of these roles."""
        return (self.tokens_PG[:, list(roles)] > 0).all(1)

    @property
    def gain_PG(self) -> jax.Array:
        """log pi / pi_ref of every response."""
        return self.logp_PG - self.reference_PG


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss by its function; hashable.

    Attributes:
      name: of the registry.
      function: Read -> scalar.
      linear: in the log-probs, so that its gradient needs none of them.
      reference: it reads log-probs of the reference.
      contrast: it reads shifts, with this (alpha, k); None = it does not.
    """

    name: str
    function: Callable[[Read], jax.Array]
    linear: bool = False
    reference: bool = False
    contrast: tuple[float, int] | None = None

    @property
    def needs_reference(self) -> bool:
        """Whether the reference is read at all."""
        return self.reference or self.contrast is not None

    def __call__(self, read: Read) -> jax.Array:
        """The loss of P cases."""
        return self.function(read)


def likelihood(read: Read, role: int) -> jax.Array:
    """Mean negative log-likelihood of a token of the responses in a role."""
    return -read.logp_PG[:, role].sum() / jnp.maximum(read.tokens_PG[:, role].sum(), 1.0)


def with_retain(loss: Loss, coef: float) -> Loss:
    """The loss plus coef * likelihood of the responses that are to be kept, the third ones of the cases."""

    def both(read: Read) -> jax.Array:
        return loss.function(read) + coef * likelihood(read, RETAIN)

    return dataclasses.replace(loss, function=both)
