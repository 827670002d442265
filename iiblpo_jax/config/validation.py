"""What a config may hold, and the numbers that follow from it.

A config file is a Python file whose `get_config()` starts from `default_config()` (defaults.py lists every knob) and
changes what it needs. Nothing here imports jax before it has to, so a wrong config is refused at once.
"""

import difflib

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import RunConfig, default_config
from iiblpo_jax.config.derived import kept_per_prompt, mesh_shape
from iiblpo_jax.config.files import flatten, unknown_key

CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "rollout.dtype": ("float32", "bfloat16"),
    "rollout.weights": ("", "int8"),
    "rollout.kv_dtype": ("", "float32", "bfloat16"),
    "attention.impl": ("blocks", "pallas"),
    "branch.points": ("shared", "distinct"),
    "branch.parent": ("root", "previous"),
    "branch.credit": ("trajectory", "tree", "siblings"),
    "latent.kind": ("gaussian", "codes"),
    "latent.siblings": ("independent", "stratified"),
    "latent.condition": ("marginal", "conditioned"),
    "ib.estimator": ("likelihood", "entropy", "none"),
    "ib.compression": ("description", "information"),
    "ib.filter": ("score", "contrast", "random", "none"),
    "objective.aggregate": ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"),
    "optim.schedule": ("constant", "cosine"),
}
AT_LEAST_ONE = (
    "data.verifiers train.steps train.prompts_per_step train.max_bad_steps "
    "rollout.roots rollout.slots rollout.refill_at rollout.max_prompt rollout.max_tokens branch.depth "
    "branch.min_suffix latent.hidden latent.steps latent.batch latent.prompts latent.samples update.minibatches "
    "update.epochs eval.problems eval.samples log.every checkpoint.keep"
).split()
NOT_NEGATIVE = (
    "rollout.top_k rollout.min_tokens branch.k branch.min_entropy branch.local_credit latent.z latent.window "
    "latent.kl_weight latent.free_bits latent.kl_warmup latent.psa_steps latent.prior_power psa.strength ib.beta "
    "ib.reward_coef ib.surprise ib.entropy_coef ib.length_cost objective.clip_low objective.clip_high optim.lr "
    "optim.psa_lr optim.weight_decay optim.warmup update.microbatch update.importance_cap update.kl_coef "
    "eval.temperature eval.every checkpoint.every log.rollouts"
).split()
POSITIVE = "data.verifier_timeout rollout.temperature psa.half_life latent.lr latent.psa_lr optim.clip_norm".split()
SHARE = "rollout.top_p branch.fraction eval.top_p".split()  # in (0, 1]
BELOW_ONE = "rollout.min_p latent.prior_weight optim.b1 optim.b2".split()  # in [0, 1)


def validate(config: RunConfig) -> None:
    """Refuses a config that could not run, before anything is loaded or compiled.

    Raises:
      InputError: one line that names the key and the mend.
    """
    flat, known = flatten(config), flatten(default_config())
    for key in flat:
        if key not in known:
            raise unknown_key(key, known)
    for key in known:
        if key not in flat:
            raise InputError(f"config has no {key}; start it from iiblpo_jax.config.validation.default_config()")
    _check_values(flat)
    _check_rollout(config)
    _check_update(config)
    _check_recorded(config)
    _check_eval(config)
    mesh_shape(config.mesh, devices=None)


