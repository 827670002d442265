"""The step as everybody traces it: its programs, their order, and what each is given."""

import jax
import pytest

from iiblpo_jax.defaults import default_config
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.files.loading import load_config
from iiblpo_jax.planning.shapes import abstract_step
from iiblpo_jax.step.programs import refill_key, step_keys


def traced(method="grpo", options=None, **branch):
    """The programs of a small step by name, in their order; nothing is compiled."""
    config = default_config()
    config.train.prompts_per_step, config.rollout.max_prompt, config.rollout.max_tokens = 4, 8, 16
    config.branch.update(branch)
    config.objective.name = method
    config.objective.options.update(options or {})
    step = abstract_step(config, load_config(config.model.path), meshes.make_mesh(config.mesh, devices=jax.devices()))
    found = {}

    def call(program):
        found[program.name] = program
        return jax.eval_shape(lambda *args: program.function(*args, **program.kwargs), *program.args)

    step.trace(call)
    return found


def test_the_order_of_a_step():
    assert list(traced()) == ["publish", "rollout", "inform", "score", "update"]


def test_the_policy_is_read_in_place_where_a_method_asks():
    """Its weights, not a copy of them; nobody else's step is given them."""
    asked = traced(method="arm")
    readers, policy = asked["inform"].args[0], asked["publish"].args[0]
    assert set(readers) == {"reference", "policy"} and readers["policy"] is policy
    assert asked["update"].args[1].extras["prompt_logp"].shape == asked["update"].args[1].length_R.shape
    assert set(traced()["inform"].args[0]) == {"reference"}


def test_novelty_is_read_before_it_is_learnt_where_a_method_asks():
    asked = traced(method="imentor")
    state = asked["update"].args[0]
    assert asked["inform"].args[0]["novelty"] is state.novelty
    assert state.novelty.embed_VE.shape[1] == 16 and state.novelty.target["w0_CEH"].shape == (8 + 16, 16, 16)
    assert asked["score"].args[2]["novelty"].shape == asked["update"].args[1].length_R.shape
    assert traced()["update"].args[0].novelty is None


def test_the_host_says_plans_where_a_method_asks():
    score = traced(method="darling")["score"]
    assert score.args[2]["plan"].shape == score.args[1].shape
    assert not traced()["score"].args[2]


def test_the_rollout_notes_likely_tokens_where_a_method_asks():
    step = traced(method="dppo", options={"top_k": 5})
    rows = step["update"].args[1]
    assert rows.extras["top_token"].shape == rows.extras["top_logp"].shape == (*rows.mask_RT.shape, 5)
    assert step["rollout"].kwargs["spec"].sampling.record == 5


@pytest.mark.parametrize(
    ("branch", "listens"), [({}, False), ({"solved": False}, True), ({"solved": False, "k": 0}, False)]
)
def test_a_rollout_gets_the_answers_where_branches_depend_on_them(branch, listens):
    gold = traced(**branch)["rollout"].kwargs["gold"]
    assert (gold is not None) == listens
    if listens:
        assert gold.answer_len_P.shape == (4,)


def test_a_refill_runs_the_first_three_again_beside_what_is_kept():
    config = default_config()
    config.train.prompts_per_step, config.rollout.max_prompt, config.rollout.max_tokens = 4, 8, 16
    config.train.refills = 2
    step = abstract_step(config, load_config(config.model.path), meshes.make_mesh(config.mesh, devices=jax.devices()))
    found = []

    def call(program):
        found.append(program)
        return jax.eval_shape(lambda *args: program.function(*args, **program.kwargs), *program.args)

    rows = step.trace(call)
    first = ["publish", "rollout", "inform"]
    assert [program.name for program in found] == [*first, *first, "merge", "score", "update"]
    assert [bool(jax.tree.leaves(program.beside)) for program in found] == [False] * 3 + [True] * 3 + [False] * 3
    assert found[4].beside.forest.tokens_RT.shape == (4 * 8, 16)
    config.train.refills = 0
    assert jax.tree.map(lambda x: x.shape, rows) == jax.tree.map(
        lambda x: x.shape,
        abstract_step(
            config, load_config(config.model.path), meshes.make_mesh(config.mesh, devices=jax.devices())
        ).rows(),
    )


def test_keys_of_refills_are_nobody_elses():
    keys = [*step_keys(3, 5), *(refill_key(3, 5, n) for n in (1, 2, 3)), refill_key(3, 6, 1), refill_key(4, 5, 1)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)
    assert (jax.random.key_data(refill_key(3, 5, 2)) == jax.random.key_data(refill_key(3, 5, 2))).all()
