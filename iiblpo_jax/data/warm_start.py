"""Makes the embedded model: a small Qwen3-architecture decoder, taught worked sums until it gets half of them right.

    python -m iiblpo_jax.data.warm_start --out=iiblpo_jax/data/assets/arithmetic

re-creates the shipped checkpoint (about a minute on two CPU cores). Training stops early on purpose: reinforcement
learning needs a model that is sometimes right. One row in ten drops the question, so that the model also knows how
likely a response is without one, which is what I(q; r) asks.
"""

import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from iiblpo_jax import masked, tokenizers
from iiblpo_jax.data.arithmetic import ALPHABET, make_arithmetic
from iiblpo_jax.forest import pad_rows, response_tokens
from iiblpo_jax.logprobs import response_logprobs
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, bind, params_of
from iiblpo_jax.model.saving import save_model
from iiblpo_jax.publication import PublicationSpec, publish
from iiblpo_jax.rewards.exact import grade
from iiblpo_jax.rollout.engine import RolloutSpec, rollout

OUT = flags.DEFINE_string("out", "iiblpo_jax/data/assets/arithmetic", "Directory of the checkpoint.")
TARGET = flags.DEFINE_float("target", 0.45, "Sampled accuracy on held-out sums at which to stop.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and order.")

SPECIALS = ("<pad>", "<bos>", "<eos>")
BATCH, LEARNING_RATE, CHECK_EVERY, MAX_STEPS = 128, 3e-3, 25, 4000
MODEL = ModelConfig(
    family="qwen3",
    vocab_size=len(SPECIALS) + len(ALPHABET),
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


def character_tokenizer(directory: pathlib.Path) -> tokenizers.Tokenizer:
    """One token a character of the sums' alphabet; its files are written to `directory`, from where they are copied."""
    vocab = {token: i for i, token in enumerate((*SPECIALS, *ALPHABET))}
    hf = HFTokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    hf.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    hf.decoder = decoders.Fuse()
    hf.add_special_tokens(list(SPECIALS))
    hf.save(str(directory / "tokenizer.json"))
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MODEL.max_positions, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return tokenizers.load_directory(directory)


def rows_of(problems, tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Worked solutions as rows [prompt, rationale, stop]: (tokens_NC, prompt_len_N, response_len_N)."""
    prompts = [tokenizer.encode(p.question) if i % 10 else [tokenizer.start_id] for i, p in enumerate(problems)]
    responses = [[*tokenizer.encode(p.rationale), tokenizer.eos_id] for p in problems]
    tokens = np.zeros((len(problems), max(map(len, prompts)) + max(map(len, responses))), np.int32)
    for row, prompt, response in zip(tokens, prompts, responses, strict=True):
        row[: len(prompt) + len(response)] = prompt + response
    return tokens, np.array([len(p) for p in prompts]), np.array([len(r) for r in responses])


@functools.partial(jax.jit, donate_argnums=(0, 1), static_argnames=("optimizer", "length"))
def train_step(params, opt_state, tokens_NC, prompt_len_N, response_len_N, *, optimizer, length):
    """One step of maximum likelihood on the responses."""

    def loss(params):
        logp_NT, _ = response_logprobs(bind(MODEL, params), tokens_NC, prompt_len_N, length)
        return -masked.mean(logp_NT, jnp.arange(length) < response_len_N[:, None])

    value, gradients = jax.value_and_grad(loss)(params)
    changes, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, changes), opt_state, value


def sampled_accuracy(params, problems, tokenizer, length: int, samples: int, key) -> np.ndarray:
    """Rewards [P, samples] at temperature 1."""
    prompt_PS, length_P = pad_rows([tokenizer.encode(p.question) for p in problems])
    spec = RolloutSpec(
        model=MODEL, roots=samples, slots=128, refill_at=32, max_tokens=length, stop_ids=tokenizer.stop_ids
    )
    published = publish(params, spec=PublicationSpec(model=MODEL))
    forest, _ = rollout(published, jnp.array(prompt_PS), jnp.array(length_P), key, spec=spec)
    texts = tokenizer.decode_batch(response_tokens(forest))
    answers = [p.answer for p in problems for _ in range(samples)]
    return np.array([grade(t, a, marker="#") for t, a in zip(texts, answers, strict=True)]).reshape(-1, samples)


def main(_):
    with tempfile.TemporaryDirectory() as directory:
        _make(character_tokenizer(pathlib.Path(directory)))


def _make(tokenizer):
    task = make_arithmetic(seed=SEED.value, train_size=32_768)
    tokens_NC, prompt_len_N, response_len_N = rows_of(task.train, tokenizer)
    params = params_of(Decoder(MODEL, rngs=nnx.Rngs(SEED.value)))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(0.0, LEARNING_RATE, 50), b2=0.95)
    )
    opt_state, order = optimizer.init(params), np.random.default_rng(SEED.value)
    length = int(response_len_N.max())
    for step in range(1, MAX_STEPS + 1):
        n = order.integers(0, len(tokens_NC), BATCH)
        batch = tokens_NC[n], prompt_len_N[n], response_len_N[n]
        params, opt_state, loss = train_step(params, opt_state, *batch, optimizer=optimizer, length=length)
        if step % CHECK_EVERY:
            continue
        accuracy = sampled_accuracy(params, task.heldout[:256], tokenizer, length, 1, jax.random.key(step)).mean()
        print(f"step {step}  loss {float(loss):.3f}  sampled accuracy {accuracy:.3f}", flush=True)
        if accuracy >= TARGET.value:
            break
    rewards = sampled_accuracy(params, task.heldout, tokenizer, length, 16, jax.random.key(1))
    print(f"held out: pass@1 {rewards.mean():.3f}, pass@16 {rewards.any(1).mean():.3f}")
    save_model(OUT.value, MODEL, params, tokenizer)
    print(f"wrote {OUT.value}")


if __name__ == "__main__":
    app.run(main)
