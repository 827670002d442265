"""From a config to the static descriptions of the compiled programs, and the checks that need a model to be known."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from iiblpo_jax.bottleneck import Reading
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config import derived
from iiblpo_jax.data.task import Task, answer_ids, same_text
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.adapters.lora import LoRASpec, check_rank
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.files.loading import load_config
from iiblpo_jax.model.packed.attention import implementation
from iiblpo_jax.model.steering.code_tokens import code_tokens
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.objectives import (
    Distillation,
    Objective,
    make_objective,
    with_auxiliary,
    with_credit,
    with_distillation,
    with_overlong,
)
from iiblpo_jax.objectives.novelty import Novelty, make_novelty
from iiblpo_jax.objectives.rows import NOVELTY, PLAN, PROMPT_LOGP, REF_LOGP
from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.publication import PublicationSpec
from iiblpo_jax.rollout.sampling import Sampling
from iiblpo_jax.rollout.spec import RolloutSpec
from iiblpo_jax.rollout.turns import TurnSpec
from iiblpo_jax.step.inform import Dependence, Errors, InformationTerms, InformSpec, LogProbs, PromptLogProbs
from iiblpo_jax.step.proxy import ProxyReward, ProxySpec
from iiblpo_jax.step.score import BottleneckSpec, CodesSpec, CreditSpec, FilterSpec, LatentSpec, ScoreSpec, StrataSpec
from iiblpo_jax.step.teacher import TeacherReader
from iiblpo_jax.update.optimizer import Schedule, make_optimizer
from iiblpo_jax.update.settings import UpdateSettings

PACK_TOKENS = 2**13  # nodes of a bin where update.microbatch leaves it open
REFERENCE = "reference"  # name of the frozen copy of the policy among the readers
POLICY = "policy"  # that of the policy as it is
AVERAGE = "average"  # that of the average of its past
TEACHER = "teacher"  # that of another model
REWARD = "reward"  # that of a reward model
NOVELTY_KEY = 2**31 - 1  # of its random weights, in place of the number of a step, which it exceeds
MAX_ANSWER = 64  # tokens of a gold answer that the score reads; longer ones are cut


def branching(config) -> Branching:
    """The branch section."""
    b = config.branch
    return Branching(
        k=b.k,
        at=b.at,
        fraction=b.fraction,
        segment=b.segment,
        after=b.after,
        min_suffix=b.min_suffix,
        points=b.points,
        per_point=b.per_point,
        parent=b.parent,
        depth=b.depth,
        min_entropy=b.min_entropy,
        solved=b.solved,
        replace=b.replace,
    )


def turns(config) -> TurnSpec | None:
    """The turns section; None where a response is one turn."""
    return TurnSpec(most=config.turns.most, observation=config.turns.observation) if config.turns.most else None


def uses_latents(config) -> bool:
    """Whether branches are steered by a latent at all; of recorded ones nobody wrote z down, so they count as plain."""
    return not config.data.recorded and config.branch.k > 0 and config.latent.z > 0 and config.psa.strength > 0


def lora(config) -> LoRASpec | None:
    """The adapter that is trained in place of the weights; None where there is none."""
    section = config.lora
    return LoRASpec(rank=section.rank, alpha=section.alpha, targets=section.targets) if section.rank else None


def publication_spec(config, model: ModelConfig) -> PublicationSpec:
    """How the policy is published for decoding."""
    r = config.rollout
    return PublicationSpec(model=model, dtype=r.dtype, weights=r.weights, unroll=r.unroll)


def rollout_spec(
    config,
    model: ModelConfig,
    stop_ids: Sequence[int],
    *,
    never_ids: Sequence[int] = (),
    record: int = 0,
    mesh: Mesh | None = None,
) -> RolloutSpec:
    """The training rollout; `record`: likeliest tokens that it notes of every draw."""
    r = config.rollout
    return RolloutSpec(
        model=model,
        roots=r.roots,
        branching=branching(config),
        slots=r.slots,
        refill_at=r.refill_at,
        max_tokens=r.max_tokens,
        min_tokens=r.min_tokens,
        stop_ids=tuple(stop_ids),
        never_ids=tuple(never_ids),
        kv_dtype=r.kv_dtype,
        sampling=Sampling(temperature=r.temperature, top_k=r.top_k, top_p=r.top_p, min_p=r.min_p, record=record),
        half_life=config.psa.half_life,
        strength=config.psa.strength,
        stratified=config.latent.siblings == "stratified",
        prior_power=config.latent.prior_power,
        codes=code_tokens(model, config.codes.n),
        turns=turns(config),
        mesh=mesh,
    )


def objective(config) -> Objective:
    """The method with the config's overrides and auxiliary terms."""
    o = config.objective
    overrides = {"clip_low": o.clip_low, "clip_high": o.clip_high, "aggregate": o.aggregate, **o.options}
    method = make_objective(
        o.name,
        max_tokens=config.rollout.max_tokens,
        overrides=overrides,
        path=o.path,
        reference_kl=config.update.kl_coef,
    )
    if config.branch.credit != "trajectory" and config.branch.k > 0:
        method = with_credit(
            method,
            config.branch.credit,
            parent_J=branching(config).shape.parent_J,
            local=config.branch.local_credit,
            ib_coef=config.branch.ib_credit,
        )
    if config.reward.overlong == "shape":
        method = with_overlong(method, buffer=config.reward.overlong_buffer, penalty=config.reward.overlong_penalty)
    u = config.update
    return with_auxiliary(
        with_distillation(method, distillation(config)),
        entropy_coef=config.ib.entropy_coef,
        entropy_bonus=u.entropy_bonus,
        kl_coef=u.kl_coef,
        kl_form=u.kl_form,
    )


