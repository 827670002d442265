"""What a config may hold: every value on its own, as config/defaults.py describes it, and values with one another.

A config file is a Python file whose `get_config()` starts from `default_config()` and changes what it needs. Nothing
here imports jax, so a wrong config is refused at once, and all that is wrong with it is said at once.
"""

import math
from collections.abc import Iterator, Mapping

from iiblpo_jax.common import own_code
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config import files
from iiblpo_jax.config.defaults import (
    KNOBS,
    LORA_TARGETS,
    OF_ADVANTAGES,
    OF_RIGHT,
    UNBOUNDED,
    UNGROUPED,
    WHOLE_GROUPS,
    RunConfig,
)
from iiblpo_jax.config.derived import (
    decay_steps,
    divisors,
    group_size,
    kept_per_prompt,
    mesh_shape,
    minibatch_mistake,
    selective_branches,
    teaches,
    without_replacement,
)
from iiblpo_jax.config.files import flatten, unknown_key
from iiblpo_jax.config.knobs import Knob, nearest, shown
from iiblpo_jax.config.methods import LOSSES, METHODS


def validate(config: RunConfig) -> None:
    """Refuses a config that could not run, before anything is loaded or compiled.

    Raises:
      InputError: one line that names every wrong key, each with the mend.
    """
    if found := mistakes(config):
        raise InputError.of(found)


def mistakes(config: RunConfig) -> list[str]:
    """One message for everything that is wrong with a config; none if it can run.

    Values are compared with one another only where each of them could be right.
    """
    flat = flatten(config)
    found = [str(unknown_key(key, KNOBS)) for key in flat if key not in KNOBS]
    absent = [key for key in KNOBS if key not in flat]
    found += [f"config has no {key}; start it from iiblpo_jax.defaults.default_config()" for key in absent]
    lines = {key: KNOBS[key].line(key, value) for key, value in flat.items() if key in KNOBS}
    found += filter(None, lines.values())
    wrong = {*absent, *(key for key, line in lines.items() if line)}
    return found + [line for check, keys in CHECKS.items() if wrong.isdisjoint(keys.split()) for line in check(config)]


def _slots(config: RunConfig) -> Iterator[str]:
    slots, refill_at = config.rollout.slots, config.rollout.refill_at
    if refill_at > slots:
        yield (
            f"rollout.refill_at = {refill_at} exceeds rollout.slots = {slots}, so slots would never be refilled; use "
            f"at most {slots}"
        )


def _lengths(config: RunConfig) -> Iterator[str]:
    low, high = config.rollout.min_tokens, config.rollout.max_tokens
    if low > high:
        yield f"rollout.min_tokens = {low} exceeds rollout.max_tokens = {high}; lower it"


def _latent(config: RunConfig) -> Iterator[str]:
    latent = config.latent
    if latent.kind == "gaussian" and latent.prior_power == 0:
        yield "latent.prior_power = 0 gives a Gaussian no width; use a number above 0, or latent.kind=codes"
    if latent.kind == "codes" and latent.z > 0 and latent.window == 0:
        yield "latent.kind = codes needs latent.window, the tokens that a code is about; set it, such as 4"


def _lora(config: RunConfig) -> Iterator[str]:
    lora = config.lora
    if lora.rank == 0:
        for key, value in {"base": lora.base, "path": lora.path}.items():
            if value != KNOBS[f"lora.{key}"].default:
                yield f"lora.{key} = {value} is of an adapter and lora.rank = 0 trains none; set lora.rank, such as 16"
        return
    if not lora.targets:
        yield "lora.targets is empty, so nothing would be trained; name projections, such as q_proj,v_proj"
    for name in lora.targets:
        if name not in LORA_TARGETS:
            near = nearest(name, LORA_TARGETS)
            yield f"lora.targets contains {shown(name)}{near}; use some of {', '.join(LORA_TARGETS)}"
    if len({*lora.targets}) < len(lora.targets):
        yield "lora.targets names a projection twice; name each once"


