"""Makes the embedded models: small Qwen3-architecture decoders, taught worked solutions until they get some right.

    python -m iiblpo_jax.run.warm_start --name=arithmetic

re-creates a shipped checkpoint (about a minute on two CPU cores for `arithmetic`). Training stops early on purpose:
reinforcement learning needs a model that is sometimes right. One row in ten drops the question, so that the model also
knows how likely a response is without one, which is what I(q; r) asks.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import random
import tempfile
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from iiblpo_jax.common import masked
from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.data import arithmetic, countdown
from iiblpo_jax.data.task import Task
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, bind, params_of
from iiblpo_jax.model.files.loading import load_model
from iiblpo_jax.model.files.saving import save_model
from iiblpo_jax.model.logprobs import response_logprobs
from iiblpo_jax.model.tokens import tokenizer as tokenizers
from iiblpo_jax.rewards.scorer import Scorer
from iiblpo_jax.rewards.verifier import Problem
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import response_tokens
from iiblpo_jax.rollout.publication import PublicationSpec, publish
from iiblpo_jax.rollout.spec import RolloutSpec

ASSETS = "iiblpo_jax/data/assets"
SPECIALS = ("<pad>", "<bos>", "<eos>")
LEARNING_RATE, MAX_STEPS = 3e-3, 4000
ROWS = 32_768
RIGHT_CHAINS = 0.1  # share of countdown chains that are known to reach the target
SMALL = ModelConfig(
    family="qwen3",
    vocab_size=len(SPECIALS) + len(arithmetic.ALPHABET),
    d_model=64,
    d_ff=192,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    rope_theta=10_000.0,
    qk_norm=True,
    tied_embeddings=True,
    max_positions=256,
)


def known(problem: Problem, rng: random.Random) -> str:
    """The solution that a problem was made from."""
    assert problem.rationale is not None
    return problem.rationale


def some_miss(problem: Problem, rng: random.Random) -> str:
    """A true chain with the numbers of a countdown problem: a share RIGHT_CHAINS of them is sure to be right."""
    if rng.random() < RIGHT_CHAINS:
        return known(problem, rng)
    return countdown.chain(countdown.random_signs(rng, problem.metadata["numbers"]))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStart:
    """One shipped checkpoint.

    Attributes:
      task: makes the task, given `seed` and `train_size`; its training set is what is taught.
      alphabet: one token a character.
      target: sampled accuracy on held-out problems at which to stop.
      model: the architecture.
      batch: rows a step.
      check_every: steps between two looks at the accuracy.
      samples: responses a problem that are looked at.
      solution: (problem, random source) -> the response that is taught.
      grown_from: shipped checkpoint whose weights come first; empty = random ones.
    """

    task: Callable[..., Task]
    alphabet: str
    target: float
    model: ModelConfig = SMALL
    batch: int = 128
    check_every: int = 25
    samples: int = 1
    solution: Callable[[Problem, random.Random], str] = known
    grown_from: str = ""


CHECKPOINTS = {
    "arithmetic": WarmStart(task=arithmetic.make_arithmetic, alphabet=arithmetic.ALPHABET, target=0.45),
    "arithmetic_long": WarmStart(
        task=functools.partial(arithmetic.make_arithmetic, k_min=8, k_max=14),
        alphabet=arithmetic.ALPHABET,
        target=0.25,
        batch=32,
        check_every=20,
        samples=2,
        grown_from="arithmetic",
    ),
    "arithmetic_longer": WarmStart(
        task=functools.partial(arithmetic.make_arithmetic, k_min=16, k_max=30),
        alphabet=arithmetic.ALPHABET,
        target=0.25,
        model=dataclasses.replace(SMALL, max_positions=512),
        batch=16,
        check_every=20,
        samples=2,
        grown_from="arithmetic_long",
    ),
    "countdown": WarmStart(
        task=countdown.make_countdown,
        alphabet=countdown.ALPHABET,
        target=0.15,
        model=dataclasses.replace(SMALL, vocab_size=len(SPECIALS) + len(countdown.ALPHABET)),
        check_every=100,
        solution=some_miss,
    ),
}


def arguments(line: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `target` and `out` None stand for the checkpoint's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", choices=list(CHECKPOINTS), default="arithmetic", help="checkpoint to make")
    parser.add_argument("--out", help="directory of the checkpoint; default: where the shipped one is")
    parser.add_argument("--target", type=float, help="sampled accuracy on held-out problems at which to stop")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order")
    return parser.parse_args(line)


def character_tokenizer(directory: pathlib.Path, alphabet: str, max_length: int) -> tokenizers.Tokenizer:
    """One token a character of the alphabet; its files are written to `directory`, from where they are copied."""
    vocab = {token: i for i, token in enumerate((*SPECIALS, *alphabet))}
    hf = HFTokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    hf.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    hf.decoder = decoders.Fuse()
    hf.add_special_tokens(list(SPECIALS))
    hf.save(str(directory / "tokenizer.json"))
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return tokenizers.load_directory(directory)


def rows_of(problems, solutions: Sequence[str], tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Worked solutions as rows [prompt, solution, stop]: (tokens_NC, prompt_len_N, response_len_N)."""
    prompts = [tokenizer.encode(p.question) if i % 10 else [tokenizer.start_id] for i, p in enumerate(problems)]
    responses = [[*tokenizer.encode(solution), tokenizer.eos_id] for solution in solutions]
    tokens = np.zeros((len(problems), max(map(len, prompts)) + max(map(len, responses))), np.int32)
    for row, prompt, response in zip(tokens, prompts, responses, strict=True):
        row[: len(prompt) + len(response)] = prompt + response
    return tokens, np.array([len(p) for p in prompts]), np.array([len(r) for r in responses])


