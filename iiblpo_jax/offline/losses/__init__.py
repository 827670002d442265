"""Losses on pairs by name. A new one is a file with a function, a line in LOSSES, and one in those of
config/methods.py, which names it and its arguments where a config is checked."""

from collections.abc import Mapping

from iiblpo_jax.offline.losses.dipo import dipo
from iiblpo_jax.offline.losses.dpo import dpo
from iiblpo_jax.offline.losses.flex_dpo import flex_dpo
from iiblpo_jax.offline.losses.gradient_ascent import gradient_ascent
from iiblpo_jax.offline.losses.interface import Loss, with_retain
from iiblpo_jax.offline.losses.npo import npo
from iiblpo_jax.offline.losses.sft_dpo import sft_dpo

LOSSES = {
    "dpo": dpo,
    "flex_dpo": flex_dpo,
    "sft_dpo": sft_dpo,
    "npo": npo,
    "gradient_ascent": gradient_ascent,
    "dipo": dipo,
}


def make_loss(name: str, options: Mapping, *, retain: float = 0.0) -> Loss:
    """The loss `name` with these options, plus `retain` times the likelihood of what is to be kept."""
    loss = LOSSES[name](**options)
    return with_retain(loss, retain) if retain else loss
