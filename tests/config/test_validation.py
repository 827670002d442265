"""What a config refuses, what it derives, and that a stored one comes back."""

import inspect
import json
import math

import pytest
from ml_collections import ConfigDict

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config import derived, files, validation
from iiblpo_jax.config.defaults import KNOBS, REMOVED, SECTIONS
from iiblpo_jax.config.methods import METHODS
from iiblpo_jax.defaults import default_config


def changed(**values):
    """The default config with `section__key=value` changes."""
    config = default_config()
    for name, value in values.items():
        section, key = name.split("__")
        config[section][key] = value
    return config


def test_the_default_is_valid_and_locked():
    config = default_config()
    validation.validate(config)
    with pytest.raises(AttributeError):
        config.train.stepz = 3
    config.task.options.k_max = 3  # its keys are the task's
    config.task.options.k_max = "three"  # refused by the task, not by a ConfigDict


def test_names_that_scripts_rely_on_exist():
    names = """model.path task.name data.seed train.steps train.seed train.prompts_per_step rollout.roots rollout.slots
    rollout.refill_at rollout.temperature rollout.max_tokens branch.k branch.fraction branch.points branch.parent
    branch.prefix_loss latent.z latent.condition psa.layers psa.half_life ib.estimator ib.beta ib.filter ib.keep
    ib.keep_contrast ib.reward_coef ib.entropy_coef objective.name optim.lr optim.psa_lr update.minibatches
    update.epochs update.microbatch mesh.data mesh.fsdp mesh.sequence mesh.tensor checkpoint.every checkpoint.keep
    eval.every eval.samples log.every""".split()
    assert set(names) <= set(files.flatten(default_config()))


def test_every_knob_that_is_checked_exists():
    checked = {key for keys in validation.CHECKS.values() for key in keys.split()}
    assert checked <= set(KNOBS) == set(files.flatten(default_config()))
    assert {key.split(".")[0] for key in KNOBS} == set(SECTIONS)
    assert not REMOVED.keys() & KNOBS.keys()


def test_methods_and_their_arguments_are_those_of_the_objectives():
    from iiblpo_jax import objectives
    from iiblpo_jax.objectives.aggregate import AGGREGATES

    assert set(METHODS) == set(objectives.METHODS)
    assert set(KNOBS["objective.aggregate"].choices) == set(AGGREGATES)
    for name, make in objectives.METHODS.items():
        found = {key: p.default for key, p in inspect.signature(make).parameters.items()}
        common = {"max_tokens", "reference_kl", "clip_low", "clip_high", "aggregate"}
        assert {key: found[key] for key in found.keys() - common} == {k: o.default for k, o in METHODS[name].items()}


