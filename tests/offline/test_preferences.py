"""The verb preferences and its sources: it prefers, resumes to the bit, and refuses what it cannot use."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from iiblpo_jax import preferences
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.validation import mistakes
from iiblpo_jax.data.registry import make_task
from iiblpo_jax.devices.mesh import make_mesh
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.files.loading import load_model
from iiblpo_jax.offline import pairs
from iiblpo_jax.offline.examples import Example
from iiblpo_jax.offline.sources import Loaded, Sampled, pairs_of
from iiblpo_jax.offline.stage import encoder, heldout_metrics

ROWS = [{"prompt": f"{a}+{b}=", "chosen": f"{a + b}", "rejected": f"{a + b + 1}"} for a in (1, 2, 3) for b in (1, 2, 3)]
KEPT = [{"prompt": f"{a}+0=", "response": f"{a}"} for a in range(1, 5)]


def load(config, model):
    model, tokenizer = load_model(model)
    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1}), devices=jax.devices()[:1])
    loaded = Loaded(
        config=config, encode=encoder(config, tokenizer), tokenizer=tokenizer, model=model.config, mesh=mesh
    )
    return loaded, params_of(model)


def metrics(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: {k: v for k, v in row.items() if not k.endswith(("_s", "/tokens_per_s"))} for row in lines}


def test_it_prefers_and_a_resumed_run_is_the_same_to_the_bit(make_config, write_lines, tmp_path):
    data, kept = write_lines("pairs.jsonl", ROWS), write_lines("kept.jsonl", KEPT)
    changes = {"offline__data": data, "offline__retain": kept, "train__steps": 8, "update__packed": False}
    config = make_config(**changes, rollout__max_tokens=4, optim__lr=3e-3, checkpoint__every=5)
    assert preferences.main(config, tmp_path / "run") == 0
    found = metrics(tmp_path / "run")
    first, last = found[1], found[8]
    assert first["pairs/margin"] == 0 and first["pairs/count"] == 4
    assert first["update/loss"] > np.log(2) + 1  # at the reference log 2, and the likelihood of what is kept
    assert last["pairs/margin"] > 0.05 and last["update/loss"] < first["update/loss"]

    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")  # as if it had been killed after step 5
    assert preferences.main(config, tmp_path / "run") == 0
    assert metrics(tmp_path / "run") == found


def test_what_a_run_cannot_use_is_named(make_config, write_lines, tmp_path):
    def refused(message, rows=ROWS, **changes):
        changes = {"offline__data": write_lines("bad.jsonl", rows)} | changes
        with pytest.raises(InputError, match=message):
            preferences.main(make_config(**changes), tmp_path / "run")

    refused("row 2: no column chosen", [ROWS[0], {"prompt": "1", "rejected": "2"}])
    refused("row 1: rejected is a list", [ROWS[0] | {"rejected": []}])
    refused("row 1: chosen and rejected are the same", [ROWS[0] | {"rejected": "2"}])
    refused("row 1: the response has 3 tokens", [ROWS[0] | {"rejected": "23"}], rollout__max_tokens=2)
    refused(r"offline\.data is empty", offline__data="")
    refused(r"data\.recorded is empty", offline__source="recorded")
    refused(r"offline\.retain goes with", offline__source="policy", offline__retain="x")
    refused(r"turns\.most = 2", offline__source="policy", turns__most=2)
    refused(r"offline\.options\.k = 99", offline__loss="dipo", offline__options={"k": 99})
    wrong = make_config(offline__loss="npo", offline__options={"bta": 1.0})
    assert mistakes(wrong) == ["offline.options.bta (did you mean beta?) does not apply to npo; it has beta"]


def test_held_out_responses_by_role():
    """The second case has no rejected response, so what is read of it counts nowhere."""
    pair = (Example((1,), (2, 3)), Example((1,), (4,)))
    logp_PG = np.array([[-3.0, -1.0], [-2.0, 9.0]])
    found = heldout_metrics([pair, (pair[0], Example((1,), ()))], logp_PG)
    assert found == {"heldout/logp_chosen": -2.5, "heldout/logp_rejected": -1.0}
    assert heldout_metrics([pair[:1], pair[:1]], logp_PG[:, :1]) == {"heldout/loss": 5 / 4}


def test_right_and_wrong_are_paired_in_their_order():
    found = pairs_of([7], [[1], [2], [3], [4]], [0.0, 1.0, 0.5, 1.0])
    expected = [((2,), (1,)), ((4,), (3,))]
    assert found == [(Example((7,), right), Example((7,), wrong)) for right, wrong in expected]
    assert pairs_of([7], [[1], [2]], [1.0, 1.0]) == []


def test_what_is_to_be_kept_is_shared_out():
    pair, kept = (Example((1,), (2,)), Example((1,), (3,))), [(Example((n,), (n,)),) for n in (5, 6, 7)]
    assert pairs.with_retained([pair], kept) == [(*pair, *one) for one in kept]
    assert pairs.with_retained([pair] * 4, kept[:2]) == [(*pair, *kept[n % 2]) for n in range(4)]


def test_recorded_rollouts_are_graded_and_paired(make_config, write_lines, tmp_path):
    config = make_config(rollout__roots=2, branch__k=0, data__recorded=str(tmp_path / "log.jsonl"))
    loaded, _ = load(config, config.model.path)
    problem, encode = make_task("arithmetic", options={"train_size": 32}).train[0], loaded.tokenizer.encode
    assert problem.rationale
    right, wrong = encode(problem.rationale), encode("#0")
    lines = [
        {"prompt_id": problem.id, "trajectory": n, "parent": None, "branch_at": None, "tokens": ids, "finish": "eos"}
        for n, ids in enumerate([[*wrong, loaded.tokenizer.eos_id], [*right, loaded.tokenizer.eos_id]])
    ]
    write_lines("log.jsonl", lines)
    [(chosen, rejected)] = pairs.of_recorded(loaded, tmp_path)
    assert (list(chosen.response[:-1]), list(rejected.response[:-1])) == (right, wrong)
    assert loaded.tokenizer.decode(chosen.prompt) == problem.question
    write_lines("log.jsonl", [lines[0], lines[0] | {"trajectory": 1}])
    with pytest.raises(InputError, match="holds no prompt with a right and a wrong response"):
        pairs.of_recorded(loaded, tmp_path)


def test_pairs_of_the_policy_are_right_and_wrong(make_config):
    config = make_config(
        rollout__roots=6, rollout__slots=24, rollout__temperature=1.0, rollout__top_p=1.0, rollout__unroll=False
    )
    loaded, policy = load(config, "package:iiblpo_jax/data/assets/arithmetic")
    source = Sampled(loaded, of_start=False)
    position = source.get_state()
    cases, found = source.draw(policy, 1)
    source.set_state(position)
    again, _ = source.draw(policy, 1)
    source.close()
    assert cases == again and len(cases) == 4
    mixed = [case for case in cases if case[0].response]
    assert mixed and found["pairs/mixed"] == len(mixed) / 4
    answers = {
        problem.question: problem.answer for problem in make_task("arithmetic", options={"train_size": 32}).train
    }
    for chosen, rejected in mixed:
        answer = answers[loaded.tokenizer.decode(chosen.prompt)]
        texts = [loaded.tokenizer.decode(x.response) for x in (chosen, rejected)]
        assert [text.rpartition("#")[2].strip() == answer for text in texts] == [True, False]
