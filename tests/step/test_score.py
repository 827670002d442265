"""Scores, kept sets, advantages and rows of a hand-made Forest: two prompts, two trees each, one branch a root."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.bottleneck import Reading
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.decoder import bind, hidden_states, project
from iiblpo_jax.objectives import make_objective, with_overlong
from iiblpo_jax.rollout.forest import LENGTH, STOP, Forest
from iiblpo_jax.rollout.marker import marker_table
from iiblpo_jax.rollout.solved import Gold
from iiblpo_jax.step.inform import InformationTerms, InformSpec, LogProbs, PromptLogProbs, inform
from iiblpo_jax.step.proxy import DISTANCE, PROXY, TAIL, ProxySpec
from iiblpo_jax.step.score import BottleneckSpec, CreditSpec, FilterSpec, LatentSpec, ScoreSpec, score

S, T = 3, 5
PROMPT = np.array([[9, 8, 7], [6, 5, 0]])
PROMPT_LEN = np.array([3, 2])
LENGTH_R = np.array([4, 5, 3, 5, 2, 5, 4, 3])
FINISH_R = np.array([STOP, LENGTH, STOP, STOP, STOP, LENGTH, STOP, STOP])
PARENT_R = np.array([-1, 0, -1, 2, -1, 4, -1, 6])
BRANCH_AT_R = np.array([0, 2, 0, 1, 0, 1, 0, 2])
FALLBACK_R = np.arange(8) == 7
REWARD_R = np.array([1, 0, 0, 1, 0, 0, 0.5, 0], np.float32)  # a half is partial credit, not a right answer
MASK = np.arange(T) < LENGTH_R[:, None]
OWN = MASK & (np.arange(T) >= BRANCH_AT_R[:, None])
ENTROPY = np.random.default_rng(1).uniform(0.1, 2.0, (8, T)).astype(np.float32) * MASK
# (R - mean) / std with ddof 1: means 1/2 and 1/8, standard deviations sqrt(1/3) and 1/4.
GRPO_R = np.array([0.866025, -0.866025, -0.866025, 0.866025, -0.5, -0.5, 1.5, -0.5])


def hand_made() -> Forest:
    rng = np.random.default_rng(0)
    tokens, logp = rng.integers(2, 23, (8, T)), rng.normal(-1, 0.2, (8, T))
    for r, parent in enumerate(PARENT_R):
        if parent >= 0:
            tokens[r, : BRANCH_AT_R[r]] = tokens[parent, : BRANCH_AT_R[r]]
    fields = {
        "prompt_PS": PROMPT,
        "prompt_len_P": PROMPT_LEN,
        "tokens_RT": tokens * MASK,
        "raw_logp_RT": logp * MASK,
        "entropy_RT": ENTROPY,
        "length_R": LENGTH_R,
        "finish_R": FINISH_R,
        "parent_R": PARENT_R,
        "branch_at_R": BRANCH_AT_R,
        "z_RZ": rng.normal(size=(8, 2)),
        "fallback_R": FALLBACK_R,
        "left_R": np.ones(8),
    }

    def narrow(x):
        return x.astype({"f": np.float32, "i": np.int32, "b": bool}[x.dtype.kind])

    return Forest(**{name: jnp.asarray(narrow(x)) for name, x in fields.items()})


FOREST = hand_made()
SAID = FOREST.tokens_RT.tolist()


PLAIN = ScoreSpec(  # everything switched off: plain GRPO
    bottleneck=BottleneckSpec(),
    filter=FilterSpec(rule="none", keep=4),
    credit=CreditSpec(objective=make_objective("grpo", max_tokens=T)),
)
Z = LatentSpec(levels=1, half_life=4.0, strength=0.5)


def changed(spec, **parts):
    """The spec with parts changed: a dict replaces fields of a part, anything else the part."""
    new = {
        name: dataclasses.replace(getattr(spec, name), **part) if isinstance(part, dict) else part
        for name, part in parts.items()
    }
    return dataclasses.replace(spec, **new)


def scored(columns=None, reward_R=REWARD_R, forest=FOREST, **parts):
    spec = changed(PLAIN, **parts)
    return score(forest, jnp.asarray(reward_R), columns or {}, jax.random.key(0), jnp.int32(0), spec=spec)


def best(score_R, n):
    """Indices of the n best of each prompt, in order of the trajectory."""
    by_prompt = np.asarray(score_R).reshape(2, 4)
    return np.concatenate([sorted(np.argsort(-by_prompt[p])[:n] + 4 * p) for p in range(2)])


def group_advantage(reward_R, kept):
    """(R - mean) / (std + 1e-6) over the kept trajectories of each prompt, 0 elsewhere."""
    result = np.zeros(8)
    for p in range(2):
        mine = [r for r in kept if r // 4 == p]
        group = np.asarray(reward_R, np.float64)[mine]
        if np.ptp(group) > 0:
            result[mine] = (group - group.mean()) / (group.std(ddof=1) + 1e-6)
    return result


def test_with_everything_off_it_is_plain_grpo():
    result = scored()
    np.testing.assert_allclose(result.advantage_R, GRPO_R, rtol=1e-5)
    np.testing.assert_allclose(result.rows.advantage_R, GRPO_R, rtol=1e-5)
    np.testing.assert_array_equal(result.rows.trajectory_R, np.arange(8))
    assert result.kept_R.all() and not result.score_R.any()
    assert result.rows.ref_logp_RT is None and result.rows.latent is None
    assert not [name for name in result.metrics if name.startswith("ib/")]


def test_rows_are_the_trajectories():
    rows = scored().rows
    np.testing.assert_array_equal(rows.group_R, [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(rows.prompt_len_R, [3, 3, 3, 3, 2, 2, 2, 2])
    np.testing.assert_array_equal(rows.mask_RT, MASK)
    np.testing.assert_array_equal(rows.own_mask_RT, OWN)
    np.testing.assert_array_equal(rows.correct_R, [1, 0, 0, 1, 0, 0, 0, 0])
    for name in ("length", "parent", "branch_at"):
        np.testing.assert_array_equal(getattr(rows, f"{name}_R"), getattr(FOREST, f"{name}_R"), err_msg=name)
    np.testing.assert_array_equal(rows.raw_logp_RT, FOREST.raw_logp_RT)
    for r in range(8):
        prompt = PROMPT[r // 4][: PROMPT_LEN[r // 4]]
        text = [*prompt, *FOREST.tokens_RT[r, : LENGTH_R[r]]]
        np.testing.assert_array_equal(rows.tokens_RC[r], text + [0] * (S + T - len(text)))


def test_metrics_by_hand():
    metrics = {name: float(value) for name, value in scored().metrics.items()}
    expected = {
        "reward/mean": 2.5 / 8,
        "reward/pass@1": 2 / 8,
        "reward/pass@group": 1 / 2,
        "reward/root_mean": 1.5 / 4,
        "reward/root_pass@1": 1 / 4,
        "reward/root_pass@group": 1 / 2,
        "reward/frac_zero_std": 0.0,
        "reward/frac_mixed": 1 / 2,
        "reward/frac_kept": 1.0,
        "rollout/length_mean": 31 / 8,
        "rollout/length_p95": 5.0,
        "rollout/truncated": 2 / 8,
        "rollout/root_length_mean": 13 / 4,
        "rollout/root_truncated": 0.0,
        "rollout/entropy": ENTROPY[OWN].mean(),
        "rollout/branches": 1.0,
        "rollout/branch_fallback": 1 / 4,
        "rollout/branch_suffix": np.mean([own.sum() / n for own, n in zip(OWN[1::2], LENGTH_R[1::2], strict=True)]),
        "rollout/branch_same_token": np.mean([SAID[r][at] == SAID[r - 1][at] for r, at in ((1, 2), (3, 1), (5, 1))]),
        "rollout/branch_copies": 0.0,  # each has another length than its root
        "rollout/branch_flips": 2 / 4,
    }
    assert metrics == pytest.approx(expected, rel=1e-6)


def test_a_group_without_spread_teaches_nothing_and_is_counted():
    result = scored(reward_R=np.array([1, 1, 1, 1, 0, 1, 0, 0], np.float32))
    assert not result.advantage_R[:4].any() and result.advantage_R[4:].all()
    assert float(result.metrics["reward/frac_zero_std"]) == 0.5
    assert float(result.metrics["reward/frac_mixed"]) == 0.5


def test_equal_partial_credits_are_no_spread_though_their_mean_rounds():
    """Of one prompt with eight trajectories: the mean of eight times .1 is not .1 in float32."""
    one = FOREST.replace(prompt_PS=FOREST.prompt_PS[:1], prompt_len_P=FOREST.prompt_len_P[:1])
    result = scored(forest=one, reward_R=np.full(8, 0.1, np.float32), filter={"keep": 8})
    assert float(result.metrics["reward/frac_zero_std"]) == 1.0


def test_roots_are_reported_apart_from_branches_that_grew_behind_wrong_ones():
    """Root 0 is right and has no branch: four sevenths of all are right, half of the roots."""
    length_R = jnp.where(jnp.arange(8) == 1, 0, FOREST.length_R)
    result = scored(forest=FOREST.replace(length_R=length_R), reward_R=np.float32([1, 0, 0, 1, 0, 0, 1, 1]))
    assert float(result.metrics["reward/mean"]) == pytest.approx(4 / 7)
    assert float(result.metrics["reward/root_mean"]) == float(result.metrics["reward/root_pass@1"]) == 0.5
    assert float(result.metrics["reward/root_pass@group"]) == 1.0


def test_truncated_responses_are_left_out_of_loss_and_statistics():
    """Trajectories 1 and 5 are cut: a prompt's group is what is left, and so is its share of right answers."""
    result = scored(filter={"finished": True}, credit={"weight": "surprise", "power": 1.0})
    np.testing.assert_array_equal(result.kept_R, FINISH_R == STOP)
    # 1 0 1: mean 2/3, std 1/sqrt 3, log2(3/2) bits; 0 .5 0: mean 1/6, std 1/sqrt 12, log2 6 bits.
    first, second = np.log2(1.5) * 3**-0.5, np.log2(6) * 3**-0.5
    np.testing.assert_allclose(
        result.advantage_R, [first, 0, -2 * first, first, -second, 0, 2 * second, -second], rtol=1e-4
    )
    assert not result.rows.mask_RT[np.array([1, 5])].any() and result.rows.mask_RT[0].any()
    assert float(result.metrics["reward/mean"]) == 2.5 / 8  # what was generated stays in the metrics