def distillation(config) -> Distillation:
    """The teacher's term."""
    d = config.distill
    return Distillation(coef=d.coef, beta=d.beta, min_reward=d.min_reward, top_k=d.top_k, teacher=config.teacher.kind)


def averages(config) -> bool:
    """Whether the state of a run has an average of past policies."""
    return derived.teaches(config) and config.teacher.kind == "average"


def _teacher(config, model: ModelConfig, reading: Reading) -> list:
    """The reader that distillation asks for, with the name of its weights."""
    if not config.distill.coef:
        return []
    kind, path = config.teacher.kind, derived.teacher_model(config)
    reader = TeacherReader(
        model=load_config(path) if path else model,
        reading=reading,
        dtype=config.model.dtype,
        vocab_size=model.vocab_size,
        top_k=config.distill.top_k,
        shown=kind == "answer",
    )
    return [({"answer": POLICY, "average": AVERAGE, "model": TEACHER}[kind], reader)]


def writer_spec(config, policy: RolloutSpec) -> RolloutSpec | None:
    """How the teacher writes hints, one a prompt; None where it writes none. `policy` is the training rollout's."""
    if not derived.writes_hints(config):
        return None
    path = derived.teacher_model(config)
    model = policy.model
    theirs = load_config(path) if path else model
    never_ids = (*policy.never_ids, *range(model.vocab_size, theirs.vocab_size))
    return dataclasses.replace(
        policy, model=theirs, roots=1, max_tokens=config.hint.tokens, min_tokens=0, never_ids=never_ids
    )


def plain_reading(config, *, start_id: int = 0, never_ids: Sequence[int] = (), mesh: Mesh | None = None) -> Reading:
    """How models read responses."""
    return Reading(
        temperature=config.rollout.temperature,
        never_ids=tuple(never_ids),
        start_id=start_id,
        pack_tokens=pack_tokens(config, shards=meshes.shards(mesh)),
        attention=config.attention.impl,
        shards=meshes.shards(mesh),
    )


def inform_spec(
    config,
    model: ModelConfig,
    start_id: int,
    *,
    never_ids: Sequence[int] = (),
    needs: Sequence[str] = (),
    mesh: Mesh | None = None,
) -> InformSpec:
    """Who reads a Forest: the reference, where S_IB or the KL term asks for it, and who the method `needs`."""
    reading = plain_reading(config, start_id=start_id, never_ids=never_ids, mesh=mesh)
    readers: list = []
    if config.ib.estimator == "likelihood":
        readers = [(REFERENCE, InformationTerms(model=model, reading=reading, compression=config.ib.compression))]
    elif config.update.kl_coef > 0 or REF_LOGP in needs:
        readers = [(REFERENCE, LogProbs(model=model, reading=reading))]
    if PROMPT_LOGP in needs:
        whole = dataclasses.replace(reading, never_ids=())  # a prompt may hold what no response does
        readers += [(POLICY, PromptLogProbs(model=model, reading=whole, dtype=config.model.dtype))]
    if others := derived.other_codes(config):
        how = {"trees": config.rollout.roots, "others": others, "dtype": config.model.dtype}
        readers += [(POLICY, Dependence(model=model, reading=reading, **how))]
    if NOVELTY in needs:
        readers += [(NOVELTY, Errors())]
    readers += _teacher(config, model, reading)
    if config.reward.model:
        readers += [(REWARD, ProxyReward(model=model, reading=reading))]
    return InformSpec(readers=tuple(readers), mesh=mesh)


def novelty(config, model: ModelConfig) -> Novelty | None:
    """Fresh networks for a method that asks what is new, the same for one train.seed; None for all others."""
    if NOVELTY not in objective(config).needs:
        return None
    key = jax.random.fold_in(jax.random.key(config.train.seed), NOVELTY_KEY)
    width = config.rollout.max_prompt + config.rollout.max_tokens
    return make_novelty(key, vocab_size=model.vocab_size, width=width)


