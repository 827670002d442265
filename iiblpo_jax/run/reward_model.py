"""The reward-model stage from a config: ask the model, grade or read pairs, fit, measure, store; or load what is there.

FOLDER.partial holds what a killed stage goes on from, to the bit: the rows it learns from, and checkpoints.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.jsonl import write_atomic
from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.config.files import flatten, resolve
from iiblpo_jax.data.pairs import read_pairs
from iiblpo_jax.data.prompts import distinct_prompts
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.devices.processes import any_process
from iiblpo_jax.latents.continuations import Continuation, policy_sampler
from iiblpo_jax.latents.training import Bar
from iiblpo_jax.model.decoder import cast
from iiblpo_jax.model.files.fingerprint import fingerprint
from iiblpo_jax.model.reward import make_head, moments, typical
from iiblpo_jax.reward_models import training
from iiblpo_jax.reward_models.pairs import PairRows, file_pairs, graded_pairs, split
from iiblpo_jax.reward_models.storage import (
    METRICS,
    Fitted,
    Made,
    has_reward_model,
    load_reward_model,
    save_reward_model,
)
from iiblpo_jax.rewards.scorer import CORRECT
from iiblpo_jax.rewards.together import make_scorer, score_together
from iiblpo_jax.rewards.verifier import Problem
from iiblpo_jax.run.checkpoints import Checkpoints
from iiblpo_jax.run.setup import Setup

SEED = 0x12E3A2D  # keeps the keys of this stage apart from those of the rollouts
ROWS, SETTINGS = "rows.npz", "settings.json"  # in the folder of an unfinished stage
FREE = ("tracker", "log", "eval", "checkpoint")  # sections that change nothing about a reward model
SHOWN_EVERY = 10  # steps between two looks at the loss


class Learnt(NamedTuple):
    """What the stage learns from: pairs, and the initial policy's responses [M,C] with their prompts."""

    pairs: PairRows
    tokens_MC: np.ndarray
    length_M: np.ndarray


def ensure_reward_model(
    setup: Setup, folder: Path, *, console: Console, stop: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """The metrics of the reward model of a folder, made first if there is none; None if it was stopped before.

    Args:
      setup: of the run.
      folder: where it is, or is to be.
      console: where progress and the table go.
      stop: asked once a step whether to save and leave.

    Raises:
      InputError: what is there belongs to another model or to other knobs; nothing to learn from; a bad pair file.
    """
    knobs, reference = setup.config.reward_model, setup.reference()
    made = Made(setup.model, reference, setup.tokenizer)
    if has_reward_model(folder):
        load_reward_model(folder, made, z=knobs.z, backbone=knobs.backbone)
        return json.loads((folder / METRICS).read_text())
    partial = folder.with_name(f"{folder.name}.partial")
    _keep_settings(partial, setup)

    # --- rows, and a model of them
    learnt = _learnt(setup, partial, reference, console)
    train, held_out = (learnt.pairs[index] for index in split(learnt.pairs.prompt_N))
    sizes = len(train), len(held_out), len(learnt.length_M)
    console.print("reward model: {} pairs to train on, {} held out, {} responses of the policy".format(*sizes))
    fitted = _fit(setup, partial, train, reference, stop)
    if fitted is None:
        return None
    head, backbone = fitted

    # --- how good it is, and what is typical of the policy
    read = functools.partial(_states, setup, _as_read(setup, backbone, reference))
    metrics = {"reward_model/pairs": float(len(train))}
    for where, pairs in {"train": train, "held_out": held_out}.items():
        h_N2D = read(*training.rows_of(pairs)).reshape(len(pairs), 2, -1)
        metrics |= {f"reward_model/{where}/{name}": x for name, x in training.measure(head, h_N2D).items()}
    mean_MZ = np.asarray(head.encode(read(learnt.tokens_MC, learnt.length_M))[0])
    mean_Z, covariance_ZZ = moments(mean_MZ)
    metrics |= _of_typical(mean_MZ, mean_Z, covariance_ZZ, setup.config.reward.mop_alpha)

    settings = {name: resolve(setup.config)[name] for name in ("reward_model", "task")}
    save_reward_model(folder, made, Fitted(head, mean_Z, covariance_ZZ, backbone), settings=settings, metrics=metrics)
    if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    return metrics


def show(metrics: dict[str, float], console: Console) -> None:
    """Prints the metrics of a reward model."""
    table = Table("reward model", "", title="held out: prompts that it has not learnt from")
    for name, value in metrics.items():
        table.add_row(name.removeprefix("reward_model/"), f"{value:.4g}")
    console.print(table)


def _of_typical(mean_MZ, mean_Z, covariance_ZZ, alpha: float) -> dict[str, float]:
    """How many dimensions the initial policy's latents fill, and how many of its responses are outliers by MOP."""
    those = typical(mean_Z, covariance_ZZ)
    outliers = float((those.tail(those.distance(mean_MZ)) < alpha).mean())
    return {"reward_model/freedom": float(those.freedom), "reward_model/mop": outliers}


def _keep_settings(partial: Path, setup: Setup) -> None:
    """Notes what an unfinished stage was begun with, and raises InputError where it was something else."""
    flat = {key: value for key, value in flatten(resolve(setup.config)).items() if key.split(".")[0] not in FREE}
    now = {"model": fingerprint(setup.model, setup.policy), **json.loads(json.dumps(flat))}
    path = partial / SETTINGS
    if path.exists():
        before = json.loads(path.read_text())
        differ = [key for key in now if before.get(key) != now[key]]
        if differ:
            raise InputError(
                f"{partial} was begun with another {', '.join(differ[:5])}; set it back, or delete that folder"
            )
    elif jax.process_index() == 0:
        partial.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(now) + "\n")