def test_shaped_rewards_make_advantages_and_nothing_else():
    """Two of five tokens of buffer: lengths 4 and 5 cost a half and 1, shorter ones nothing."""
    method = with_overlong(make_objective("dr_grpo", max_tokens=T), buffer=2, penalty=1.0)
    shaped_R = REWARD_R - [0.5, 1, 0, 1, 0, 1, 0.5, 0]
    result = scored(credit={"objective": method, "weight": "surprise", "power": 1.0})
    bits_R = np.repeat([1, 3], 4)  # of the share of right answers
    centred_R = (shaped_R.reshape(2, 4) - shaped_R.reshape(2, 4).mean(1, keepdims=True)).ravel()
    np.testing.assert_allclose(result.advantage_R, centred_R * bits_R, rtol=1e-5)
    assert float(result.metrics["reward/mean"]) == 2.5 / 8
    all_right = scored(reward_R=np.ones(8, np.float32), credit={"objective": method})
    assert float(all_right.metrics["reward/frac_zero_std"]) == 0.0  # they differ in length


def test_entropy_scores_rank_filter_and_reward():
    result = scored(
        bottleneck={"estimator": "entropy"}, filter={"rule": "score", "keep": 2}, credit={"reward_coef": 0.1}
    )
    score_R = np.array([(GRPO_R[r] * ENTROPY[r, : LENGTH_R[r]]).mean() for r in range(8)])
    kept = best(score_R, 2)
    np.testing.assert_allclose(result.score_R, score_R, rtol=1e-5)
    np.testing.assert_array_equal(np.flatnonzero(result.kept_R), kept)
    np.testing.assert_array_equal(result.rows.trajectory_R, kept)
    # Prompt 0 keeps its two right answers: no spread, so neither an advantage nor a self-reward.
    assert kept[:2].tolist() == [0, 3] and not result.advantage_R[:4].any()
    advantage_R = group_advantage(REWARD_R, kept)
    advantage_R[kept[2:]] += 0.1 * np.clip(score_R[kept[2:]], -1, 1)
    np.testing.assert_allclose(result.advantage_R, advantage_R, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.rows.advantage_R, advantage_R[kept], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.rows.ib_score_R, score_R[kept], rtol=1e-5)
    assert float(result.metrics["reward/frac_zero_std"]) == 0.5  # of the kept trajectories
    assert float(result.metrics["ib/auc_correct"]) == 1.0  # A_t H_t > 0 exactly for right answers
    assert float(result.metrics["ib/kept_correct"]) == 0.5
    assert "ib/answer" not in result.metrics