def _check_values(flat: dict) -> None:
    for key, allowed in CHOICES.items():
        if flat[key] is not None and flat[key] not in allowed:
            near = difflib.get_close_matches(str(flat[key]), allowed, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"{key} = {flat[key]!r}{hint}; use one of {', '.join(x or repr(x) for x in allowed)}")
    rules = [
        (AT_LEAST_ONE, lambda x: x >= 1, "1 or more"),
        (NOT_NEGATIVE, lambda x: x >= 0, "0 or more"),
        (POSITIVE, lambda x: x > 0, "a number above 0"),
        (SHARE, lambda x: 0 < x <= 1, "a number above 0 and at most 1"),
        (BELOW_ONE, lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    ]
    for keys, holds, wanted in rules:
        for key in keys:
            if flat[key] is not None and not holds(flat[key]):
                raise InputError(f"{key} = {flat[key]}; use {wanted}")


def _check_rollout(config: RunConfig) -> None:
    rollout = config.rollout
    if rollout.refill_at > rollout.slots:
        raise InputError(
            f"rollout.refill_at = {rollout.refill_at} exceeds rollout.slots = {rollout.slots}, so slots would never be "
            f"refilled; use at most {rollout.slots}"
        )
    if rollout.min_tokens > rollout.max_tokens:
        raise InputError(
            f"rollout.min_tokens = {rollout.min_tokens} exceeds rollout.max_tokens = {rollout.max_tokens}; lower it"
        )
    if config.latent.kind == "gaussian" and config.latent.prior_power == 0:
        raise InputError("latent.prior_power = 0 gives a Gaussian no width; use a number above 0, or latent.kind=codes")
    if config.psa.layers != "all" and not (config.psa.layers.isdecimal() and int(config.psa.layers) > 0):
        raise InputError(f"psa.layers = {config.psa.layers!r}; use all, or the number of last layers, such as 4")
    if config.latent.kind == "codes" and config.latent.z > 0 and config.latent.window == 0:
        raise InputError("latent.kind = codes needs latent.window, the tokens that a code is about; set it, such as 4")
    if not (config.task.name or config.task.mix):
        raise InputError("task.name is empty; name a task, such as arithmetic")
    for name, weight in config.task.mix.items():
        if not (isinstance(weight, int | float) and weight > 0):
            raise InputError(f"task.mix gives {name} the weight {weight!r}; use a number above 0")


def _check_update(config: RunConfig) -> None:
    ib, update, prompts = config.ib, config.update, config.train.prompts_per_step
    ranks = ib.filter == "score" or (ib.filter == "contrast" and ib.keep > 0)
    if ib.estimator == "none" and (ranks or ib.reward_coef > 0):
        raise InputError(
            "ib.estimator = none leaves no score for ib.filter = score, for contrast with ib.keep, or for "
            "ib.reward_coef; set ib.estimator=likelihood or entropy, or ib.keep=0, ib.reward_coef=0 and another filter"
        )
    if config.branch.credit == "siblings" and config.branch.parent != "root":
        raise InputError(
            "branch.credit = siblings compares branches of one root and branch.parent = previous grows more on them; "
            "set branch.parent=root, or branch.credit=tree"
        )
    kept = prompts * kept_per_prompt(config)
    if kept % update.minibatches:
        raise InputError(
            f"update.minibatches = {update.minibatches} does not divide the {kept} trajectories of an update "
            f"(train.prompts_per_step * kept); use one of {_divisors(kept)}"
        )
    if update.packed and prompts % update.minibatches:
        raise InputError(
            f"update.minibatches = {update.minibatches} does not divide train.prompts_per_step = {prompts}, and packed "
            f"minibatches hold whole prompts; use one of {_divisors(prompts)}, or update.packed=False"
        )
    rows = kept // update.minibatches
    if not update.packed and update.microbatch and rows % update.microbatch:
        raise InputError(
            f"update.microbatch = {update.microbatch} does not divide the {rows} trajectories of a minibatch; use one "
            f"of {_divisors(rows)}, or 0 for the whole minibatch"
        )


def _check_recorded(config: RunConfig) -> None:
    if not config.data.recorded:
        return
    if config.latent.z > 0 and config.latent.condition == "conditioned":
        raise InputError(
            "latent.condition = conditioned needs the z of every branch, which recorded rollouts (data.recorded) do "
            "not have; set latent.condition=marginal"
        )
    if config.ib.estimator == "entropy":
        raise InputError(
            "ib.estimator = entropy reads entropies, which recorded rollouts (data.recorded) do not have; set "
            "ib.estimator=likelihood or none"
        )


def _check_eval(config: RunConfig) -> None:
    evaluation = config.eval
    bad = [k for k in evaluation.k if not (isinstance(k, int) and 1 <= k <= evaluation.samples)]
    if bad:
        raise InputError(
            f"eval.k contains {bad[0]!r}; pass@k needs whole numbers from 1 to eval.samples = {evaluation.samples}"
        )
    if evaluation.temperature == 0 and evaluation.samples > 1:
        raise InputError(
            f"eval.temperature = 0 makes all eval.samples = {evaluation.samples} samples equal; use eval.samples=1, or "
            "a temperature above 0 with eval.greedy=True"
        )


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
