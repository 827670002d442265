"""The latent stage from a config: collect, cut, fit the CVAE or codes, fit PSA, measure, store; or load it."""

import time
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.derived import injected_layers
from iiblpo_jax.config.files import resolve
from iiblpo_jax.devices.processes import any_process
from iiblpo_jax.latents import diagnostics
from iiblpo_jax.latents.continuations import Question, gather, policy_sampler
from iiblpo_jax.latents.features import Pairs, Rows, extract, rows_of, split_by_prompt
from iiblpo_jax.latents.storage import has_latents, load_latents, save_latents
from iiblpo_jax.latents.training import Fit, train_codes, train_cvae, train_psa
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.steering.codes import Codes
from iiblpo_jax.model.steering.cvae import CVAE
from iiblpo_jax.model.steering.psa import PSA
from iiblpo_jax.step import specs

HELD_OUT = 0.125  # share of the prompts that only the diagnostics see
FREE_BITS = 0.1  # nats a dimension that the KL of the CVAE may cost nothing
PSA_POSITIONS = 2**11  # row positions of a PSA step: it runs the whole language model, forward and backward
PSA_ROWS = 8  # rows of a PSA step, at least: long responses must not leave one noisy row
SEED = 0x1A7E17  # keeps the keys of this stage apart from those of the rollouts


def ensure_latents(
    config,
    directory: Path,
    model_config: ModelConfig,
    params: dict,
    questions,
    *,
    stop_ids: Sequence[int],
    never_ids: Sequence[int] = (),
    console: Console | None = None,
    mesh: Mesh | None = None,
) -> tuple[CVAE | Codes, PSA]:
    """Loads the latents of a workdir; trains and stores them first if there are none.

    Args:
      config: the run's config.
      directory: `latent/` of the workdir.
      model_config, params: the frozen model.
      questions: callable () -> list[Question] of training prompts; called only when there is something to train.
      stop_ids, never_ids: token ids that end a response, and that are never drawn.
      console: where progress and the table go.
      mesh: devices that hold the weights; None = one.

    Raises:
      InputError: stored latents belong to another model or another latent.kind, z or psa.layers; latent.z is 0.
    """
    if config.latent.z == 0:
        raise InputError("latent.z = 0: there is no latent to train; set latent.z, such as 16")
    n_injected = injected_layers(config, model_config.n_layers)
    if any_process(not has_latents(directory)):  # asked of all, before a faster one stores its own
        train_latents(
            config,
            directory,
            model_config,
            params,
            questions(),
            stop_ids=stop_ids,
            never_ids=never_ids,
            console=console,
            mesh=mesh,
        )
    knobs = config.latent
    return load_latents(directory, model_config, params, kind=knobs.kind, z=knobs.z, n_injected=n_injected)


def train_latents(
    config,
    directory: Path,
    model_config: ModelConfig,
    params: dict,
    questions: Sequence[Question],
    *,
    stop_ids: Sequence[int],
    never_ids: Sequence[int] = (),
    console: Console | None = None,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Trains both parts, prints the diagnostics, stores everything in `directory`; returns the metrics."""
    console, began, knobs = console or Console(), time.monotonic(), config.latent
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.train.seed), SEED), 5)

    # --- continuations, cuts, features; codes tell the policy's own choices apart
    if knobs.kind == "codes":
        questions = [question._replace(gold=None) for question in questions]
    own = policy_sampler(config, model_config, params, stop_ids, keys[0], never_ids=never_ids, mesh=mesh)
    rows = rows_of(gather(questions, own))
    how = {"temperature": config.rollout.temperature}
    pairs = _cut(config, model_config, params, rows, keys[1], mesh)
    train, held_out = (pairs[index] for index in split_by_prompt(rows, fraction=HELD_OUT))
    sizes = len(questions), len(train.cut_N), len(held_out.cut_N)
    console.print("latent stage: {} prompts, {} continuations to train on, {} held out".format(*sizes))

    # --- the CVAE or the codes, then PSA with these and the language model frozen
    cvae = _fit_source(knobs, train, keys[2], mesh)
    how |= {"half_life": config.psa.half_life, "strength": config.psa.strength}
    psa, _ = train_psa(
        model_config,
        params,
        cvae,
        train,
        keys[3],
        n_injected=injected_layers(config, model_config.n_layers),
        steps=knobs.psa_steps,
        batch=min(knobs.batch, max(PSA_ROWS, PSA_POSITIONS // rows.tokens_NC.shape[1])),
        lr=knobs.psa_lr,
        prior_weight=knobs.prior_weight,
        mesh=mesh,
        **how,
    )

    # --- does the model listen?
    metrics = diagnostics.diagnose(model_config, params, cvae, psa, held_out, keys[4], mesh=mesh, **how)
    diagnostics.show(metrics, console)
    settings = {name: resolve(config)[name] for name in ("latent", "psa", "branch", "task")}
    save_latents(directory, model_config, params, cvae, psa, settings=settings, metrics=metrics)
    console.print(f"stored in {directory} after {time.monotonic() - began:.0f} s")
    return metrics


def _cut(config, model_config: ModelConfig, params: dict, rows: Rows, key, mesh: Mesh | None) -> Pairs:
    """The rows with their cuts and features; for codes only where the policy hesitates."""
    codes = config.latent.kind == "codes"
    return extract(
        model_config,
        params,
        rows,
        key,
        temperature=config.rollout.temperature,
        branching=specs.branching(config),
        window=config.latent.window if codes else 0,
        anywhere=0.0 if codes else 0.5,
        mesh=mesh,
    )


def _fit_source(knobs, train: Pairs, key, mesh: Mesh | None) -> CVAE | Codes:
    """What z is drawn from: the CVAE or the codes of latent.kind, fitted to the training pairs."""
    how = Fit(latent=knobs.z, hidden=knobs.hidden, steps=knobs.steps, batch=knobs.batch, lr=knobs.lr, mesh=mesh)
    features = (train.context_ND, train.target_ND, key, how)
    if knobs.kind == "codes":
        return train_codes(*features)[0]
    return train_cvae(*features, free_bits=FREE_BITS, kl_warmup=knobs.kl_warmup)[0]