def test_the_section_update_reads_as_an_attribute():
    config = changed(update__minibatches=2)
    assert config.update.minibatches == config["update"]["minibatches"] == 2
    config.update.epochs = 3
    assert files.resolve(config)["update"]["epochs"] == 3
    config.task.update({"name": "gsm8k"})  # other sections keep the method
    assert config.task.name == "gsm8k"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"branch__depth": 0}, r"branch\.depth = 0; use 1 or more"),
        ({"branch__points": "shred"}, r"branch\.points = 'shred' \(did you mean shared\?\); use one of shared, "),
        ({"latent__kind": "code"}, r"latent\.kind = 'code' \(did you mean codes\?\); use one of gaussian, codes"),
        ({"latent__kind": "codes", "latent__z": 8}, r"latent\.kind = codes needs latent\.window"),
        ({"codes__n": 1}, r"codes\.n = 1 is one code for all, .*; use 2 to 16, or 0"),
        (
            {"codes__n": 4, "lora__rank": 4},
            r"codes\.n = 4 makes rows of the embedding, which lora\.rank = 4 leaves frozen",
        ),
        ({"codes__dependence": 0.5}, r"codes\.dependence = 0\.5 pays for .* codes\.n = 0 has none; set codes\.n=4"),
        ({"codes__n": 4, "codes__others": 0, "codes__dependence": 0.5}, r"codes\.others = 0 .*; set codes\.others=3"),
        (
            {"codes__n": 4, "codes__dependence": 0.5, "objective__name": "disco"},
            r"without advantages, which codes\.dependence = 0\.5 goes into; set codes\.dependence=0",
        ),
        (
            {"codes__n": 4, "data__recorded": "runs"},
            r"codes\.n = 4 needs the code of every .*; set codes\.n=0",
        ),
        ({"latent__prior_weight": 1.0}, r"latent\.prior_weight = 1\.0; use a number from 0 to below 1"),
        ({"ib__filter": "best"}, r"ib\.filter = 'best'; use one of score, contrast, random, none"),
        ({"ib__compression": "descriptive"}, r"ib\.compression = 'descriptive' \(did you mean description\?\)"),
        ({"objective__aggregate": "mean"}, r"objective\.aggregate = 'mean'"),
        ({"rollout__weights": "int4"}, r"rollout\.weights = 'int4' \(did you mean int8\?\); use one of '', int8$"),
        ({"rollout__kv_dtype": "fp8"}, r"rollout\.kv_dtype = 'fp8'; use one of '', float32, bfloat16$"),
        ({"rollout__temperature": 0.0}, r"rollout\.temperature = 0\.0; use a number above 0"),
        ({"rollout__top_p": 1.5}, r"rollout\.top_p = 1\.5; use a number above 0 and at most 1"),
        ({"rollout__min_p": 1.0}, r"rollout\.min_p"),
        ({"train__steps": 0}, r"train\.steps = 0; use 1 or more"),
        ({"optim__lr": -1e-3}, r"optim\.lr = -0\.001; use 0 or more"),
        ({"rollout__refill_at": 65}, r"rollout\.refill_at = 65 exceeds rollout\.slots = 64.*; use at most 64"),
        (
            {"reward__overlong": "shape", "rollout__max_tokens": 100},
            r"reward\.overlong_buffer = 1024 exceeds rollout\.max_tokens = 100.*, such as 20$",
        ),
        ({"reward__overlong": "cut"}, r"reward\.overlong = 'cut'.* use one of none, mask, shape"),
        (
            {"branch__credit": "tree", "branch__solved": False},
            r"branch\.credit = tree .* set branch\.credit=siblings or",
        ),
        ({"branch__credit": "tree", "branch__min_entropy": 1.0}, r"branch\.credit = tree .* branch\.min_entropy above"),
        (
            {"branch__credit": "treepo", "branch__solved": False},
            r"branch\.credit = treepo .* set branch\.credit=siblings",
        ),
        ({"rollout__min_tokens": 5000}, r"rollout\.min_tokens = 5000 exceeds rollout\.max_tokens = 4096"),
        ({"ib__estimator": "likelihood", "ib__keep": 9}, r"ib\.keep.*9.* 8 trajectories"),
        ({"ib__estimator": "none", "ib__filter": "score"}, r"ib\.estimator = none leaves no score"),
        ({"ib__keep": 4}, r"ib\.estimator = none leaves no score .* contrast with ib\.keep"),
        ({"ib__estimator": "none", "ib__reward_coef": 0.1}, r"ib\.estimator = none leaves no score"),
        # groups of one
        ({"rollout__roots": 1, "branch__k": 0}, r"roots = 1 with branch\.k = 0 makes groups of one .*=reinforce_pp$"),
        (
            {"rollout__roots": 1, "branch__k": 0, "objective__name": "reinforce_pp"},
            r"contrast keeps nothing of a group of one trajectory .* set ib\.filter=none",
        ),
        (
            {"ib__estimator": "likelihood", "ib__keep": 1},
            r"ib\.keep = 1 keeps one trajectory .* would be 0; use 2 to 8$",
        ),
        ({"ib__filter": "random", "ib__keep": 1}, r"ib\.keep = 1 keeps one trajectory"),
        (
            {"rollout__roots": 2, "branch__k": 0, "ib__filter": "random"},
            r"ib\.filter = random keeps half of the 2 traj.*, one, .*; use ib\.keep=2 or ib\.filter=none, or more roll",
        ),
        (
            {"objective__name": "reinforce_pp", "branch__credit": "tree", "ib__filter": "random", "ib__keep": 1},
            r"keep = 1",
        ),
        ({"rollout__roots": 3, "branch__k": 0, "ib__filter": "random"}, r"half of the 3 trajectories .*, one,"),
        (
            {"rollout__roots": 1, "branch__credit": "siblings"},
            r"siblings compares roots .* use rollout\.roots=2 or more, or branch\.credit=tree$",
        ),
        # schedules
        (
            {"optim__schedule": "cosine", "optim__decay_steps": 999},
            r"decay_steps = 999 is less than train\.steps = 1000, .* rate 0; use 1000 or more, or 0 for train\.steps$",
        ),
        (
            {"optim__schedule": "cosine", "optim__warmup": 1000},
            r"warmup = 1000 leaves nothing of .*; use less than 1000",
        ),
        ({"optim__decay_steps": -1}, r"optim\.decay_steps = -1; use 0 or more"),
        ({"train__max_empty_steps": 0}, r"train\.max_empty_steps = 0; use 1 or more"),
        ({"update__kl_form": "k4"}, r"update\.kl_form = 'k4'; use one of k3, k2, k1"),
        # ranges and minibatches
        (
            {"objective__clip_low": 1.5},
            r"objective\.clip_low = 1\.5 cuts ratios below -0\.5, where .* below 1, or None",
        ),
        # 32 prompts x 8 kept = 256 trajectories; what is listed passes every check, and packed rows stay whole
        (
            {"update__minibatches": 3},
            r"minibatches = 3 does not divide the 32 prompts .*; use one of 1, 2, 4, 8, 16, 32$",
        ),
        ({"update__minibatches": 64}, r"minibatches = 64 does not divide the 32 prompts .* 1, 2, 4, 8, 16, 32$"),
        (
            {"update__minibatches": 3, "mesh__data": 2, "mesh__fsdp": 4},
            r"minibatches = 3 does not divide the 32 prompts .*; use one of 1, 2, 4$",
        ),
        (
            {"update__minibatches": 8, "mesh__data": 2, "mesh__fsdp": 4},
            r"minibatches = 8 leaves 4 prompts to a minibatch, .* mesh\.fsdp = 8 devices; use one of 1, 2, 4$",
        ),
        (
            {"update__minibatches": 1, "mesh__data": 5},
            r"minibatches = 1 leaves 32 prompts .* = 5 devices; make train\.prompts_per_step a multiple of 5$",
        ),
        (
            {"update__packed": False, "update__minibatches": 64, "objective__name": "disco"},
            r"minibatches = 64 does not divide the 32 prompts of an update; use one of 1, 2, 4, 8, 16, 32$",
        ),
        (
            {"update__packed": False, "update__minibatches": 3, "update__microbatch": 32},
            r"minibatches = 3 does not divide the 256 trajectories of an update; use one of 1, 2, 4, 8$",
        ),
        (
            {"update__packed": False, "update__microbatch": 5},
            r"microbatch = 5 does not divide the 64 .* of 1, 2, 4, 8, 16, 32, 64, or 0",
        ),
        (
            {"update__importance": "token"},
            r"update\.importance = 'token'.*; use one of token_truncate, token_mask, seq",
        ),
        ({"update__importance_floor": 0.5, "update__importance_cap": 0.4}, r"floor = 0\.5 exceeds .*cap = 0\.4; lower"),
        ({"eval__k": (1, 8)}, r"eval\.k contains 8; .* 1 to eval\.samples = 4"),
        ({"eval__temperature": 0.0}, r"eval\.temperature = 0 makes all eval\.samples = 4 samples equal"),
        ({"eval__avg": (5,)}, r"eval\.avg contains 5; avg@k needs whole numbers from 1 to eval\.samples = 4"),
        (
            {"eval__task_samples": {"aime24": 16}, "eval__k": (16, 32)},
            r"eval\.k contains 32; .* 1 to the most samples of a task = 16$",
        ),
        ({"eval__task_samples": {"aime24": 0}}, r"eval\.task_samples gives aime24 0 samples; use a whole number"),
        ({"eval__task_samples": {"aime24": "all"}}, r"eval\.task_samples gives aime24 'all' samples; use a whole"),
        ({"latent__prior_power": 0.0}, r"prior_power = 0 gives a Gaussian no width; .* or latent\.kind=codes"),
        (
            {"branch__at": "segments", "rollout__max_tokens": 512},
            r"segment = 512 is not below rollout\.max_tokens = 512, .* such as 64$",
        ),
        (
            {"branch__k": 4, "branch__per_point": 2},
            r"points = shared has one; set branch\.points=distinct, or branch\.per",
        ),
        (
            {"branch__k": 6, "branch__per_point": 4, "branch__points": "distinct"},
            r"per_point = 4 does not divide branch\.k = 6; use branch\.k=8, or one of 1, 2, 3, 6 for",
        ),
        (
            {"branch__at": "argmin"},
            r"branch\.at = 'argmin' \(did you mean argmax\?\); use one of top, argmax, random, t",
        ),
        ({"branch__credit": "siblings", "branch__parent": "previous"}, r"siblings compares branches of one root"),
        (
            {"branch__credit": "siblings", "branch__replace": False},
            r"siblings takes branches for samples .*=tree or traj",
        ),
        (
            {"branch__solved": False, "branch__replace": False},
            r"only roots chosen .*; set branch\.replace=True, or branch",
        ),
        ({"objective__name": "disco", "branch__replace": False}, r"disco contrasts .*; set branch\.replace=True$"),
        ({"latent__z": 4, "branch__replace": False}, r"latent\.z = 4 they begin with another distribution; set branch"),
        ({"psa__layers": "some"}, r"psa\.layers = 'some'; use all"),
        ({"mesh__fsdp": 0}, r"mesh\.fsdp = 0; use 1 or more, or -1"),
        ({"mesh__fsdp": -1}, r"mesh\.data and mesh\.fsdp are both -1"),
        ({"task__mix": {"math": -1.0}}, r"task\.mix gives math the weight -1\.0"),
        ({"task__name": ""}, r"task\.name is empty"),
        ({"task__mix": {"math": math.nan}}, r"task\.mix gives math the weight nan"),
        ({"ib__keep": -1}, r"ib\.keep = -1; use 0 or more"),
        ({"eval__k": (0,)}, r"eval\.k = \(0,\); use 1 or more"),
        ({"data__verifier_timeout": math.inf}, r"verifier_timeout = inf; use a number above 0 and below inf"),
        ({"optim__lr": math.nan}, r"optim\.lr = nan; use a number, 0 or more"),
        ({"rollout__top_p": math.nan}, r"rollout\.top_p = nan; use a number above 0 and at most 1"),
        ({"eval__temperature": math.nan}, r"eval\.temperature = nan; use a number, 0 or more"),
        ({"train__steps": True}, r"train\.steps = True; use a whole number, 1 or more"),
        (
            {"objective__name": "grop"},
            r"objective\.name = 'grop' \(did you mean grpo\?\); use one of arm, bapo, cispo, ",
        ),
        ({"objective__options": {"alpha": 0.1}}, r"objective\.options\.alpha does not apply to grpo; it has none"),
        (
            {"objective__name": "ucpo", "branch__credit": "treerl"},
            r"credit = treerl puts advantages along trees in place of those that objective\.name = ucpo",
        ),
        (
            {"objective__name": "arm", "branch__credit": "tree"},
            r"branch\.credit = tree puts .* in place of those that objective\.name = arm is about; set .*=trajectory",
        ),
        (
            {"objective__name": "mara", "advantage__weight": "none"},
            r"update\.kl_coef = 0 leaves no KL; use a number above 0",
        ),
        (
            {"objective__name": "mara", "update__kl_coef": 0.1},
            r"weight = surprise would scale .*advantage\.weight=none$",
        ),
        (
            {"objective__name": "entropy_adv", "objective__options": {"beta": 0.1}},
            r"objective\.options\.beta does not apply to entropy_adv; it has alpha, kappa",
        ),
        (
            {"objective__name": "entropy_adv", "objective__options": {"kapa": 0.1}},
            r"objective\.options\.kapa \(did you mean kappa\?\) does not apply to entropy_adv; it has alpha, kappa",
        ),
        (
            {"objective__name": "entropy_adv", "objective__options": {"kappa": 0.0}},
            r"objective\.options\.kappa = 0\.0; use a number above 0",
        ),
        (
            {"data__recorded": "runs", "latent__z": 4, "latent__condition": "conditioned"},
            r"recorded rollouts .* do not have; set latent\.condition=marginal",
        ),
        ({"data__recorded": "runs", "ib__estimator": "entropy"}, r"do not have; set ib\.estimator=likelihood or none"),
        ({"data__recorded": "runs", "log__entropies": True}, r"log\.entropies = True .* do not have; set False"),
    ],
)
def test_impossible_configs_are_refused_with_the_key_and_the_mend(change, message):
    with pytest.raises(InputError, match=message) as caught:
        validation.validate(changed(**change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"objective__name": "cispo", "objective__clip_low": 1.0},  # as published: no lower bound
        {"rollout__roots": 1, "branch__k": 0, "objective__name": "reinforce_pp", "ib__filter": "none"},
    ],
)
def test_what_only_some_methods_can_do_is_theirs(change):
    validation.validate(changed(**change))


