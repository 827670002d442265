"""How different the samples of one prompt are: Distinct-n, 1 - Self-BLEU, 1 - Self-ROUGE (higher = more diverse).

Host side, on token lists, so that the figures depend on no word splitter. Two samples that are equal count as twice
the same text: a policy that always answers alike scores (almost) 0.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

Tokens = Sequence[int]

MAX_SAMPLES = 16  # the first 16 samples of a prompt
MAX_TOKENS = 512  # the first 512 tokens of a sample: what follows would make Self-ROUGE quadratic in minutes
_SMOOTHING = 0.1  # matches credited to an order without any (Chen and Cherry 2014, method 1)


def _ngrams(tokens: Tokens, n: int) -> Counter:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def distinct_n(samples: Sequence[Tokens], n: int) -> float:
    """Different n-grams / all n-grams over the samples of one prompt (Li et al. 2016). 0 if there are none."""
    counts = Counter()
    for sample in samples:
        counts.update(_ngrams(sample, n))
    return len(counts) / counts.total() if counts else 0.0


def _two_largest(per_sample: list[Counter]) -> tuple[dict, dict]:
    """Largest and second largest count of each n-gram over the samples; a third sample never changes a clip."""
    first, second = {}, {}
    for counts in per_sample:
        for gram, count in counts.items():
            if count > first.get(gram, 0):
                first[gram], second[gram] = count, first.get(gram, 0)
            elif count > second.get(gram, 0):
                second[gram] = count
    return first, second


def _clipped_matches(per_sample: list[Counter]) -> list[int]:
    """For each sample: sum over its n-grams of min(own count, largest count in another sample)."""
    first, second = _two_largest(per_sample)
    matches = []
    for counts in per_sample:
        others = (second[gram] if count == first[gram] else first[gram] for gram, count in counts.items())
        matches.append(sum(map(min, counts.values(), others)))
    return matches


def _brevity(length: int, others: list[int]) -> float:
    """exp(1 - r/c) where c falls short of r, the nearest length among the references (the shorter one on a tie)."""
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length >= nearest else math.exp(1 - nearest / length)


def self_bleu(samples: Sequence[Tokens], max_order: int = 4) -> float:
    """1 - Self-BLEU of one prompt (Zhu et al. 2018): mean BLEU-4 of each sample against all the others, from 1.

    Orders longer than the sample are left out and the weights stay equal; an order without a match gets 0.1 matches.
    1 where fewer than two samples have a token; a sample without tokens is skipped.
    """
    samples = [sample for sample in samples if len(sample)]
    if len(samples) < 2:
        return 1.0
    log_precision, orders = [0.0] * len(samples), [0] * len(samples)
    for n in range(1, max_order + 1):
        per_sample = [_ngrams(sample, n) for sample in samples]
        for i, match in enumerate(_clipped_matches(per_sample)):
            if total := len(samples[i]) - n + 1 if len(samples[i]) >= n else 0:
                log_precision[i] += math.log((match or _SMOOTHING) / total)
                orders[i] += 1
    lengths = [len(sample) for sample in samples]
    bleu = [
        _brevity(length, lengths[:i] + lengths[i + 1 :]) * math.exp(log_precision[i] / orders[i])
        for i, length in enumerate(lengths)
    ]
    return 1.0 - sum(bleu) / len(bleu)


def lcs_length(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence, bit-parallel over `a` (Hyyro 2004): one addition a token of `b`."""
    where: dict[int, int] = {}
    for i, token in enumerate(a):
        where[token] = where.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        match = row & where.get(token, 0)
        row = (row + match | row - match) & full
    return len(a) - row.bit_count()


def self_rouge(samples: Sequence[Tokens]) -> float:
    """1 - Self-ROUGE of one prompt: mean ROUGE-L F1 over all pairs of samples, from 1.

    F1 = 2 LCS / (len a + len b) (Lin 2004). 1 where fewer than two samples have a token.
    """
    samples = [sample for sample in samples if len(sample)]
    if len(samples) < 2:
        return 1.0
    scores = [2 * lcs_length(a, b) / (len(a) + len(b)) for a, b in combinations(samples, 2)]
    return 1.0 - sum(scores) / len(scores)


def diversity(groups: Sequence[Sequence[Tokens]]) -> dict[str, float]:
    """`distinct_1`, `distinct_4`, `self_bleu`, `self_rouge`: means over prompts; higher = more diverse for all four.

    `self_bleu` and `self_rouge` are the 1-minus values. `groups` holds the samples of each prompt as token lists
    without stop tokens; the first MAX_SAMPLES samples and the first MAX_TOKENS tokens of each are read.
    """
    measures = {
        "distinct_1": lambda samples: distinct_n(samples, 1),
        "distinct_4": lambda samples: distinct_n(samples, 4),
        "self_bleu": self_bleu,
        "self_rouge": self_rouge,
    }
    capped = [[list(sample[:MAX_TOKENS]) for sample in group[:MAX_SAMPLES]] for group in groups]
    return {name: sum(map(measure, capped)) / max(len(capped), 1) for name, measure in measures.items()}
