"""Turns against an environment that is asked again from the beginning, response by response."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax import Problem
from iiblpo_jax.environments.asked import Environments
from iiblpo_jax.environments.interface import Environment, Reply
from iiblpo_jax.model.decoder import bind, hidden_states, project
from iiblpo_jax.rollout.branch_points import Record, branch_points, candidate_mask
from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.conversation import NEVER, Conversation
from iiblpo_jax.rollout.conversing import Conversing, rollout_in_turns
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import DONE, LENGTH, STOP, by_token, response_tokens
from iiblpo_jax.rollout.marker import marker_table
from iiblpo_jax.rollout.publication import PublicationSpec, publish
from iiblpo_jax.rollout.spec import RolloutSpec
from iiblpo_jax.rollout.turns import TurnSpec

PROMPT_PS = jax.random.randint(jax.random.key(5), (3, 6), 2, 23)
PROMPT_LEN_P = jnp.array([6, 1, 4])
T, LONGEST, MOST = 24, 4, 3
TEXTS = ["", "", *"abcdefghijklmnopq", "r;", "s;", "t;", ";u"]  # of the tokens; 0 and 1 end a response
PROBLEMS = [Problem(id=str(p), question=f"{p}", answer="ab", task="echo") for p in range(3)]


class Letters:
    """A tokenizer of one token a text above."""

    def decode_batch(self, rows):
        return ["".join(TEXTS[i] for i in row) for row in rows]

    def encode(self, text):
        return [TEXTS.index(letter) for letter in text]

    def quote(self, text):
        return text


class Echo(Environment):
    """Answers with letters that depend on everything said so far; now and then with nothing, and ends at a `q;`."""

    turn_end = ";"
    bounded = True

    def reset(self, problem):
        return (problem.question,)

    def step(self, state, text):
        said = (*state, text)
        number = sum(map(ord, "".join(said)))
        letters = "".join("abcdefgh"[(number * (i + 3)) % 8] for i in range(number % 7))
        return Reply(said, letters, reward=0.25 * (number % 2), done=number % 11 == 0)


@pytest.fixture(scope="module")
def sample(tiny_config, tiny_params):
    """A rollout in turns; keyword arguments override the spec. Returns the Forest, its stats, what was heard."""
    published = publish(tiny_params, spec=PublicationSpec(model=tiny_config))
    base = RolloutSpec(
        model=tiny_config,
        roots=2,
        branching=Branching(k=2, points="distinct", parent="previous", depth=2, min_suffix=2, fraction=0.5),
        slots=4,
        max_tokens=T,
        stop_ids=(0, 1),
        turns=TurnSpec(most=MOST, observation=LONGEST),
    )
    tokenizer, table = Letters(), marker_table([text.encode() for text in TEXTS], ";")

    @dataclasses.dataclass
    class Named:
        name: str
        environment: Environment

    def run(**changes):
        spec = dataclasses.replace(base, **changes)
        key = jax.random.key(9)
        if spec.turns is None:
            return *rollout(published, PROMPT_PS, PROMPT_LEN_P, key, spec=spec), None
        talk = Conversation(Environments([Named("echo", Echo())]), tokenizer, PROBLEMS, spec)
        c = Conversing(published, PROMPT_PS, PROMPT_LEN_P, key, table)
        forest, stats = rollout_in_turns(c, talk, spec=spec)
        return forest, stats, talk.heard(forest)

    return run


@pytest.fixture(scope="module")
def grown(sample):
    return sample()


def transcript(tokens, question):
    """What has to stand in a response that begins with these tokens: (turn of every token, whether it is over)."""
    state, turns, own, said, at = Echo().reset(PROBLEMS[question]), [], 0, "", 0
    rewards, seen = 0.0, NEVER
    while at < len(tokens):
        turns.append(own)
        said += TEXTS[tokens[at]]
        at += 1
        if ";" not in TEXTS[tokens[at - 1]] or own == MOST or at == T:
            continue
        state, observation, reward, done = Echo().step(state, said)
        rewards += reward
        if seen == NEVER and observation == "ab":
            seen = own
        if done:
            return turns, DONE, rewards, seen, own + 1
        own, said = own + 1, ""
        expected = [TEXTS.index(letter) for letter in observation][:LONGEST][: T - at]
        assert tokens[at : at + len(expected)] == expected
        turns += [-own] * len(expected)
        at += len(expected)
    return turns, STOP if tokens[-1] < 2 and turns[-1] >= 0 else LENGTH, rewards, seen, own


def test_every_response_is_what_the_environment_says_to_it(grown):
    forest, _, heard = grown
    turn_RT, asked = np.asarray(forest.turn_RT), 0
    for r, tokens in enumerate(response_tokens(forest, stop=True)):
        turns, finish, reward, seen, answered = transcript(tokens, int(forest.group_R[r]))
        assert turn_RT[r, : len(tokens)].tolist() == turns, r
        assert int(forest.finish_R[r]) == finish
        assert (heard.reward_R[r], heard.seen_R[r], heard.turns_R[r]) == (reward, seen, answered)
        asked += answered
    finishes = set(np.asarray(forest.finish_R).tolist())
    assert asked > 20 and finishes == {LENGTH, STOP, DONE}
    assert (turn_RT == -2).any()  # second observations
    assert heard.turns_R.max() == MOST


def test_branches_begin_in_any_turn_and_have_their_parents_answers_up_to_there(grown):
    forest, *_ = grown
    parent_R, at_R, turn_RT = (np.asarray(x) for x in (forest.parent_R, forest.branch_at_R, forest.turn_RT))
    tokens_RT, begun = np.asarray(forest.tokens_RT), []
    for r in np.flatnonzero((parent_R >= 0) & (np.asarray(forest.length_R) > 0)):
        at = at_R[r]
        assert (tokens_RT[r, :at] == tokens_RT[parent_R[r], :at]).all()
        assert (turn_RT[r, : at + 1] == turn_RT[parent_R[r], : at + 1]).all()
        assert turn_RT[r, at] >= 0  # no observation is drawn anew
        begun.append(turn_RT[r, at])
    assert {0, 1, 2} <= set(begun)


def test_observations_are_not_the_policys(grown):
    forest, stats, _ = grown
    given_RT = np.asarray(forest.emitted_RT & (forest.turn_RT < 0))
    assert given_RT.any() and not (given_RT & np.asarray(forest.mask_RT | forest.own_RT)).any()
    assert (np.asarray(forest.emitted_RT) == (given_RT | np.asarray(forest.mask_RT))).all()
    assert int(stats.tokens) == int(forest.own_RT.sum())
    said = response_tokens(forest, observations=False)
    assert [len(row) for row in said] == (
        np.asarray(forest.mask_RT).sum(1) - (np.asarray(forest.finish_R) == STOP)
    ).tolist()


def test_log_probs_are_those_of_a_forward_over_the_whole_sequence(grown, tiny_config, tiny_params):
    forest, *_ = grown
    model = bind(tiny_config, tiny_params)
    logits_RCV = project(model, hidden_states(model, forest.sequences_RC))
    logp_RCV = jax.nn.log_softmax(logits_RCV)
    start_R = np.asarray(forest.prompt_len_P)[np.asarray(forest.group_R)] - 1
    for r, logp in enumerate(by_token(forest.raw_logp_RT, forest)):
        tokens = np.asarray(forest.tokens_RT[r, : len(logp)])
        wanted = np.asarray(logp_RCV[r])[start_R[r] + np.arange(len(logp)), tokens]
        np.testing.assert_allclose(logp, wanted, atol=1e-4)


def test_the_forest_depends_on_no_slots(sample, grown):
    other, *_ = sample(slots=7, refill_at=2)
    for one, same in zip(jax.tree.leaves(grown[0]), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, same, atol=1e-5)


def test_without_answers_it_is_the_plain_rollout_to_the_bit(sample):
    plain, stats, _ = sample(turns=None)
    silent, same, heard = sample(turns=TurnSpec(most=0, observation=LONGEST))
    assert (plain.turn_RT is None) and not silent.turn_RT.any() and not heard.turns_R.any()
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(silent.replace(turn_RT=None)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert stats.tokens == same.tokens


def test_no_candidate_is_an_observations():
    given_BT = jnp.zeros((1, 12), bool).at[0, 1].set(True).at[0, 5:8].set(True)
    record = Record(
        entropy_BT=jnp.arange(12.0)[None],
        logp_BT=-jnp.ones((1, 12)),
        length_B=jnp.array([12]),
        stopped_B=jnp.array([True]),
        begin_B=jnp.array([0]),
        given_BT=given_BT,
    )
    spec = Branching(k=1, at="random", min_suffix=1)
    assert np.flatnonzero(candidate_mask(record, spec)[0]).tolist() == [2, 3, 4, 8, 9, 10]
    top = dataclasses.replace(spec, at="top", fraction=0.4)  # of 8 own tokens
    assert np.flatnonzero(candidate_mask(record, top)[0]).tolist() == [8, 9, 10]
    nothing = record.replace(given_BT=jnp.ones((1, 12), bool).at[0, 0].set(False))
    at_B, fallback_B, _ = branch_points(nothing, jnp.array([0]), jax.random.key(0)[None], spec)
    assert (at_B[0], fallback_B[0]) == (0, True)