@pytest.mark.parametrize(
    ("key", "value"), [("train.steps", 2.0), ("optim.lr", "1e-3"), ("eval.k", (1, 2.0)), ("model.dtype", 32)]
)
def test_values_of_another_type_are_refused_whatever_held_them(key, value):
    """A ConfigDict keeps most of them out; one that was built without the defaults' types does not."""
    config, (section, name) = default_config(), key.split(".")
    config.unlock()
    config[section] = ConfigDict({**config[section].to_dict(), name: value}, type_safe=False)
    with pytest.raises(InputError, match=rf"^{key} = .*; use (a|one of) "):
        validation.validate(config)


def test_all_mistakes_are_told_at_once():
    config = changed(
        train__steps=0,
        optim__lr=math.nan,
        branch__points="shred",
        rollout__refill_at=65,
        branch__parent="previous",
        branch__credit="siblings",
    )
    config.unlock()
    config.train.stepz = 3
    del config.log["every"]
    with pytest.raises(InputError) as caught:
        validation.validate(config)
    line = str(caught.value)
    assert line.startswith("7 mistakes: (1) unknown config key train.stepz; did you mean train.steps?; (2) config has ")
    keys = ("log.every", "train.steps = 0", "branch.points", "optim.lr = nan", "rollout.refill_at = 65", "credit = sib")
    places = [line.index(key) for key in keys]
    assert all(f"({n})" in line for n in range(1, 8)) and "(8)" not in line
    assert places[-2] > max(places[:-2]) and "\n" not in line  # values with one another come last