def _codes(config: RunConfig) -> Iterator[str]:
    codes, objective = config.codes, config.objective
    if codes.n and config.lora.rank:
        yield (
            f"codes.n = {codes.n} makes rows of the embedding, which lora.rank = {config.lora.rank} leaves frozen; set "
            "codes.n=0, or lora.rank=0"
        )
    if codes.n == 1:
        yield "codes.n = 1 is one code for all, which no response can tell from others; use 2 to 16, or 0 for none"
    if codes.dependence == 0:
        return
    paid = f"codes.dependence = {codes.dependence}"
    if codes.n == 0:
        yield f"{paid} pays for telling codes apart, and codes.n = 0 has none; set codes.n=4, or codes.dependence=0"
    elif codes.others == 0:
        yield f"{paid} compares codes, and codes.others = 0 reads none besides a response's own; set codes.others=3"
    if objective.name in WHOLE_GROUPS and not objective.path:
        yield (
            f"objective.name = {objective.name} contrasts right and wrong trajectories without advantages, which "
            f"{paid} goes into; set codes.dependence=0"
        )


def _tasks(config: RunConfig) -> Iterator[str]:
    if not (config.task.name or config.task.mix or config.task.path):
        yield "task.name is empty; name a task, such as arithmetic"
    for name, weight in config.task.mix.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not (number and 0 < weight < math.inf):
            yield f"task.mix gives {name} the weight {shown(weight)}; use a number above 0"


def _own_code(config: RunConfig) -> Iterator[str]:
    for key, reference in files.own_code_of(config).items():
        if wrong := own_code.mistake(reference):
            yield f"{key} = {shown(reference)}: {wrong}"


def _method(config: RunConfig) -> Iterator[str]:
    if config.objective.path:
        return  # what it takes is known once it is loaded
    name = config.objective.name
    yield from _options("objective.options", config.objective.options, name, METHODS[name])


def _loss(config: RunConfig) -> Iterator[str]:
    name = config.offline.loss
    yield from _options("offline.options", config.offline.options, name, LOSSES[name])


def _options(key: str, options: Mapping, name: str, known: Mapping[str, Knob]) -> Iterator[str]:
    for option, value in options.items():
        if option not in known:
            listed = f"it has {', '.join(known)}" if known else "it has none"
            yield f"{key}.{option}{nearest(option, known)} does not apply to {name}; {listed}"
        elif line := known[option].line(f"{key}.{option}", value):
            yield line


def _modes(config: RunConfig) -> Iterator[str]:
    if config.objective.name != "mara" or config.objective.path:
        return
    if config.update.kl_coef == 0:
        yield (
            "objective.name = mara makes the optimum of a reward with a KL uniform over right answers, and "
            "update.kl_coef = 0 leaves no KL; use a number above 0, such as 0.001"
        )
    if config.advantage.weight != "none":
        yield (
            "objective.name = mara sets rewards against the KL, and advantage.weight = "
            f"{config.advantage.weight} would scale them alone; set advantage.weight=none"
        )


def _score(config: RunConfig) -> Iterator[str]:
    ib = config.ib
    ranks = ib.filter == "score" or (ib.filter == "contrast" and ib.keep > 0)
    if ib.estimator == "none" and (ranks or ib.reward_coef > 0):
        yield (
            "ib.estimator = none leaves no score for ib.filter = score, for contrast with ib.keep, or for "
            "ib.reward_coef; set ib.estimator=likelihood or entropy, or ib.keep=0, ib.reward_coef=0 and another filter"
        )


