"""What the tests of tokenizers share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def train_sentencepiece():
    """A function that trains a byte-fallback BPE model and returns its file `<folder>/<name>.model`."""
    import sentencepiece

    def train(folder: Path, name: str, corpus: list[str], vocab_size: int) -> Path:
        (folder / "corpus.txt").write_text("\n".join(corpus))
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "corpus.txt"),
            model_prefix=str(folder / name),
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
        return folder / f"{name}.model"

    return train