@pytest.mark.parametrize(
    "change",
    [
        {"rollout__roots": 1},  # with its branch a group of two
        {"rollout__roots": 2, "branch__k": 0},  # contrast keeps both
        {"rollout__roots": 4, "branch__k": 0, "ib__filter": "random"},  # half of them: two
        {"optim__decay_steps": 10},  # which a constant does not have
        {"branch__k": 0, "branch__per_point": 3, "branch__at": "segments", "branch__segment": 10**6},  # no branches
        {"optim__schedule": "cosine", "optim__decay_steps": 2000, "optim__warmup": 10},
    ],
)
def test_what_could_be_mistaken_for_a_mistake(change):
    assert validation.mistakes(changed(**change)) == []


def test_values_that_are_wrong_alone_are_not_compared():
    assert validation.mistakes(changed(update__minibatches=0)) == ["update.minibatches = 0; use 1 or more"]
    (line,) = validation.mistakes(changed(rollout__slots=0, rollout__refill_at=9))
    assert line.startswith("rollout.slots = 0;")


def test_a_hundred_mistakes_fit_on_a_line():
    config = default_config()
    config.unlock()
    for number in range(100):
        config.train[f"knob_{number}"] = number
    with pytest.raises(InputError, match=r"^100 mistakes: \(1\) .*; and \d+ more$") as caught:
        validation.validate(config)
    assert len(str(caught.value)) <= 2000