def _points(config: RunConfig) -> Iterator[str]:
    branch, longest = config.branch, config.rollout.max_tokens
    if branch.k == 0:
        return
    if branch.at == "segments" and branch.segment >= longest:
        yield (
            f"branch.segment = {branch.segment} is not below rollout.max_tokens = {longest}, so no response reaches "
            f"the first point of branch.at = segments; use a part of it, such as {max(1, longest // 8)}"
        )
    if branch.per_point > 1 and branch.points == "shared":
        yield (
            f"branch.per_point = {branch.per_point} shares out distinct points and branch.points = shared has one; set "
            "branch.points=distinct, or branch.per_point=1"
        )
    elif branch.k % branch.per_point:
        more = -(-branch.k // branch.per_point) * branch.per_point
        yield (
            f"branch.per_point = {branch.per_point} does not divide branch.k = {branch.k}; use branch.k={more}, or one "
            f"of {', '.join(map(str, divisors(branch.k)))} for branch.per_point"
        )


def _credit(config: RunConfig) -> Iterator[str]:
    credit = config.branch.credit
    if credit == "siblings" and config.branch.parent != "root":
        yield (
            "branch.credit = siblings compares branches of one root and branch.parent = previous grows more on them; "
            "set branch.parent=root, or branch.credit=tree"
        )
    named = config.objective.name in OF_ADVANTAGES and not config.objective.path
    if named and config.branch.k > 0 and credit not in ("trajectory", "fr3e"):
        yield (
            f"branch.credit = {credit} puts advantages along trees in place of those that objective.name = "
            f"{config.objective.name} is about; set branch.credit=trajectory, or another objective.name"
        )
    if credit not in ("trajectory", "siblings") and selective_branches(config):
        yield (
            f"branch.credit = {credit} takes what became of a root's branches for the value of what they inherit, and "
            "with branch.solved = False or branch.min_entropy above 0 only roots chosen by what they said have any; "
            "set branch.credit=siblings or trajectory"
        )
    if credit not in ("trajectory", "tree") and without_replacement(config):
        yield (
            f"branch.credit = {credit} takes branches for samples of what follows t*, and with branch.replace = False "
            "they are none; set branch.replace=True, or branch.credit=tree or trajectory"
        )


def _replace(config: RunConfig) -> Iterator[str]:
    if not without_replacement(config):
        return
    if selective_branches(config):
        yield (
            "branch.replace = False lets a root and its branches stand for the policy together, and with branch.solved "
            "= False or branch.min_entropy above 0 only roots chosen by what they said have any; set "
            "branch.replace=True, or branch.solved=True and branch.min_entropy=0"
        )
    if config.latent.z > 0 and config.psa.strength > 0:
        yield (
            "branch.replace = False weighs branches by the policy's probabilities at t*, and with latent.z = "
            f"{config.latent.z} they begin with another distribution; set branch.replace=True, or latent.z=0"
        )
    if config.objective.name in WHOLE_GROUPS and not config.objective.path:
        yield (
            f"objective.name = {config.objective.name} contrasts right and wrong trajectories without advantages, "
            "which the weights of branch.replace = False go into; set branch.replace=True"
        )


def _overlong(config: RunConfig) -> Iterator[str]:
    buffer, longest = config.reward.overlong_buffer, config.rollout.max_tokens
    if config.reward.overlong == "shape" and buffer > longest:
        yield (
            f"reward.overlong_buffer = {buffer} exceeds rollout.max_tokens = {longest}, the longest response; use a "
            f"part of it, such as {max(1, longest // 5)}"
        )


def _proxy(config: RunConfig) -> Iterator[str]:
    reward = config.reward
    if not reward.model:
        if reward.ibl_coef > 0:
            yield (
                f"reward.ibl_coef = {reward.ibl_coef} is off a reward model's reward and reward.model names none; set "
                "reward.model, or reward.ibl_coef=0"
            )
        return
    if config.advantage.weight != "none":
        yield (
            f"advantage.weight = {config.advantage.weight} weighs prompts by their share of right answers, and with "
            "reward.model rewards are no such share; set advantage.weight=none"
        )
    if config.objective.name in OF_RIGHT and not config.objective.path:
        yield (
            f"objective.name = {config.objective.name} asks the verifier which answers are right, and with "
            "reward.model a model says what they are worth; use another objective.name"
        )
    if config.train.refills:
        yield (
            f"train.refills = {config.train.refills} looks for prompts on whose answers the verifier differs, and with "
            "reward.model a model pays for them; set train.refills=0"
        )
    if config.codes.dependence > 0:
        yield (
            f"codes.dependence = {config.codes.dependence} pays answers that the verifier finds right, and with "
            "reward.model a model says what they are worth; set codes.dependence=0"
        )
    if config.ib.filter in ("score", "random") and config.ib.keep_contrast:
        yield (
            "ib.keep_contrast = True keeps answers because the verifier says that they are right, and with "
            "reward.model a model says what they are worth; set ib.keep_contrast=False"
        )


def _reward_model(config: RunConfig) -> Iterator[str]:
    stage = config.reward_model
    if stage.prompts * stage.samples <= stage.z:
        yield (
            f"reward_model.prompts = {stage.prompts} and reward_model.samples = {stage.samples} give "
            f"{stage.prompts * stage.samples} responses, too few for the covariance of reward_model.z = {stage.z} "
            "latents; raise reward_model.prompts, or lower reward_model.z"
        )


def _clip(config: RunConfig) -> Iterator[str]:
    low = config.objective.clip_low
    bounded = config.objective.name not in UNBOUNDED and not config.objective.path
    if low is not None and low >= 1 and bounded:
        yield (
            f"objective.clip_low = {low} cuts ratios below {1 - low:g}, where there are none; use a number below 1, or "
            "None for the method's own"
        )


def _groups(config: RunConfig) -> Iterator[str]:
    """An advantage compares a trajectory with others of its prompt; alone it is 0, throughout."""
    keep, group, branch = config.ib.keep, group_size(config), config.branch
    if branch.credit == "siblings" and branch.k > 0 and config.rollout.roots == 1:
        yield (
            "branch.credit = siblings compares roots with roots, and rollout.roots = 1 leaves a root with nothing: its "
            "advantage would be 0; use rollout.roots=2 or more, or branch.credit=tree"
        )
    if keep > group or kept_per_prompt(config) > 1:
        return
    alone = "which is compared with nothing: every advantage would be 0"
    ungrouped = config.objective.name in UNGROUPED or config.objective.path  # of your own: it may compare what it likes
    if ungrouped and (branch.k == 0 or branch.credit == "trajectory"):
        if group == 1 and config.ib.filter == "contrast":
            yield (
                "ib.filter = contrast keeps nothing of a group of one trajectory (rollout.roots = 1); set "
                "ib.filter=none"
            )
    elif group == 1:
        yield (
            f"rollout.roots = 1 with branch.k = 0 makes groups of one trajectory, {alone}; use rollout.roots=4, "
            f"branch.k=1, or objective.name={UNGROUPED[0]}"
        )
    elif keep == 1:
        yield f"ib.keep = 1 keeps one trajectory of a prompt, {alone}; use 2 to {group}"
    else:
        yield (
            f"ib.filter = {config.ib.filter} keeps half of the {group} trajectories of a prompt, one, {alone}; use "
            "ib.keep=2 or ib.filter=none, or more rollout.roots"
        )


def _schedule(config: RunConfig) -> Iterator[str]:
    if config.optim.schedule != "cosine":
        return
    length, steps = decay_steps(config), config.train.steps
    if length < steps:
        yield (
            f"optim.decay_steps = {length} is less than train.steps = {steps}, and a cosine that has ended trains at "
            f"learning rate 0; use {steps} or more, or 0 for train.steps"
        )
    if config.optim.warmup >= length:
        yield (
            f"optim.warmup = {config.optim.warmup} leaves nothing of the {length} rollouts of optim.schedule = cosine; "
            f"use less than {length}"
        )


def _minibatches(config: RunConfig) -> Iterator[str]:
    update, prompts = config.update, config.train.prompts_per_step
    try:
        group = kept_per_prompt(config)
    except InputError as error:
        yield str(error)
        return
    unit = group if update.packed or config.objective.name in WHOLE_GROUPS else 1
    microbatch = 0 if update.packed else update.microbatch
    # Of -1 only the devices know what it is; step/specs.py asks once more when it does.
    shards = max(1, config.mesh.data) * max(1, config.mesh.fsdp) if update.packed else 1
    if line := minibatch_mistake(update.minibatches, prompts * group, unit=unit, shards=shards, microbatch=microbatch):
        yield line


def _teacher(config: RunConfig) -> Iterator[str]:
    kind, path = config.teacher.kind, config.teacher.path
    if kind == "model" and not path and teaches(config):
        yield "teacher.kind = model needs teacher.path, the model that teaches; set it, or use teacher.kind=answer"
    if kind == "average" and config.lora.rank and teaches(config):
        yield (
            f"teacher.kind = average averages whole weights and lora.rank = {config.lora.rank} trains an adapter; use "
            "teacher.kind=answer or model, or lora.rank=0"
        )
    if path and kind != "model":
        yield f"teacher.path = {shown(path)} is read by nobody with teacher.kind = {kind}; set teacher.kind=model"


def _hints(config: RunConfig) -> Iterator[str]:
    attempts, most = config.hint.attempts, config.rollout.roots
    if attempts == 0:
        return
    asks = f"hint.attempts = {attempts} asks prompts again"
    if config.data.recorded:
        yield f"{asks} and data.recorded asks none; set hint.attempts=0"
    if config.branch.k > 0:
        yield (
            f"{asks} and replaces some of their responses, which with branch.k = {config.branch.k} others grew on; set "
            "branch.k=0"
        )
    if config.turns.most > 0:
        yield f"{asks} for responses of one turn, and turns.most = {config.turns.most}; set turns.most=0"
    if config.codes.n > 0:
        yield f"{asks} with hints where codes.n = {config.codes.n} begin responses with codes; set codes.n=0"
    if config.train.refills > 0:
        yield (
            f"{asks} that train.refills = {config.train.refills} gives up for others; set train.refills=0 or "
            "hint.attempts=0"
        )
    if not config.objective.path and config.objective.options.get("top_k"):
        yield (
            f"{asks} with hints, and the likeliest tokens that are noted there (objective.options.top_k) are not those "
            "of the prompts alone; set objective.options.top_k=0"
        )
    if config.hint.replaced > most:
        yield f"hint.replaced = {config.hint.replaced} of rollout.roots = {most} responses; use at most {most}"
    if config.hint.source == "solution" and config.hint.tokens >= config.rollout.max_tokens:
        yield (
            f"hint.tokens = {config.hint.tokens} leave nothing of rollout.max_tokens = {config.rollout.max_tokens} for "
            "what follows the hint; lower it"
        )


def _importance(config: RunConfig) -> Iterator[str]:
    floor, cap = config.update.importance_floor, config.update.importance_cap
    if 0 < cap < floor:
        yield (
            f"update.importance_floor = {floor} exceeds update.importance_cap = {cap}; lower it, or raise the cap, or "
            "set update.importance_cap=0 for no weights"
        )


def _refills(config: RunConfig) -> Iterator[str]:
    refills = config.train.refills
    if refills == 0:
        return
    if config.data.recorded:
        yield (
            f"train.refills = {refills} samples other prompts and data.recorded samples none; set train.refills=0, "
            "and ib.filter=contrast to drop groups of one kind"
        )
    if group_size(config) == 1:
        yield (
            f"train.refills = {refills} looks for prompts whose rewards differ, and rollout.roots = 1 with "
            "branch.k = 0 samples one response a prompt; use rollout.roots=2 or more, or train.refills=0"
        )


def _recorded(config: RunConfig) -> Iterator[str]:
    if not config.data.recorded:
        return
    if config.codes.n > 0:
        yield (
            f"codes.n = {config.codes.n} needs the code of every response, which recorded rollouts (data.recorded) do "
            "not have; set codes.n=0"
        )
    if config.latent.z > 0 and config.latent.condition == "conditioned":
        yield (
            "latent.condition = conditioned needs the z of every branch, which recorded rollouts (data.recorded) do "
            "not have; set latent.condition=marginal"
        )
    if config.ib.estimator == "entropy":
        yield (
            "ib.estimator = entropy reads entropies, which recorded rollouts (data.recorded) do not have; set "
            "ib.estimator=likelihood or none"
        )
    if config.log.entropies:
        yield "log.entropies = True asks for entropies, which recorded rollouts (data.recorded) do not have; set False"


def _turns(config: RunConfig) -> Iterator[str]:
    turns, longest = config.turns, config.rollout.max_tokens
    if turns.most == 0:
        if config.objective.name == "tspo" and not config.objective.path:
            yield "objective.name = tspo credits turns and turns.most = 0 has none; set turns.most, or another method"
        return
    if turns.observation >= longest:
        yield (
            f"turns.observation = {turns.observation} is not below rollout.max_tokens = {longest}, which counts "
            "observations too; lower it"
        )
    if config.data.recorded:
        yield "turns.most asks an environment and data.recorded has rollouts that are over; set turns.most=0"
    if config.train.refills:
        yield "turns.most and train.refills do not go together; set train.refills=0 (ib.filter=contrast drops groups)"
    if config.ib.estimator == "likelihood":
        yield (
            "ib.estimator = likelihood would score observations as if the policy had said them; with turns.most set "
            "ib.estimator=entropy or none"
        )
    if config.branch.k > 0 and config.latent.z > 0 and config.psa.strength > 0:
        yield "latent.z is fitted to responses of one turn; with turns.most set latent.z=0 for plain branches"
    if config.reward.model:
        yield "reward.model reads whole responses, and turns.most puts observations into them; set one of them aside"
    if config.codes.n:
        yield "codes.n and turns.most do not go together; set one of them to 0"


def _evaluation(config: RunConfig) -> Iterator[str]:
    evaluation = config.eval
    for name, samples in evaluation.task_samples.items():
        if not (type(samples) is int and samples >= 1):
            yield f"eval.task_samples gives {name} {shown(samples)} samples; use a whole number, 1 or more"
            return
    most = max([evaluation.samples, *evaluation.task_samples.values()])
    where = "eval.samples" if not evaluation.task_samples else "the most samples of a task"
    for key, verb in (("k", "pass"), ("avg", "avg")):
        for k in evaluation[key]:
            if k > most:
                yield f"eval.{key} contains {k}; {verb}@k needs whole numbers from 1 to {where} = {most}"
    if evaluation.temperature == 0 and most > 1:
        yield (
            f"eval.temperature = 0 makes all {where} = {most} samples equal; use eval.samples=1, or "
            "a temperature above 0 with eval.greedy=True"
        )


def _mesh(config: RunConfig) -> Iterator[str]:
    try:
        mesh_shape(config.mesh, devices=None)
    except InputError as error:
        yield str(error)


# What is checked of several values, and the keys it reads: with one of them wrong there is nothing to compare.
CHECKS = {
    _slots: "rollout.refill_at rollout.slots",
    _lengths: "rollout.min_tokens rollout.max_tokens",
    _latent: "latent.kind latent.z latent.window latent.prior_power",
    _lora: "lora.rank lora.targets lora.base lora.path",
    _codes: "lora.rank codes.n codes.others codes.dependence objective.name objective.path",
    _tasks: "task.name task.mix task.path",
    _own_code: "task.path task.options objective.path tracker.path",
    _method: "objective.name objective.options objective.path",
    _loss: "offline.loss offline.options",
    _modes: "objective.name objective.path update.kl_coef advantage.weight",
    _score: "ib.estimator ib.filter ib.keep ib.reward_coef",
    _clip: "objective.name objective.path objective.clip_low",
    _points: "branch.k branch.at branch.segment branch.points branch.per_point rollout.max_tokens",
    _credit: "objective.name objective.path branch.credit branch.parent branch.k branch.solved branch.min_entropy "
    "branch.replace",
    _replace: "branch.replace branch.k branch.solved branch.min_entropy latent.z psa.strength objective.name "
    "objective.path",
    _overlong: "reward.overlong reward.overlong_buffer rollout.max_tokens",
    _proxy: "reward.model reward.ibl_coef advantage.weight objective.name objective.path train.refills ib.filter "
    "ib.keep_contrast codes.dependence",
    _reward_model: "reward_model.prompts reward_model.samples reward_model.z",
    _groups: "rollout.roots branch.k branch.depth branch.parent branch.credit ib.filter ib.keep objective.name "
    "objective.path",
    _schedule: "optim.schedule optim.decay_steps optim.warmup train.steps",
    _minibatches: "train.prompts_per_step rollout.roots branch.k branch.depth branch.parent ib.filter ib.keep "
    "update.minibatches update.packed update.microbatch mesh.data mesh.fsdp objective.name",
    _teacher: "teacher.kind teacher.path distill.coef hint.attempts hint.source lora.rank",
    _hints: "hint.attempts hint.source hint.tokens hint.replaced branch.k codes.n turns.most train.refills "
    "data.recorded objective.name objective.options objective.path rollout.max_tokens rollout.roots",
    _importance: "update.importance_floor update.importance_cap",
    _refills: "train.refills data.recorded rollout.roots branch.k branch.depth branch.parent",
    _recorded: "data.recorded codes.n latent.z latent.condition ib.estimator log.entropies",
    _turns: "codes.n reward.model turns.most turns.observation rollout.max_tokens data.recorded train.refills "
    "ib.estimator branch.k latent.z psa.strength objective.name objective.path",
    _evaluation: "eval.k eval.avg eval.samples eval.task_samples eval.temperature",
    _mesh: "mesh.data mesh.fsdp mesh.sequence mesh.tensor",
}