@functools.partial(jax.jit, donate_argnums=(0, 1), static_argnames=("model", "optimizer", "length"))
def train_step(params, opt_state, tokens_NC, prompt_len_N, response_len_N, *, model, optimizer, length):
    """One step of maximum likelihood on the responses."""

    def loss(params):
        logp_NT, _ = response_logprobs(bind(model, params), tokens_NC, prompt_len_N, length)
        return -masked.mean(logp_NT, jnp.arange(length) < response_len_N[:, None])

    value, gradients = jax.value_and_grad(loss)(params)
    changes, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, changes), opt_state, value


def sampled_accuracy(params, model: ModelConfig, task: Task, problems, tokenizer, length: int, samples: int, key):
    """Rewards [P, samples] at temperature 1."""
    prompt_PS, length_P = pad_rows([tokenizer.encode(p.question) for p in problems])
    spec = RolloutSpec(
        model=model,
        roots=samples,
        slots=128,
        refill_at=32,
        max_tokens=length,
        stop_ids=tokenizer.stop_ids,
        never_ids=tokenizer.textless_ids(model.vocab_size),
    )
    published = publish(params, spec=PublicationSpec(model=model))
    forest, _ = rollout(published, jnp.array(prompt_PS), jnp.array(length_P), key, spec=spec)
    texts = tokenizer.decode_batch(response_tokens(forest))
    with Scorer([task]) as scorer:
        return scorer.score([p for p in problems for _ in range(samples)], texts).rewards.reshape(-1, samples)


def main():
    asked = arguments()
    with tempfile.TemporaryDirectory() as directory:
        kind, folder = CHECKPOINTS[asked.name], pathlib.Path(directory)
        tokenizer = character_tokenizer(folder, kind.alphabet, kind.model.max_positions)
        params = _teach(kind, tokenizer, asked.seed, kind.target if asked.target is None else asked.target)
        out = asked.out or f"{ASSETS}/{asked.name}"
        save_model(out, kind.model, params, tokenizer)
    print(f"wrote {out}")


def _teach(kind: WarmStart, tokenizer, seed: int, target: float):
    """Parameters that are right as often as `target` says."""
    task, rng = kind.task(seed=seed, train_size=ROWS), random.Random(seed)
    solutions = [kind.solution(problem, rng) for problem in task.train]
    tokens_NC, prompt_len_N, response_len_N = rows_of(task.train, solutions, tokenizer)
    params = params_of(Decoder(kind.model, rngs=nnx.Rngs(seed)))
    if kind.grown_from:
        params = params_of(load_model(f"package:{ASSETS}/{kind.grown_from}")[0])
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(0.0, LEARNING_RATE, 50), b2=0.95)
    )
    opt_state, order = optimizer.init(params), np.random.default_rng(seed)
    length = int(response_len_N.max())
    check = functools.partial(sampled_accuracy, model=kind.model, task=task, tokenizer=tokenizer, length=length)
    for step in range(1, MAX_STEPS + 1):
        n = order.integers(0, len(tokens_NC), kind.batch)
        batch = tokens_NC[n], prompt_len_N[n], response_len_N[n]
        params, opt_state, loss = train_step(
            params, opt_state, *batch, model=kind.model, optimizer=optimizer, length=length
        )
        if step % kind.check_every:
            continue
        accuracy = check(params, problems=task.heldout[:256], samples=kind.samples, key=jax.random.key(step)).mean()
        print(f"step {step}  loss {float(loss):.3f}  sampled accuracy {accuracy:.3f}", flush=True)
        if accuracy >= target:
            break
    rewards = check(params, problems=task.heldout, samples=16, key=jax.random.key(1))
    print(f"held out: pass@1 {rewards.mean():.3f}, pass@16 {rewards.any(1).mean():.3f}")
    return params


if __name__ == "__main__":
    main()
