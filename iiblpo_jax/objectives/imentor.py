"""i-MENTOR (Gao et al., arXiv 2505.17621): of wrong answers, new ones are worth more.

    A_i = (R_i - mean_g) / (std_g + 1e-6) + b_i
    b_i = bonus * (e_i - min e) / (max e - min e) * decay / (decay + step)   of wrong answers,   0 of right ones

e is how new prompt and response are together (novelty.py), before this rollout is learnt from; minimum and maximum are
those of what is kept of the batch, and step counts rollouts. bonus .5 and decay 40 are the released code's, as are the
size of the embedding and the learning rate. The bonus comes after the group's normalisation, so a group of wrong
answers teaches too, where the filter lets it through (ib.filter=none).

Ours: the released code trains its embedding and a batch normalisation with f, so that what f is to predict moves; here
they are frozen, or gone: divided by the square root of the length instead. f learns from the answers that are trained
on. bonus = 0 is GRPO, and there is no network.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Objective
from iiblpo_jax.objectives.rows import NOVELTY, Rows


def imentor(
    *, max_tokens: int, clip_low=0.2, clip_high=0.2, aggregate="token-mean", bonus=0.5, decay=40.0
) -> Objective:
    base = dataclasses.replace(
        grpo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate), name="imentor"
    )
    if not bonus:
        return base
    return dataclasses.replace(base, bonus=partial(novelty_bonus, bonus=bonus, decay=decay), needs=(NOVELTY,))


def novelty_bonus(o: Rows, step: jax.Array | None, *, bonus: float, decay: float) -> jax.Array:
    """b [R] of the module's formula; `step` None counts as 0."""
    error_R, kept_R = o.extras[NOVELTY], o.keep_R != 0
    least = jnp.min(jnp.where(kept_R, error_R, jnp.inf))
    share_R = (error_R - least) / jnp.maximum(masked.spread(error_R, kept_R), 1e-30)
    fades = decay / (decay + (0 if step is None else step))
    return jnp.where(kept_R & (o.correct_R == 0), bonus * fades * share_R, 0.0)
