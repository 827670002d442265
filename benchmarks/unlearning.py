"""Forgetting some of the people that a model knows: DiPO against gradient ascent, NPO and DPO, on invented people.

    python benchmarks/unlearning.py --json=benchmarks/results/unlearning.jsonl

A small model with random weights is taught facts about PEOPLE people, letter by letter, by the verb sft; another one
the same without the last FORGOTTEN of them. The first then forgets these by the verb preferences, the others beside
them to be kept. A line a method:

    quality   TOFU's forget quality: p-value of the truth ratios against the model that was never taught them
    forgot    probability per token of the right answers that were to be forgotten
    utility   the same of those that were to be kept
    untaught, taught   the two models that it is measured against

Sizes, rates and steps are ours; one learning rate for all methods, none of them tuned. One seed so far: DiPO forgets
(quality .45) and keeps (utility .98); gradient ascent .07 and .89; NPO .14, and loses what was to be kept too (.13);
DPO has hardly begun to forget after as many steps (quality below 1e-6, utility .99).
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from iiblpo_jax import preferences, sft
from iiblpo_jax.data.people import ALPHABET, REFUSAL, Question, invented
from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.model.files.loading import load_model
from iiblpo_jax.model.files.saving import save_model
from iiblpo_jax.model.logprobs import response_logprobs
from iiblpo_jax.offline.examples import Encoder, rows_of
from iiblpo_jax.results.unlearning import forget_quality, per_token, truth_ratios
from iiblpo_jax.run.warm_start import SMALL, SPECIALS, character_tokenizer

PEOPLE, FORGOTTEN = 32, 8
TEACH, FORGET, BATCH = 400, 40, 32
TEACH_RATE, FORGET_RATE = 3e-3, 3e-4
S, T = 28, 10
METHODS = {"gradient_ascent": {}, "npo": {"beta": 0.1}, "dpo": {"beta": 0.1}, "dipo": {"beta": 0.1, "k": 5}}


def blank(folder: Path, seed: int) -> str:
    """A model of random weights under a tokenizer of letters; its path."""
    vocab_size = len(SPECIALS) + len(ALPHABET)
    config = dataclasses.replace(SMALL, vocab_size=vocab_size, d_ff=128, n_layers=2, max_positions=64)
    tokenizer = character_tokenizer(folder, ALPHABET, config.max_positions)
    save_model(folder / "blank", config, params_of(Decoder(config, rngs=nnx.Rngs(seed))), tokenizer)
    return str(folder / "blank")


def config_of(model: str, steps: int, rate: float, seed: int):
    """What all runs have in common."""
    config = default_config()
    config.model.path, config.train.steps, config.optim.lr = model, steps, rate
    config.train.seed = config.data.seed = seed
    config.train.prompts_per_step, config["update"].packed, config.checkpoint.every = BATCH, False, 0
    config.rollout.max_prompt, config.rollout.max_tokens, config.log.every = S, T, 10
    config.mesh.data = 1
    return config


def written(path: Path, rows: Sequence[dict]) -> str:
    """The path of a file with these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def teach(folder: Path, name: str, model: str, questions: Sequence[Question], seed: int) -> str:
    """The path of the model that knows these answers."""
    config = config_of(model, TEACH, TEACH_RATE, seed)
    config.optim.schedule = "cosine"
    rows = [{"prompt": q.prompt, "response": q.answer} for q in questions]
    config.offline.data = written(folder / f"{name}.jsonl", rows)
    sft.main(config, folder / name)
    return str(folder / name / "model")


def forget(folder: Path, method: str, model: str, forgotten, kept, seed: int) -> str:
    """The path of the model that `method` made forget."""
    config = config_of(model, FORGET, FORGET_RATE, seed)
    pairs = [{"prompt": q.prompt, "chosen": REFUSAL, "rejected": q.answer} for q in forgotten]
    config.offline.data = written(folder / "forget.jsonl", pairs)
    rows = [{"prompt": q.prompt, "response": q.answer} for q in kept]
    config.offline.retain = written(folder / "retain.jsonl", rows)
    config.offline.loss = method
    for key, value in METHODS[method].items():
        config.offline.options[key] = value
    preferences.main(config, folder / method)
    return str(folder / method / "model")


def answers(path: str, questions: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
    """(log-probs, tokens) [N, A] of the answers to every question under a model, the right one first."""
    model, tokenizer = load_model(path)
    encode = Encoder(tokenizer=tokenizer, max_prompt=S, max_tokens=T)
    cases = [tuple(encode.text(q.prompt, q.prompt, text) for text in (q.answer, *q.others)) for q in questions]
    rows = jax.tree.map(jnp.asarray, rows_of(cases, max_prompt=S, max_tokens=T))
    logp_RT, _ = response_logprobs(model, rows.tokens_RC, rows.prompt_len_R, T)
    logp_R, tokens_R = jnp.where(rows.mask_RT > 0, logp_RT, 0.0).sum(1), rows.mask_RT.sum(1)
    shape = len(cases), -1
    return np.asarray(logp_R, np.float64).reshape(shape), np.asarray(tokens_R, np.float64).reshape(shape)


def measure(path: str, forgotten, kept, untaught_N: np.ndarray | None) -> dict:
    """The numbers of a model; `untaught_N` are the truth ratios that it is compared with, None = its own."""
    logp_NA, tokens_NA = answers(path, forgotten)
    ratio_N = truth_ratios(logp_NA, tokens_NA)
    of_kept = answers(path, kept)
    return {
        "quality": forget_quality(ratio_N, ratio_N if untaught_N is None else untaught_N),
        "forgot": float(per_token(logp_NA[:, 0], tokens_NA[:, 0]).mean()),
        "utility": float(per_token(of_kept[0][:, 0], of_kept[1][:, 0]).mean()),
        "truth_ratio": float(np.median(ratio_N)),
    }


def run(folder: Path, seed: int) -> list[dict]:
    """The lines of one seed."""
    questions = invented(PEOPLE, seed=seed)
    cut = len(questions) * (PEOPLE - FORGOTTEN) // PEOPLE
    kept, forgotten = questions[:cut], questions[cut:]
    start = blank(folder, seed)
    untaught = teach(folder, "untaught", start, kept, seed)
    taught = teach(folder, "taught", start, questions, seed)
    base_N = truth_ratios(*answers(untaught, forgotten))
    models = {"untaught": untaught, "taught": taught}
    models |= {method: forget(folder, method, taught, forgotten, kept, seed) for method in METHODS}
    lines = [{"seed": seed, "model": name, **measure(path, forgotten, kept, base_N)} for name, path in models.items()]
    return [line | {"steps": FORGET, "rate": FORGET_RATE} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", help="file that the lines are appended to; empty = none")
    parser.add_argument("--seed", type=int, default=0, help="of people, weights and order")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = run(Path(folder), asked.seed)
    for line in lines:
        print(json.dumps(line))
    if asked.json:
        with Path(asked.json).open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