def score_spec(config, method: Objective) -> ScoreSpec:
    """Score, filter, advantages, latents and codes of the rows."""
    ib, trees = config.ib, branching(config)
    latent = LatentSpec(levels=trees.levels, half_life=config.psa.half_life, strength=config.psa.strength)
    return ScoreSpec(
        bottleneck=BottleneckSpec(estimator=ib.estimator, beta=ib.beta, length_cost=ib.length_cost),
        filter=FilterSpec(
            rule=ib.filter,
            keep=derived.kept_per_prompt(config),
            keep_contrast=ib.keep_contrast and ib.filter in ("score", "random"),
            distinct=ib.distinct,
            finished=config.reward.overlong == "mask",
        ),
        credit=CreditSpec(
            objective=method,
            weight=config.advantage.weight,
            power=config.advantage.power,
            reward_coef=ib.reward_coef,
            selective=derived.selective_branches(config),
            strata=None if trees.with_replacement else StrataSpec(shape=trees.shape, power=config.branch.correction),
        ),
        latent=latent if uses_latents(config) else None,
        codes=_codes(config),
        proxy=proxy_spec(config),
    )


def _codes(config) -> CodesSpec | None:
    if not config.codes.n:
        return None
    most = math.log(1 + derived.other_codes(config))
    return CodesSpec(trees=config.rollout.roots, dependence=config.codes.dependence, most=most)


def proxy_spec(config) -> ProxySpec | None:
    """What the reward model pays; None without one."""
    r = config.reward
    return ProxySpec(coef=r.model_coef, ibl_coef=r.ibl_coef, mop_alpha=r.mop_alpha) if r.model else None


def optimizer(config) -> optax.GradientTransformation:
    """The optimizer, at the peak of its learning rates."""
    return make_optimizer(config.optim)


def schedule(config) -> Schedule:
    """The schedule of the learning rates."""
    o = config.optim
    return Schedule(peak=o.lr, kind=o.schedule, warmup=o.warmup, decay_steps=derived.decay_steps(config))


def update_settings(
    config, method: Objective, *, never_ids: Sequence[int] = (), mesh: Mesh | None = None
) -> UpdateSettings:
    """How an update goes through its rows.

    Raises:
      InputError: the rows do not split into equal minibatches, shards and microbatches.
    """
    kept = derived.kept_per_prompt(config)
    settings = UpdateSettings(
        temperature=config.rollout.temperature,
        never_ids=tuple(never_ids),
        minibatches=config.update.minibatches,
        epochs=config.update.epochs,
        pack_tokens=pack_tokens(config, shards=meshes.shards(mesh)) if config.update.packed else 0,
        attention=config.attention.impl,
        microbatch=config.update.microbatch,
        remat=config.update.remat,
        mesh=mesh,
        condition=config.latent.condition,
        importance=config.update.importance,
        importance_floor=config.update.importance_floor,
        importance_cap=config.update.importance_cap,
        exact_rollout=derived.rollout_is_exact(config) and multiplies_in_float32(mesh),
        prefix_loss=derived.inherited_counts(config),
        group_size=kept,
        dtype=config.model.dtype,
        average_decay=config.teacher.decay if averages(config) else 0.0,
    )
    settings.check_rows(config.train.prompts_per_step * kept, whole_groups=method.needs_groups)
    return settings


def multiplies_in_float32(mesh: Mesh | AbstractMesh | None = None) -> bool:
    """Whether float32 products are what they say: on a CPU, or where JAX is told so (jax_default_matmul_precision).

    By default GPUs round the factors to TF32 and TPUs to bfloat16. An abstract mesh has no devices: those here count.
    """
    device = jax.devices()[0] if mesh is None or isinstance(mesh, AbstractMesh) else mesh.devices.flat[0]
    return device.platform == "cpu" or jax.config.values["jax_default_matmul_precision"] in ("highest", "float32")


