"""Does S_IB rank as the paper says: concise over padded over a loop, concise over a drift? All estimators side by side.

    python benchmarks/score_ranking.py [--json=PATH] [--count=120] [--tasks=arithmetic,countdown,words]

Two kinds of groups. `labelled`: the four responses of ranking_set.py, whose order is known. `rollouts`: 16 samples of a
problem from the embedded model. A score that was a function of correctness or length would follow them, so the table
has its correlation with both (Pearson, within the group) and the share of its variance that the two together explain.
A task whose model is not installed is left out, and stderr says so.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable

import harness
import jax
import jax.numpy as jnp
import numpy as np
from ranking_set import KINDS, TASKS, Labelled, labelled_set

from iiblpo_jax import bottleneck
from iiblpo_jax.bottleneck.diagnostics import auc_within_prompts, correlation_within_prompts
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.padded import Padded, pad_rows
from iiblpo_jax.data.pipeline import heldout_batches
from iiblpo_jax.data.prompts import PromptBatch
from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.decoder import bind, params_of
from iiblpo_jax.model.files.loading import load_model
from iiblpo_jax.rewards.scorer import CORRECT, Scorer
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import LENGTH, STOP, response_tokens
from iiblpo_jax.rollout.marker import marker_cut, marker_table
from iiblpo_jax.rollout.publication import PublicationSpec, publish
from iiblpo_jax.rollout.spec import RolloutSpec

IB = default_config().ib
SAMPLES = 16  # of a problem, in the groups of rollouts
ORDERS = {"concise > padded": (0, 1), "padded > loop": (1, 2), "concise > drift": (0, 3)}
COLUMNS = (
    "task",
    "groups",
    "score",
    "ordered",
    *ORDERS,
    "padded > drift",
    "auc",
    "corr_correct",
    "corr_length",
    "explained",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of P groups of G responses; nats except `length_PG` and `correct_PG`.

    answer_PG: I(r; a). description_PG: - log p(r). given_PG: - log p(r | q).
    """

    answer_PG: np.ndarray
    description_PG: np.ndarray
    given_PG: np.ndarray
    length_PG: np.ndarray
    correct_PG: np.ndarray


def score(facts: Facts, cost_PG, *, answer_PG=None, beta: float = IB.beta, price: float = 0.0) -> np.ndarray:
    """S_IB with another compression term, answer term or price of a token."""
    mean_P1 = facts.length_PG.mean(axis=1, keepdims=True)
    answer_PG = facts.answer_PG if answer_PG is None else answer_PG
    everyone_PG = jnp.ones(facts.length_PG.shape, bool)
    return np.asarray(
        bottleneck.likelihood_score(
            answer_PG, cost_PG / mean_P1, facts.length_PG, everyone_PG, beta=beta, length_cost=price
        )
    )


SCORES: dict[str, Callable[[Facts], np.ndarray]] = {
    "default": lambda f: score(f, f.description_PG, price=IB.length_cost),
    "I(q;r)": lambda f: score(f, f.description_PG - f.given_PG),
    "description": lambda f: score(f, f.description_PG),
    "description, 1 nat a token": lambda f: score(f, f.description_PG, price=1.0),
    "description, log": lambda f: score(f, np.log(f.description_PG + IB.length_cost * f.length_PG)),
    "description, beta 2": lambda f: score(f, f.description_PG, price=IB.length_cost, beta=2.0),
    "description, answer above 0": lambda f: score(
        f, f.description_PG, price=IB.length_cost, answer_PG=np.maximum(f.answer_PG, 0.0)
    ),
    "description, answer as probability": lambda f: score(  # p(a|q,r) - p(a|q), up to a factor of the group
        f, f.description_PG, price=IB.length_cost, answer_PG=np.exp(f.answer_PG - f.answer_PG.max(1, keepdims=True))
    ),
    "description given q": lambda f: score(f, f.given_PG),
    "description given q, 0.5 nats a token": lambda f: score(f, f.given_PG, price=0.5),
    "length": lambda f: score(f, f.length_PG),
    "answer alone": lambda f: score(f, np.zeros_like(f.length_PG)),
}


class Reference:
    """A frozen model and what it says about responses."""

    def __init__(self, path: str):
        model, self.tokenizer = load_model(path)
        self.config, self.params = model.config, params_of(model)
        self._likelihood = jax.jit(self._bound, static_argnames="compression")

    def _bound(self, params, evidence, compression):
        reading = bottleneck.Reading(start_id=self.tokenizer.start_id, pack_tokens=2048)
        return bottleneck.likelihood(bind(self.config, params), **evidence, reading=reading, compression=compression)

    def batch(self, task, problems) -> PromptBatch:
        """The problems as the trainer would read them."""
        asked = dataclasses.replace(task, heldout=problems)
        (batch,) = heldout_batches(asked, self.tokenizer, batch_size=len(problems), max_prompt=64, max_answer=8)
        return batch

    def facts(self, task, batch: PromptBatch, tokens, finish_R, correct_R) -> Facts:
        """Reads P * G responses, token lists with their stop tokens; those of a problem lie together."""
        response_RT, length_R = pad_rows(tokens)
        table = marker_table(self.tokenizer.token_bytes(), task.marker)
        evidence = {
            "prompt": Padded(batch.tokens_PS, batch.length_P),
            "response": Padded(response_RT, length_R),
            "cut_R": marker_cut(table, response_RT, length_R, finish_R),
            "cue": Padded(batch.cue_PQ, batch.cue_length_P),
            "answer": Padded(batch.answer_PA, batch.answer_length_P),
        }
        found = self._likelihood(self.params, evidence, compression=IB.compression)

        def by_prompt(x_R):
            return np.asarray(x_R, np.float64).reshape(len(batch.length_P), -1)

        length_PG = by_prompt(length_R)
        return Facts(
            answer_PG=by_prompt(found.answer_R),
            description_PG=by_prompt(found.prompt_R) * length_PG.mean(axis=1, keepdims=True),
            given_PG=-by_prompt(found.ref_logp_RT.sum(axis=1)),
            length_PG=length_PG,
            correct_PG=by_prompt(correct_R) > 0,
        )