def _learnt(setup: Setup, partial: Path, reference: dict, console: Console) -> Learnt:
    """The rows of an unfinished stage, made first where it has none yet."""
    path = partial / ROWS
    if any_process(not path.exists()):
        found = _collect(setup, reference, console)
        if jax.process_index() == 0:
            temporary = path.with_suffix(".tmp.npz")
            pairs = {field.name: getattr(found.pairs, field.name) for field in dataclasses.fields(found.pairs)}
            np.savez(temporary, **pairs, tokens_MC=found.tokens_MC, length_M=found.length_M)
            temporary.replace(path)
        return found
    with np.load(path, allow_pickle=False) as stored:
        pairs = PairRows(**{field.name: stored[field.name] for field in dataclasses.fields(PairRows)})
        return Learnt(pairs, stored["tokens_MC"], stored["length_M"])


def _collect(setup: Setup, reference: dict, console: Console) -> Learnt:
    config, tokenizer = setup.config, setup.tokenizer
    pairs, rollout = None, config.rollout
    if config.reward_model.pairs:  # before the model is asked anything: the file may be wrong
        rows = read_pairs(config.reward_model.pairs)
        pairs, dropped = file_pairs(rows, tokenizer, longest=rollout.max_prompt + rollout.max_tokens)
        if dropped:
            console.print(f"{dropped} pairs longer than rollout.max_prompt + rollout.max_tokens are left out")
    asked = distinct_prompts(setup.pipeline(), config.reward_model.prompts)
    samples = policy_sampler(
        config,
        setup.model,
        reference,
        tokenizer.stop_ids,
        jax.random.fold_in(jax.random.key(config.train.seed), SEED),
        samples=config.reward_model.samples,
        never_ids=tokenizer.textless_ids(setup.model.vocab_size),
        mesh=setup.mesh,
    )([prompt for _, prompt in asked])
    if pairs is None:
        pairs = graded_pairs(samples, _right(setup, [problem for problem, _ in asked], samples))
    tokens_MC, length_M = _padded(samples)
    return Learnt(pairs, tokens_MC, length_M)


def _padded(samples: list[list[Continuation]]) -> tuple[np.ndarray, np.ndarray]:
    return pad_rows([[*one.prompt, *one.response] for mine in samples for one in mine])


def _right(setup: Setup, problems: list[Problem], samples: list[list[Continuation]]) -> np.ndarray:
    """Which responses are right [P,G], by the verifiers of their tasks."""
    stops = set(setup.tokenizer.stop_ids)
    said = [
        one.response[:-1] if one.response[-1:] and one.response[-1] in stops else one.response
        for mine in samples
        for one in mine
    ]
    asked = [problem for problem, mine in zip(problems, samples, strict=True) for _ in mine]
    with make_scorer(setup.config, [task for task, _ in setup.tasks]) as scorer:
        grades = score_together(scorer, asked, setup.tokenizer.decode_batch(said))
    return (grades.rewards >= CORRECT).reshape(len(problems), -1)


def _as_read(setup: Setup, backbone: dict | None, reference: dict) -> dict:
    """The backbone in the dtype in which a run will read it."""
    return reference if backbone is None else cast(backbone, setup.config.model.dtype)


def _states(setup: Setup, backbone: dict, tokens_NC: np.ndarray, length_N: np.ndarray) -> jax.Array:
    """Hidden states [N,D] of rows on the run's devices."""
    rows = meshes.to_devices((tokens_NC, length_N), setup.mesh)
    return training.states_of(setup.model, backbone, *rows, mesh=setup.mesh)


def _fit(setup: Setup, partial: Path, train: PairRows, reference: dict, stop: Callable[[], bool]):
    """(head, trained backbone or None), from the beginning or from the newest checkpoint; None if it was stopped."""
    config, knobs = setup.config, setup.config.reward_model
    trained = knobs.backbone == "trained"
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.train.seed), SEED), 1)
    steps = training.steps_of(pairs=len(train), batch=knobs.batch, epochs=knobs.epochs)
    fit = training.Fit(
        model=setup.model if trained else None,
        dtype=config.model.dtype,
        beta=knobs.beta,
        lr=knobs.lr,
        steps=steps,
        mesh=setup.mesh,
    )
    params = {"head": setup.placed(make_head(key, width=setup.model.d_model, latent=knobs.z))}
    if trained:
        params["backbone"] = jax.tree.map(jnp.copy, cast(setup.policy, "float32"))
        pairs = meshes.to_devices((train.tokens_N2C, train.length_N2), setup.mesh)
    else:
        h_ND = _states(setup, reference, *training.rows_of(train))
        pairs = (h_ND.reshape(len(train), 2, -1),)
    state = setup.placed(fit.begin(params))
    checkpoints = Checkpoints(partial, keep=1, every=config.checkpoint.every)
    try:
        checkpoints.remove_unfinished()
        newest = checkpoints.restore_latest(state)
        first, state = (0, state) if newest is None else newest[:2]
        run, bar, done = training.make_step(fit, state), Bar("reward model", steps), first
        for done in range(first + 1, steps + 1):
            index_B = training.batch_of(done - 1, pairs=len(train), batch=knobs.batch, seed=config.train.seed)
            index_B = meshes.to_devices(index_B.astype(np.int32), setup.mesh)
            state, terms = run(state, pairs, index_B, jax.random.fold_in(key, done))
            if done % SHOWN_EVERY == 0:
                bar.update(done, float(terms["loss"]))
            stopped = stop()
            checkpoints.save(done, state, force=stopped)
            if stopped:
                return None
        bar.close()
    finally:
        checkpoints.close()
    return state["params"]["head"], state["params"].get("backbone")