def pack_tokens(config, *, shards: int = 1) -> int:
    """Nodes of a bin on each of `shards` devices: together those of update.microbatch rows, or PACK_TOKENS each."""
    rows = config.rollout.max_prompt + config.rollout.max_tokens
    return -(-config.update.microbatch * rows // shards) or PACK_TOKENS


def check(
    config, model: ModelConfig, mesh: Mesh, *, tasks: Sequence[Task] = (), tokenizer: Tokenizer | None = None
) -> None:
    """Everything that a model and a mesh can get wrong about a run, before it costs anything.

    Args:
      config, model, mesh: of the run.
      tasks, tokenizer: whose responses are scored; none where nobody knows them (a plan).

    Raises:
      InputError: an adapter wider than a matrix, slots or rows that do not split, positions that the model does not
        have, an unknown method, an attention that does not run here, a task without what the method needs of it.
    """
    method = objective(config)
    if adapter := lora(config):
        check_rank(adapter, model)
    check_mesh(config, mesh)
    check_positions(config, model, tasks, tokenizer)
    check_attention(config, model, mesh)
    check_plans(method, tasks)
    check_record(config, method, model)
    check_distillation(config, model)
    update_settings(config, method, mesh=mesh)


def check_positions(
    config,
    model: ModelConfig,
    tasks: Sequence[Task] = (),
    tokenizer: Tokenizer | None = None,
    *,
    of: str = "model",
) -> None:
    """Raises InputError where the longest row would exceed the positions the model was made for.

    `tasks` are those whose responses are scored (the likelihood estimator appends cue and answer); none in evaluation.
    """
    s, t = config.rollout.max_prompt, config.rollout.max_tokens
    extra = 0
    if tokenizer and tasks and config.ib.estimator == "likelihood":
        extra = answer_width(tasks, tokenizer) + max(len(tokenizer.encode(task.cue)) for task in tasks)
    if s + t + extra > model.max_positions:
        raise InputError(
            f"rollout.max_prompt = {s} and rollout.max_tokens = {t} ({extra} more for scoring) need {s + t + extra} "
            f"positions and the {of} has {model.max_positions}; lower one by {s + t + extra - model.max_positions}"
        )


def check_mesh(config, mesh: Mesh) -> None:
    """Raises InputError where the slots of a rollout do not divide among the devices that prompts are split over, or
    turns would have to be answered on several."""
    if config.turns.most and mesh.size > 1:
        raise InputError(
            f"turns.most = {config.turns.most} answers turns on one device and the mesh has {mesh.size}; use one, such "
            "as with mesh.fsdp=1, or set turns.most=0"
        )
    parts = math.prod(mesh.shape[axis] for axis in meshes.rollout_axes(mesh, config.train.prompts_per_step))
    if config.rollout.slots % parts:
        nearest = max(1, round(config.rollout.slots / parts)) * parts
        raise InputError(
            f"rollout.slots = {config.rollout.slots} cannot be split over {parts} parts of the mesh; use a multiple of "
            f"{parts}, such as {nearest}"
        )


def check_attention(config, model: ModelConfig, mesh: Mesh) -> None:
    """Raises InputError where attention.impl does not run on these devices, this mesh or this model."""
    sequence = meshes.shards(mesh, "sequence")
    if config.attention.impl == "pallas" and sequence > 1:
        raise InputError(
            f"attention.impl = pallas takes all queries of a bin and mesh.sequence = {sequence} splits them; use "
            "attention.impl=blocks or mesh.sequence=1"
        )
    with meshes.using(mesh):
        implementation(config.attention.impl, model.head_dim)


def check_plans(method: Objective, tasks: Sequence[Task]) -> None:
    """Raises InputError where the method compares plans and a task has none but the text itself."""
    without = [task.name for task in tasks if task.plan is same_text]
    if PLAN in method.needs and without:
        raise InputError(
            f"objective.name = {method.name} compares the plans of responses and the task {', '.join(without)} does "
            "not say what a plan is; use countdown, a task of your own with a `plan`, or another objective.name"
        )


def check_record(config, method: Objective, model: ModelConfig) -> None:
    """Raises InputError where the likeliest tokens that the method compares are more than there are, or unrecorded."""
    if method.record > model.vocab_size:
        raise InputError(
            f"objective.name = {method.name} compares the {method.record} likeliest tokens and the vocabulary has "
            f"{model.vocab_size}; lower objective.options.top_k"
        )
    if method.record and config.data.recorded:
        raise InputError(
            f"objective.name = {method.name} compares the {method.record} likeliest tokens of every draw, which "
            "recorded rollouts (data.recorded) do not have; set objective.options.top_k=0"
        )


def check_distillation(config, model: ModelConfig) -> None:
    """Raises InputError where more of the teacher's likeliest tokens are told apart than there are, or the teacher
    could not read a row."""
    if config.distill.coef and config.distill.top_k > model.vocab_size:
        raise InputError(
            f"distill.top_k = {config.distill.top_k} and the vocabulary has {model.vocab_size}; lower it, or use 0 for "
            "all of it"
        )
    if path := derived.teacher_model(config):
        check_positions(config, load_config(path), of="teacher")


def answer_width(tasks: Sequence[Task], tokenizer: Tokenizer) -> int:
    """A: tokens of the longest gold answer, at most MAX_ANSWER."""
    longest = max((len(answer_ids(task, p, tokenizer)) for task in tasks for p in task.train), default=1)
    return max(1, min(longest, MAX_ANSWER))