def labelled_facts(reference: Reference, labelled: Labelled) -> Facts:
    """Groups of the four KINDS. Concise and padded responses count as right: their final answer is."""
    problems = [quadruple.problem for quadruple in labelled.quadruples]
    finish_R = np.tile([LENGTH if kind == "loop" else STOP for kind in KINDS], len(problems))
    texts = [text for quadruple in labelled.quadruples for text in quadruple.texts]
    stop = [reference.tokenizer.stop_ids[0]]
    tokens = [reference.tokenizer.encode(text) + stop * int(end) for text, end in zip(texts, finish_R, strict=True)]
    right_R = np.tile([kind in ("concise", "padded") for kind in KINDS], len(problems))
    return reference.facts(labelled.task, reference.batch(labelled.task, problems), tokens, finish_R, right_R)


def rollout_facts(reference: Reference, labelled: Labelled, *, max_tokens: int) -> Facts:
    """Groups of SAMPLES responses of the model itself, at temperature 1, to the same problems."""
    problems = [quadruple.problem for quadruple in labelled.quadruples]
    batch = reference.batch(labelled.task, problems)
    spec = RolloutSpec(
        model=reference.config,
        roots=SAMPLES,
        slots=64,
        refill_at=16,
        max_tokens=max_tokens,
        stop_ids=reference.tokenizer.stop_ids,
        never_ids=reference.tokenizer.textless_ids(reference.config.vocab_size),
    )
    published = publish(reference.params, spec=PublicationSpec(model=reference.config))
    prompts = jnp.asarray(batch.tokens_PS), jnp.asarray(batch.length_P)
    forest, _ = rollout(published, *prompts, jax.random.key(0), spec=spec)
    with Scorer([labelled.task]) as scorer:
        texts = reference.tokenizer.decode_batch(response_tokens(forest))
        rewards_R = scorer.score([problem for problem in problems for _ in range(SAMPLES)], texts).rewards
    tokens = response_tokens(forest, stop=True)
    return reference.facts(labelled.task, batch, tokens, np.asarray(forest.finish_R), rewards_R >= CORRECT)


def verdict(score_PG: np.ndarray, facts: Facts) -> dict:
    """What a score follows besides the order: AUC for correctness, correlations, variance explained."""
    everyone_PG = jnp.ones(score_PG.shape, bool)
    follows = functools.partial(correlation_within_prompts, score_PG, valid_PG=everyone_PG)
    return {
        "auc": float(auc_within_prompts(score_PG, facts.correct_PG, everyone_PG)),
        "corr_correct": float(follows(facts.correct_PG.astype(np.float32))),
        "corr_length": float(follows(facts.length_PG)),
        "explained": explained(score_PG, facts.correct_PG, facts.length_PG),
    }


def explained(score_PG: np.ndarray, *causes_PG: np.ndarray) -> float:
    """Share of the score's variance within groups that a linear function of the causes explains."""

    def centre(x_PG):
        return (x_PG - x_PG.mean(axis=1, keepdims=True)).ravel()

    y, x = centre(score_PG), np.stack([centre(cause.astype(float)) for cause in causes_PG], axis=1)
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(1 - (rest**2).sum() / (y**2).sum())


def orders(score_PG: np.ndarray) -> dict:
    """Shares of quadruples in which each pair, and all of ORDERS, is in order; ties are not."""
    above = {name: score_PG[:, i] > score_PG[:, j] for name, (i, j) in ORDERS.items()}
    shares = {name: float(x.mean()) for name, x in above.items()}
    beyond = {"padded > drift": float((score_PG[:, 1] > score_PG[:, 3]).mean())}
    return {"ordered": float(np.all(list(above.values()), axis=0).mean())} | shares | beyond


def rows_of(task: str, groups: str, facts: Facts) -> list[dict]:
    """One row a score."""
    rows = []
    for name, scored in SCORES.items():
        score_PG = scored(facts)
        order = orders(score_PG) if groups == "labelled" else {}
        rows.append({"task": task, "groups": groups, "score": name} | order | verdict(score_PG, facts))
    return rows


def main():
    """All tasks, both kinds of groups, every score."""
    parser = harness.arguments(__doc__, repetitions=1)
    parser.add_argument("--tasks", type=harness.words, default=list(TASKS), help="default: all")
    parser.add_argument("--count", type=int, default=120, help="quadruples a task (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the quadruples (default %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        options.count = 4
    results = []
    for name in options.tasks:
        labelled = labelled_set(name, count=options.count, seed=options.seed)
        try:
            reference = Reference(labelled.reference)
        except InputError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        results += rows_of(name, "labelled", labelled_facts(reference, labelled))
        if name != "words":  # SmolLM2 has never seen this task: hardly a sample is right
            results += rows_of(name, "rollouts", rollout_facts(reference, labelled, max_tokens=48))
    harness.report(options, "score_ranking", results, COLUMNS)


if __name__ == "__main__":
    main()
