"""Policy-optimisation methods by name. A new one is a file with a function, a line in METHODS, and one in those of
config/methods.py, which names it and its arguments where a config is checked."""

import inspect
from collections.abc import Mapping

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import KNOBS
from iiblpo_jax.objectives.arm import arm
from iiblpo_jax.objectives.auxiliary import with_auxiliary, with_distillation
from iiblpo_jax.objectives.bapo import bapo
from iiblpo_jax.objectives.cispo import cispo
from iiblpo_jax.objectives.covariance import clip_cov, kl_cov
from iiblpo_jax.objectives.credit import with_credit
from iiblpo_jax.objectives.dapo import dapo
from iiblpo_jax.objectives.darling import darling
from iiblpo_jax.objectives.disco import disco
from iiblpo_jax.objectives.distillation import Distillation
from iiblpo_jax.objectives.dppo import dppo
from iiblpo_jax.objectives.dr_grpo import dr_grpo
from iiblpo_jax.objectives.entropy_adv import entropy_adv
from iiblpo_jax.objectives.forking_tokens import forking_tokens
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.gspo import gspo
from iiblpo_jax.objectives.imentor import imentor
from iiblpo_jax.objectives.interface import Batch, Objective, TokenLoss, advantages
from iiblpo_jax.objectives.mara import mara
from iiblpo_jax.objectives.overlong import with_overlong
from iiblpo_jax.objectives.own import load_objective
from iiblpo_jax.objectives.reinforce_pp import reinforce_pp, reinforce_pp_baseline
from iiblpo_jax.objectives.rloo import rloo
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.objectives.sapo import sapo
from iiblpo_jax.objectives.spine import spine
from iiblpo_jax.objectives.tspo import tspo
from iiblpo_jax.objectives.ucpo import ucpo

__all__ = [
    "METHODS",
    "Batch",
    "Distillation",
    "Objective",
    "Rows",
    "TokenLoss",
    "advantages",
    "make_objective",
    "with_auxiliary",
    "with_credit",
    "with_distillation",
    "with_overlong",
]

METHODS = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "bapo": bapo,
    "dppo": dppo,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
    "forking_tokens": forking_tokens,
    "spine": spine,
    "entropy_adv": entropy_adv,
    "ucpo": ucpo,
    "arm": arm,
    "imentor": imentor,
    "darling": darling,
    "mara": mara,
    "tspo": tspo,
    "disco": disco,
}


FROM_ELSEWHERE = ("max_tokens", "reference_kl")  # arguments of methods that other sections of a config set


def make_objective(
    name: str, *, max_tokens: int, overrides: Mapping | None = None, path: str = "", reference_kl: float = 0.0
) -> Objective:
    """The method `name` with its published defaults, or the user's own.

    Args:
      name: a key of METHODS.
      max_tokens: longest response the rollout can give (rollout.max_tokens).
      overrides: settings of the method that differ from its defaults, e.g. clip_low, aggregate; None = default.
      path: `file.py:function` of a method in place of `name` (own.py); empty = none.
      reference_kl: coefficient of the KL that `with_auxiliary` will add (update.kl_coef), for rewards that go by it.

    Raises:
      InputError: unknown name, setting or aggregate; a path that leads to no method.
    """
    chosen = {key: value for key, value in (overrides or {}).items() if value is not None}
    if path:
        return load_objective(path, max_tokens=max_tokens, overrides=chosen)
    KNOBS["objective.name"].check("objective.name", name)
    taken = inspect.signature(METHODS[name]).parameters.keys()
    known = taken - set(FROM_ELSEWHERE)
    for key in chosen.keys() - known:
        raise InputError(f"objective.{key} does not apply to {name!r}; it has {', '.join(sorted(known))}")
    KNOBS["objective.aggregate"].check("objective.aggregate", chosen.get("aggregate"))
    given = dict(zip(FROM_ELSEWHERE, (max_tokens, reference_kl), strict=True))
    return METHODS[name](**{key: value for key, value in given.items() if key in taken}, **chosen)