def test_groups_and_what_is_kept_of_them():
    def numbers(**values):
        config = changed(**values)
        return derived.group_size(config), derived.kept_per_prompt(config)

    assert numbers() == (8, 8)  # 4 roots, a branch each; whatever has contrast
    assert numbers(ib__filter="none") == (8, 8)
    assert numbers(ib__filter="score") == numbers(ib__filter="random") == (8, 4)  # half of them
    assert numbers(ib__keep=5) == (8, 5)
    assert numbers(rollout__roots=3, branch__k=0, ib__filter="score") == (3, 1)
    assert numbers(branch__k=2, branch__depth=3) == (12, 12)  # depth is not used where all branches grow on roots
    assert numbers(branch__k=2, branch__parent="previous") == (4 * (1 + 2 + 4),) * 2
    assert numbers(branch__k=1, branch__parent="previous", branch__depth=3) == (16, 16)


def test_injected_layers():
    assert derived.injected_layers(default_config(), 28) == 28
    assert derived.injected_layers(changed(psa__layers="4"), 28) == 4
    with pytest.raises(InputError, match=r"psa\.layers = 4 but the model has 3 layers; use at most 3"):
        derived.injected_layers(changed(psa__layers="4"), 3)


@pytest.mark.parametrize(
    ("axes", "devices", "shape"),
    [
        ((-1, 1, 1), 1, (1, 1, 1, 1)),
        ((-1, 2, 2), 8, (2, 2, 1, 2)),
        ((1, -1, 4), 8, (1, 2, 1, 4)),
        ((2, 2, 2), 8, (2, 2, 1, 2)),
    ],
)
def test_mesh_shapes_that_fit(axes, devices, shape):
    config = changed(mesh__data=axes[0], mesh__fsdp=axes[1], mesh__tensor=axes[2])
    assert derived.mesh_shape(config.mesh, devices=devices) == shape


