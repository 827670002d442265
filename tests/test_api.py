"""The public interface: three functions and an error, loaded when they are used."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import iiblpo_jax
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.files.loading import resolve

EMBEDDED = "package:iiblpo_jax/data/assets/arithmetic"


def test_logits_equal_transformers():
    model, tokenizer = iiblpo_jax.load_model(EMBEDDED)
    tokens_BT = [tokenizer.encode("7+8+9=7+8=15"), tokenizer.encode("#1;2+3=5#5+4")]
    theirs = AutoModelForCausalLM.from_pretrained(resolve(EMBEDDED), dtype=torch.float32)
    with torch.no_grad():
        expected_BTV = theirs(torch.tensor(tokens_BT)).logits.numpy()
    logits_BTV = iiblpo_jax.logits(model, jnp.array(tokens_BT))
    assert logits_BTV.shape == (2, 12, 17)
    np.testing.assert_allclose(logits_BTV, expected_BTV, atol=1e-4)


def test_a_directory_and_a_package_name_the_same_model():
    (here, tokenizer), (there, _) = (iiblpo_jax.load_model(path) for path in (EMBEDDED, resolve(EMBEDDED)))
    jax.tree.map(np.testing.assert_array_equal, params_of(here), params_of(there))
    assert tokenizer.decode(tokenizer.encode("2+3=")) == "2+3="


def test_bad_input_has_one_public_error():
    with pytest.raises(iiblpo_jax.InputError, match="no model at"):
        iiblpo_jax.load_model("no/such/directory")
    with pytest.raises(AttributeError, match="logprobs_of"):
        _ = iiblpo_jax.logprobs_of


def test_importing_the_package_does_not_import_jax():
    code = "import sys, iiblpo_jax, iiblpo_jax.cli; assert not {'jax', 'flax', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