def test_surprise_weighs_the_advantages_of_a_prompt():
    """Mean rewards 1/2 and 1/8 are 1 and 3 bits; the advantages are otherwise GRPO's."""
    result = scored(credit={"weight": "surprise", "power": 1.0})
    np.testing.assert_allclose(result.advantage_R, GRPO_R * np.repeat([1, 3], 4), rtol=1e-5)
    kept = scored(
        credit={"weight": "surprise", "power": 1.0}, filter={"rule": "contrast", "keep": 2}
    )  # the share of right answers is that of the group
    np.testing.assert_allclose(np.unique(np.abs(kept.advantage_R)), [0, 2**-0.5, 3 * 2**-0.5], rtol=1e-5)


def test_contrast_drops_groups_that_teach_nothing():
    result = scored(reward_R=np.array([1, 1, 1, 1, 0, 1, 0, 0], np.float32), filter={"rule": "contrast"})
    assert not result.rows.mask_RT[:4].any() and result.rows.mask_RT[4:].any()
    np.testing.assert_allclose(result.advantage_R[4:], [-0.5, 1.5, -0.5, -0.5], rtol=1e-5)
    assert float(result.metrics["reward/frac_kept"]) == 0.5


def test_a_repeated_trajectory_counts_once():
    """Trajectory 2 with the tokens of trajectory 1: advantages are those of the three that are left."""

    def same(x_R):
        return x_R.at[2].set(x_R[1])

    forest = FOREST.replace(tokens_RT=same(FOREST.tokens_RT), length_R=same(FOREST.length_R))
    result = scored(forest=forest, filter={"distinct": True})
    np.testing.assert_array_equal(result.kept_R, np.arange(8) != 2)
    np.testing.assert_allclose(result.advantage_R[:4], [3**-0.5, -2 * 3**-0.5, 0, 3**-0.5], rtol=1e-5)
    assert not result.rows.mask_RT[2].any() and result.rows.mask_RT[3].any()