@pytest.mark.parametrize(
    ("axes", "devices", "mend"),
    [
        ((1, 8, 1), 4, "mesh.data=1 mesh.fsdp=4 mesh.sequence=1 mesh.tensor=1"),
        ((2, 2, 1), 8, "mesh.data=1 mesh.fsdp=8 mesh.sequence=1 mesh.tensor=1"),
        ((-1, 3, 2), 8, "mesh.data=1 mesh.fsdp=4 mesh.sequence=1 mesh.tensor=2"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_numbers_that_do(axes, devices, mend):
    config = changed(mesh__data=axes[0], mesh__fsdp=axes[1], mesh__tensor=axes[2])
    with pytest.raises(InputError, match=rf"{devices} exist; use {mend}"):
        derived.mesh_shape(config.mesh, devices=devices)
    numbers = [int(part.split("=")[1]) for part in mend.split()]
    assert math.prod(numbers) == devices


def test_a_stored_config_comes_back(tmp_path):
    config = changed(
        psa__half_life=float("inf"), eval__k=(1, 2), task__options={"ks": (2, 3)}, objective__clip_high=0.28
    )
    files.save(config, tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    loaded = files.load(tmp_path / "run")
    assert files.resolve(loaded) == files.resolve(config)
    assert loaded.psa.half_life == float("inf") and loaded.eval.k == (1, 2) and loaded.task.options.ks == (2, 3)
    assert loaded.objective.clip_low is None and loaded.is_locked
    validation.validate(loaded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; give the workdir of a run"),
        ("{half", "is not JSON"),
        ("[1]", "holds no config"),
        ('{"train": {"stepz": 1}}', "unknown config key train.stepz; did you mean train.steps?"),
        ('{"train": {"steps": 2.5}}', "train.steps = 2.5; use a whole number, 1 or more"),
        ('{"optim": {"lr": "much"}}', "optim.lr = 'much'; use a number, 0 or more"),
        ('{"optim": {"lr": true}}', "optim.lr = True; use a number, 0 or more"),
        ('{"optim": {"lr": NaN}}', "optim.lr = nan; use a number, 0 or more"),
        ('{"eval": {"tasks": "math"}}', "eval.tasks = 'math'; use a list such as 'a','b'"),
        ('{"train": {"stepz": 1}, "log": {"every": []}}', "2 mistakes: (1) unknown config key train.stepz;"),
        ('{"train": {"steps": "many"}}', "train.steps = 'many'; use a whole number, 1 or more"),
    ],
)
def test_a_stored_config_that_cannot_be_used_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        files.load(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("power, weight", [(0.0, "none"), (0, "none"), (0.5, "surprise"), (2.0, "surprise")])
def test_a_stored_surprise_is_read_as_a_weight(tmp_path, capsys, power, weight):
    files.save(default_config(), tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["advantage"]
    stored["ib"]["surprise"] = power
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = files.load(tmp_path)
    assert loaded.advantage.weight == weight and not capsys.readouterr().err
    assert weight == "none" or loaded.advantage.power == power
    with pytest.raises(InputError, match=r"ib\.surprise is no more.*advantage\.weight=surprise"):
        raise files.unknown_key("ib.surprise", KNOBS)


def test_a_stored_chain_is_read_as_a_tree_of_one_branch_a_level(tmp_path, capsys):
    config = changed(branch__k=3, branch__parent="previous")
    stored = files.resolve(config)
    del stored["branch"]["depth"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = files.load(tmp_path)
    assert (loaded.branch.k, loaded.branch.depth, loaded.branch.parent) == (1, 3, "previous")
    assert derived.group_size(loaded) == 4 * (1 + 3)  # as the chain had
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "branch.k=1 branch.depth=3" in said


@pytest.mark.parametrize("change", [{"branch__parent": "root"}, {"branch__parent": "previous", "branch__k": 0}])
def test_other_stored_configs_without_depth_keep_their_k(tmp_path, capsys, change):
    stored = files.resolve(changed(**{"branch__k": 3} | change))
    del stored["branch"]["depth"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = files.load(tmp_path)
    assert (loaded.branch.k, loaded.branch.depth) == (stored["branch"]["k"], 2) and not capsys.readouterr().err


def test_a_stored_tree_stays_as_it_is(tmp_path, capsys):
    files.save(changed(branch__k=3, branch__parent="previous"), tmp_path)
    loaded = files.load(tmp_path)
    assert (loaded.branch.k, loaded.branch.depth) == (3, 2) and not capsys.readouterr().err


def test_a_stored_config_of_an_earlier_version(tmp_path, capsys):
    """It lacks a knob that came later, and has two that went: they had their defaults, and a line says so of each."""
    stored = files.resolve(changed(train__steps=7, latent__z=8))
    del stored["branch"]["credit"]
    stored["latent"] |= {"kl_weight": 1.0, "free_bits": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = files.load(tmp_path)
    assert files.resolve(loaded) == files.resolve(changed(train__steps=7, latent__z=8))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "config.json: latent.free_bits is dropped: nats a dimension" in lines[1]
    stored["latent"]["free_bits"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"latent\.free_bits = 0\.5, and there is no such knob any more: nats a d"):
        files.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.step", "did you mean train.steps?"),
        ("rollot.roots", "did you mean rollout.roots?"),
        ("lr", "did you mean latent.lr or optim.lr or reward_model.lr?"),
        ("train.colour", "known keys: train.max_bad_steps"),
        ("colour.hue", "known sections: advantage, attention, branch"),
        ("rolout", "did you mean log.rollouts or rollout?"),
    ],
)
def test_unknown_keys_are_told_the_nearest_one(key, hint):
    assert hint in str(files.unknown_key(key, files.flatten(default_config())))


@pytest.mark.parametrize(
    ("model", "rollout", "kv", "weights", "exact"),
    [
        ("float32", "float32", "", "", True),
        ("bfloat16", "bfloat16", "", "", False),
        ("bfloat16", "float32", "", "", False),
        ("float32", "bfloat16", "", "", False),
        ("float32", "float32", "bfloat16", "", False),
        ("float32", "float32", "", "int8", False),
    ],
)
def test_a_rollout_is_exact_in_float32_throughout(model, rollout, kv, weights, exact):
    config = changed(model__dtype=model, rollout__dtype=rollout, rollout__kv_dtype=kv, rollout__weights=weights)
    assert derived.rollout_is_exact(config) is exact
    config.data.recorded = "runs/first/rollouts"  # of a policy that nobody knows
    assert derived.rollout_is_exact(config) is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantage__weight": "surprise"}, r"advantage\.weight = surprise weighs prompts by their share of right"),
        ({"objective__name": "disco"}, r"objective\.name = disco asks the verifier which answers are right"),
        ({"train__refills": 2}, r"train\.refills = 2 looks for prompts on whose answers the verifier differs"),
        ({"ib__filter": "random"}, r"ib\.keep_contrast = True keeps answers because the verifier says"),
        ({"reward__model": "", "reward__ibl_coef": 0.1}, r"reward\.ibl_coef = 0\.1 is off a reward model's reward"),
        ({"reward__model_coef": 0.0}, r"reward\.model_coef = 0\.0; use a number above 0 and at most 1"),
        ({"reward_model__prompts": 4}, r"give 32 responses, too few for the covariance of reward_model\.z = 128"),
    ],
)
def test_with_a_reward_model_nothing_goes_by_right_answers(change, message):
    plain = {"reward__model": "runs/judge/reward_model", "advantage__weight": "none"}
    validation.validate(changed(**plain))
    with pytest.raises(InputError, match=message):
        validation.validate(changed(**(plain | change)))