ANSWER_R = np.array([3.0, 0.5, 1.0, 2.0, 0.1, 0.9, 0.4, 0.2], np.float32)
PROMPT_R = np.array([0.5, 0.1, 0.9, 0.2, 0.3, 0.8, 0.1, 0.6], np.float32)
COLUMNS = {
    "ib_answer": jnp.asarray(ANSWER_R),
    "ib_prompt": jnp.asarray(PROMPT_R),
    "ref_logp": jnp.arange(40.0).reshape(8, T),
}
WITH_Z = {
    "bottleneck": {"estimator": "likelihood", "beta": 2.0},
    "filter": {"rule": "score", "keep": 2},
    "credit": {"reward_coef": 0.1},
    "latent": Z,
}


def likelihood_score(answer_R=ANSWER_R):
    def standardised(x):
        return (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1e-4)

    def by_prompt(x):
        return np.asarray(x, np.float64).reshape(2, 4)

    return (2.0 * standardised(by_prompt(answer_R)) - standardised(by_prompt(PROMPT_R))).ravel()


def test_likelihood_scores_rank_filter_and_reward():
    result = scored(COLUMNS, **WITH_Z)
    score_R = likelihood_score()
    kept = best(score_R, 2)
    np.testing.assert_allclose(result.score_R, score_R, rtol=1e-4, atol=6e-4)
    np.testing.assert_array_equal(result.rows.trajectory_R, kept)
    np.testing.assert_array_equal(result.rows.ref_logp_RT, np.arange(40.0).reshape(8, T)[kept])
    advantage_R = group_advantage(REWARD_R, kept)
    for r in kept:
        if advantage_R[r]:
            advantage_R[r] += 0.1 * np.clip(score_R[r], -1, 1)
    np.testing.assert_allclose(result.advantage_R, advantage_R, rtol=1e-4, atol=6e-4)
    assert float(result.metrics["ib/answer"]) == pytest.approx(ANSWER_R.mean())
    assert float(result.metrics["ib/prompt"]) == pytest.approx(PROMPT_R.mean())
    assert float(result.metrics["ib/kept_score"]) == pytest.approx(score_R[kept].mean(), abs=6e-4)


def test_contrast_swaps_the_best_of_the_missing_kind_for_the_worst_kept():
    result = scored(COLUMNS, **WITH_Z | {"filter": {"rule": "score", "keep": 2, "keep_contrast": True}})
    score_R = likelihood_score()
    assert best(score_R, 2)[:2].tolist() == [0, 3]  # both right
    wrong = max((1, 2), key=lambda r: score_R[r])
    first = max((0, 3), key=lambda r: score_R[r])
    assert set(np.flatnonzero(result.kept_R[:4])) == {first, wrong}
    # Nobody is right in the other prompt: as it was.
    np.testing.assert_array_equal(np.flatnonzero(result.kept_R[4:]) + 4, best(score_R, 2)[2:])
    assert int(result.metrics["ib/contrast_rescued"]) == 1


def test_rows_say_where_z_was_on():
    """z acts from the input token before t*, halving every half_life tokens; never on roots and fallbacks."""
    rows = scored(COLUMNS, **WITH_Z | {"filter": {"rule": "score", "keep": 4}}).rows
    gamma_RC = np.zeros((8, S + T))
    for r in (1, 3, 5):
        start = PROMPT_LEN[r // 4] + BRANCH_AT_R[r] - 1
        gamma_RC[r, start:] = 0.5 * 0.5 ** (np.arange(S + T - start) / 4.0)
    on_RC = np.asarray(rows.latent.segment_BT) >= 0
    np.testing.assert_allclose(np.where(on_RC, rows.latent.gamma_BT, 0.0), gamma_RC, rtol=1e-6)
    np.testing.assert_array_equal(rows.latent.z_BJZ[:, 0][np.array([1, 3, 5])], FOREST.z_RZ[np.array([1, 3, 5])])


def test_trajectories_without_a_finite_score_do_not_train():
    answer_R = np.where(np.arange(8) == 5, np.nan, ANSWER_R)
    result = scored(COLUMNS | {"ib_answer": jnp.asarray(answer_R)}, **WITH_Z)
    rows = result.rows
    assert not result.kept_R[4:].any() and not rows.mask_RT[2:].any()  # its whole group has no standardised score
    assert rows.mask_RT[:2].any() and np.isfinite(np.asarray(rows.advantage_R)).all()
    np.testing.assert_array_equal(rows.trajectory_R[:2], [0, 3])


# -- what the reference model says ------------------------------------------------------------------------------------

TOKEN_BYTES = [b""] * 2 + [bytes([97 + i]) for i in range(21)]
CUE, CUE_LEN = np.array([[4, 11], [12, 0]]), np.array([2, 1])
ANSWER, ANSWER_LEN = np.array([[3, 0], [5, 6]]), np.array([1, 2])


@pytest.fixture(scope="module")
def teacher(tiny_config, tiny_params):
    """teacher(context, text) -> log-prob of each token of `text` after `context`, temperature 0.7."""
    logp_of = jax.jit(lambda row: jax.nn.log_softmax(project(model, hidden_states(model, row[None]))[0] / 0.7))
    model = bind(tiny_config, tiny_params)

    def logp(context, text):
        row = np.zeros(16, np.int32)
        row[: len(context) + len(text)] = [*context, *text]
        logp_TV = np.asarray(logp_of(row))
        return np.array([logp_TV[len(context) + i - 1, token] for i, token in enumerate(text)])

    return logp


def informed(config, params, kind=InformationTerms, attention="blocks", **options):
    reading = Reading(temperature=0.7, start_id=1, pack_tokens=64, attention=attention)
    spec = InformSpec(readers=(("reference", kind(model=config, reading=reading, **options)),))
    markers = tuple(marker_table(TOKEN_BYTES, chr(97 + int(FOREST.tokens_RT[r, 1]) - 2)) for r in (0, 4))
    arrays = map(jnp.asarray, ([0, 1], ANSWER, ANSWER_LEN, CUE, CUE_LEN))
    return inform({"reference": params}, FOREST, Gold(markers, *arrays), spec=spec)


@pytest.mark.parametrize(("kind", "options"), [(InformationTerms, {"compression": "description"}), (LogProbs, {})])
def test_forwards_attend_as_the_spec_says(tiny_config, tiny_params, monkeypatch, kind, options):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # which has no CUDA kernel: refused where it is chosen
    with pytest.raises(InputError, match=r"use attention\.impl=blocks"):
        informed(tiny_config, tiny_params, kind, attention="pallas", **options)


@pytest.mark.parametrize("compression", ["description", "information"])
def test_information_equals_teacher_forcing(tiny_config, tiny_params, teacher, compression):
    found = informed(tiny_config, tiny_params, compression=compression)
    for r in range(8):
        p = r // 4
        prompt, response = [*PROMPT[p, : PROMPT_LEN[p]]], [*np.asarray(FOREST.tokens_RT[r, : LENGTH_R[r]])]
        reference = teacher(prompt, response)
        np.testing.assert_allclose(found["ref_logp"][r, : LENGTH_R[r]], reference, atol=1e-4)
        assert not found["ref_logp"][r, LENGTH_R[r] :].any()

        marker = int(FOREST.tokens_RT[4 * p, 1])  # each prompt's task has a marker of its own
        text = response[: LENGTH_R[r] - (FINISH_R[r] == STOP)]
        cut = text.index(marker) if marker in text else len(text)
        cue, answer = [*CUE[p, : CUE_LEN[p]]], [*ANSWER[p, : ANSWER_LEN[p]]]
        gain = teacher([*prompt, *text[:cut], *cue], answer).sum() - teacher([*prompt, *cue], answer).sum()
        assert float(found["ib_answer"][r]) == pytest.approx(gain / len(answer), abs=1e-4)
        cost = (reference.sum() if compression == "information" else 0) - teacher([1], response).sum()
        assert float(found["ib_prompt"][r]) == pytest.approx(cost / LENGTH_R[4 * p : 4 * p + 4].mean(), abs=1e-4)


def test_reference_log_probs_alone(tiny_config, tiny_params):
    """A KL term without the likelihood estimator needs them too, and gets the same."""
    alone = informed(tiny_config, tiny_params, LogProbs)
    both = informed(tiny_config, tiny_params, compression="description")
    np.testing.assert_allclose(alone["ref_logp"], both["ref_logp"], atol=1e-5)
    assert set(alone) == {"ref_logp"}


@pytest.mark.parametrize("pack_tokens", [64, 6])  # all prompts in one bin, and one each
def test_the_prompt_under_the_policy_is_read_once_a_prompt(tiny_config, tiny_params, teacher, pack_tokens):
    reader = PromptLogProbs(model=tiny_config, reading=Reading(temperature=0.7, start_id=1, pack_tokens=pack_tokens))
    found = inform({"policy": tiny_params}, FOREST, None, spec=InformSpec(readers=(("policy", reader),)))
    expected = [teacher(PROMPT[p, :1].tolist(), PROMPT[p, 1 : PROMPT_LEN[p]].tolist()).mean() for p in range(2)]
    assert set(found) == {"prompt_logp"}
    np.testing.assert_allclose(found["prompt_logp"], np.repeat(expected, 4), atol=1e-5)


def test_a_prompt_of_one_token_says_nothing(tiny_config, tiny_params):
    forest = FOREST.replace(prompt_len_P=jnp.array([3, 1]))
    reader = PromptLogProbs(model=tiny_config, reading=Reading(pack_tokens=64))
    found = inform({"policy": tiny_params}, forest, None, spec=InformSpec(readers=(("policy", reader),)))
    assert found["prompt_logp"][0] < 0 and not found["prompt_logp"][4:].any()


def test_what_a_method_needs_is_in_its_rows():
    columns = {"prompt_logp": jnp.linspace(-2.0, -1.0, 8), "unasked": jnp.ones(8)}
    result = scored(
        columns, credit={"objective": make_objective("arm", max_tokens=T)}, filter={"rule": "random", "keep": 2}
    )
    (name, x_R), *others = result.rows.extras.items()
    assert name == "prompt_logp" and not others
    np.testing.assert_array_equal(x_R, columns["prompt_logp"][result.rows.trajectory_R])
    assert not scored(columns).rows.extras


def test_where_nobody_reads_there_is_no_column(tiny_params):
    assert inform({"reference": tiny_params}, FOREST, None, spec=InformSpec(readers=())) == {}


def test_a_reward_model_pays_and_the_verifier_still_says_what_is_right():
    """Advantages are those of r - lambda d; right answers and `reward/mean` stay the verifier's."""
    rng = np.random.default_rng(6)
    columns = {name: rng.normal(size=8).astype(np.float32) for name in (PROXY, DISTANCE, TAIL)}
    result = scored(columns, proxy=ProxySpec(coef=1.0, ibl_coef=0.5, mop_alpha=0.05))
    paid_R = columns[PROXY] - 0.5 * columns[DISTANCE]
    np.testing.assert_allclose(result.rows.reward_R, paid_R, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.advantage_R, group_advantage(paid_R, range(8)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.rows.correct_R, REWARD_R >= 1)
    assert result.metrics["reward/mean"] == result.metrics["reward/true"] == REWARD_R.mean()
    np.testing.assert_allclose(result.metrics["reward/proxy"], columns[PROXY].mean(), rtol=1e-4)
    assert "reward/proxy" not in scored().metrics
