"""Plans: the reader of HLO, formulas against counts, shapes against a live run, exit codes, a compilation for a TPU."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from iiblpo_jax import plan
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config import files
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, logits
from iiblpo_jax.model.presets import PRESETS
from iiblpo_jax.planning import plan as planning
from iiblpo_jax.planning import topology as slices
from iiblpo_jax.planning.hlo import Collective, collectives
from iiblpo_jax.planning.memory import ProgramMemory
from iiblpo_jax.planning.roofline import CHIPS, Lengths, Work, forward_flops, generated_tokens, layer_weights, step_work
from iiblpo_jax.planning.shapes import abstract_step

ROOT = Path(__file__).parents[2]
LENGTHS = Lengths(prompt=100, response=200)

# -- the text of a program --------------------------------------------------------------------------------------------

HLO = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %a)
}

%all-reduce-scatter.1 (p: f32[8,4]) -> f32[4,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %all-reduce.9 = f32[8,4]{1,0} all-reduce(%p), to_apply=%add
  ROOT %slice = f32[4,4]{1,0} dynamic-slice(%all-reduce.9, %i), dynamic_slice_sizes={4,4}
}

%scan_body (c: (s32[], bf16[16])) -> (s32[], bf16[16]) {
  %c = (s32[], bf16[16]) parameter(0)
  %all-gather.1 = bf16[16]{0:T(8,128)(2,1)} all-gather(%x), dimensions={0}
  ROOT %t = (s32[], bf16[16]) tuple(%i, %all-gather.1)
}

%scan_cond (c: (s32[], bf16[16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT, metadata={op_name="lt"}
}

%token_body (c: (s32[], bf16[16])) -> (s32[], bf16[16]) {
  %inner = (s32[], bf16[16]) while(%c), condition=%scan_cond, body=%scan_body
  %all_to_all.1 = f32[2,3]{1,0} all-to-all(%y), dimensions={0}
  ROOT %t = (s32[], bf16[16]) tuple(%i, %x)
}

%token_cond (c: (s32[], bf16[16])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[8,4]) -> f32[4,4] {
  %all-reduce.2 = (f32[], f32[10]{0}) all-reduce(%p, %q), to_apply=%add
  %start = (f32[4]{0}, f32[8]{0}) all-gather-start(%p), dimensions={0}
  %done = f32[8]{0} all-gather-done(%start)
  %permute = (s32[6]{0}, s32[6]{0}, u32[], u32[]) collective-permute-start(%r), source_target_pairs={{0,1}}
  %w = (s32[], bf16[16]) while(%t), condition=%c2, body=%scan_body, backend_config={"known_trip_count":{"n":"3"}}
  %w2 = (s32[], bf16[16]) while(%t), condition=%token_cond, body=%token_body
  ROOT %f = f32[4,4]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_collectives_are_counted_by_kind_and_loop():
    found = {c.kind: c for c in collectives(HLO)}
    assert found == {
        # 32 bytes once, 32 bytes three times; in the loop over tokens a scan of 28 turns
        "all-gather": Collective("all-gather", 1 + 3, 32 + 3 * 32, 28, 28 * 32),
        "all-reduce": Collective("all-reduce", 1, 4 + 40, 0, 0),
        "reduce-scatter": Collective("reduce-scatter", 1, 128, 0, 0),
        "collective-permute": Collective("collective-permute", 1, 24, 0, 0),
        "all-to-all": Collective("all-to-all", 0, 0, 1, 24),
    }


# -- formulas ---------------------------------------------------------------------------------------------------------


def test_flops_of_a_forward_by_hand():
    m = ModelConfig(family="llama", vocab_size=100, d_model=8, d_ff=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=2)
    # q and o 8 x 8 each, k and v 8 x 4 each, three 8 x 16: 576 a layer
    assert layer_weights(m) == 3 * 576
    assert forward_flops(m, nodes=5, pairs=15, emitted=2) == 2 * 1728 * 5 + 4 * 3 * 8 * 15 + 2 * 800 * 2


def test_flops_of_a_forward_agree_with_xla():
    """One layer, because XLA counts the body of a scan once; its full-square attention has T * T pairs."""
    m = ModelConfig(
        family="llama", vocab_size=1024, d_model=128, d_ff=512, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=32
    )
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(m, rngs=nnx.Rngs(0))))
    tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    compiled = jax.jit(lambda s, t: logits(nnx.merge(graph, s), t)).lower(state, tokens).compile()
    ours = forward_flops(m, nodes=64, pairs=64 * 64, emitted=64)
    assert compiled.cost_analysis()["flops"] == pytest.approx(ours, rel=0.03)


def test_work_of_the_paper_run():
    config = files.load_file(ROOT / "configs" / "qwen2_5_7b_v5p_64.py")
    m, shape = PRESETS["qwen2.5-7b"], {"data": 1, "fsdp": 8, "sequence": 2, "tensor": 4}
    # 64 trees of 1 root and 3 branches that inherit half
    assert generated_tokens(config, LENGTHS) == 64 * 200 * 2.5
    deep = files.load_file(ROOT / "configs" / "qwen2_5_7b_v5p_64.py")
    deep.branch.parent, deep.branch.k = "previous", 2
    assert generated_tokens(deep, LENGTHS) == 64 * 200 * (1 + 2 / 2 + 4 / 4)  # each level inherits half once more
    work = step_work(config, m, LENGTHS, shape, 16)
    assert set(work) == {"rollout", "inform", "update"}
    # recomputation is one forward of five
    assert work["update"].flops / work["update"].useful == pytest.approx(5 / 4)
    # at least 2 FLOPs a weight for every token, three times and one forward more in the update of half the rows
    least = 2 * layer_weights(m) * 64 * 200 * 2.5
    assert work["rollout"].flops > least and work["update"].useful > 4 * least / 2
    more = step_work(config, m, dataclasses.replace(LENGTHS, response=400), shape, 16)
    assert all(more[name].flops > work[name].flops for name in work)
    config.update.remat = False
    assert step_work(config, m, LENGTHS, shape, 16)["update"].flops == work["update"].useful


def test_copied_kv_heads_cost_memory_as_two():
    config = files.load_file(ROOT / "configs" / "qwen2_5_7b_v5p_64.py")
    m, rest = PRESETS["qwen3-8b"], {"data": 1, "fsdp": 8, "sequence": 1}  # 32 heads, 8 kv heads
    read = {n: step_work(config, m, LENGTHS, rest | {"tensor": n}, 8)["rollout"].bytes for n in (1, 8, 16)}
    assert read[8] == pytest.approx(read[1] / 8)  # weights and cache are split alike
    # At 16 the weights are halved again and the cache is not: bfloat16 keys and values, 128 wide, in 36 layers.
    tokens = generated_tokens(config, LENGTHS) / 8
    cache = tokens * (LENGTHS.prompt + LENGTHS.response / 2) * 2 * 36 * 128 * 2
    assert read[16] == pytest.approx(read[8] / 2 + cache / 2)


def test_least_time_is_that_of_the_slower_resource():
    chip = CHIPS["v5p"]
    assert Work(flops=2 * chip.flops, useful=0, bytes=0).seconds(chip, 4) == 0.5
    assert Work(flops=0, useful=0, bytes=3 * chip.bandwidth).seconds(chip, 4) == 3


# -- shapes -----------------------------------------------------------------------------------------------------------


def grpo(**overrides):
    config = files.load_file(ROOT / "configs" / "arithmetic_grpo.py")
    with config.unlocked():
        for key, value in overrides.items():
            section, name = key.split("__")
            config[section][name] = value
    return config


def test_shapes_are_those_of_a_live_run(tmp_path):
    from iiblpo_jax.run.trainer import Trainer
    from iiblpo_jax.step.programs import abstract_of

    config = grpo(train__prompts_per_step=8, rollout__slots=8, rollout__refill_at=2)
    trainer = Trainer(config, tmp_path / "run")
    try:
        live = trainer._abstract()
    finally:
        trainer.close()
    mesh = meshes.make_mesh(config.mesh, devices=jax.devices()[:1])
    ours = abstract_step(config, trainer.model_config, mesh)

    def sizes(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), abstract_of(tree))

    assert sizes(ours.alive) == sizes(live.alive)
    assert sizes(ours.rows()) == sizes(live.rows())


def test_optimizer_state_lies_where_its_weights_lie():
    config = grpo(mesh__fsdp=2, mesh__tensor=2, mesh__data=1, mesh__sequence=1)
    mesh = jax.sharding.AbstractMesh((1, 2, 1, 2), meshes.AXES)
    state = abstract_step(config, PRESETS["smollm2-135m"], mesh).state
    specs = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        specs.setdefault(jax.tree_util.keystr(path).rpartition("policy")[2], set()).add(leaf.sharding.spec)
    place = state.params["policy"]["layers"]["qkv"].sharding.spec
    assert "fsdp" in jax.tree.leaves(tuple(place)) and specs["']['layers']['qkv']"] == {place}
    assert specs["']['embed']"] == {PartitionSpec(("tensor",), ("fsdp",))}


# -- the verb ---------------------------------------------------------------------------------------------------------


def run_verb(*arguments):
    command = [sys.executable, "-m", "iiblpo_jax.plan", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_eight_virtual_devices(tmp_path):
    path = tmp_path / "plan.json"
    small = {
        "train.prompts_per_step": 8,
        "rollout.slots": 8,
        "rollout.refill_at": 1,
        "rollout.max_prompt": 8,
        "rollout.max_tokens": 8,
        "rollout.unroll": False,
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
        "update.minibatches": 1,
    }
    done = run_verb(
        "--config=configs/arithmetic_grpo.py",
        "--topology=cpu:8",
        f"--json={path}",
        "--layers=2",
        *(f"--config.{key}={value}" for key, value in small.items()),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["fits"] and found["devices"] == 8 and found["shape"]["data"] == 2
    assert [p["name"] for p in found["programs"]] == ["publish", "rollout", "inform", "score", "update"]
    kinds = {p["name"]: {c["kind"] for c in p["collectives"]} for p in found["programs"]}
    assert "all-gather" in kinds["publish"]  # fsdp
    assert "all-reduce" in kinds["rollout"] and "all-reduce" in kinds["update"]  # tensor
    # float32 weights, two moments, reference: a part of fsdp * tensor = 4 of nearly all of them
    assert found["resident"]["optimizer"] >= 2 * found["resident"]["params"] > 0
    assert "a scan over layers" in found["decode"] and "a scan over layers" in " ".join(done.stdout.split())


def test_a_step_on_recorded_rollouts_has_no_rollout():
    """Its Forest is there, as an argument; the rows of the update are those of an on-line step."""
    config, devices = grpo(data__recorded="runs/first/rollouts"), jax.devices()[:1]
    mesh, model, names = meshes.make_mesh(config.mesh, devices=devices), PRESETS["smollm2-135m"], []

    def trace(program):
        names.append(program.name)
        return jax.eval_shape(lambda *args: program.function(*args, **program.kwargs), *program.args)

    rows = abstract_step(config, model, mesh).trace(trace)
    assert names == ["inform", "score", "update"]
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (rows, abstract_step(grpo(), model, mesh).rows()))
    assert shapes[0] == shapes[1]
    found = planning.make_plan(config, model, devices, topology="cpu", lengths=LENGTHS, formulas=True)
    assert set(found.work) == {"update"} and found.tokens == found.resident["KV cache"] == 0


def compiled_nothing(peak):
    def compile_(program, alive):
        sizes = dict.fromkeys(("arguments", "outputs", "temporaries", "donated", "beside"), 0)
        memory = ProgramMemory(name=program.name, mend=program.mend, **sizes | {"temporaries": peak[program.name]})
        outputs = jax.eval_shape(lambda *args: program.function(*args, **program.kwargs), *program.args)
        return planning.Compiled(memory=memory, collectives=[], compile_s=0.0), outputs

    return compile_


@pytest.mark.parametrize(("rollout", "status"), [(2**29, 0), (2**31, 1)])
def test_exit_status_and_the_knob(monkeypatch, capsys, tmp_path, rollout, status):
    peak = dict.fromkeys(("publish", "inform", "score", "update"), 0) | {"rollout": rollout}
    monkeypatch.setattr(planning, "_compile", compiled_nothing(peak))
    monkeypatch.setattr(plan, "topology_devices", lambda _: jax.devices()[:1])
    plan.flags.FLAGS(["plan", "--topology=cpu:1", "--memory=1", f"--json={tmp_path / 'plan.json'}"])
    try:
        code = 0
        plan.main(grpo(), None)
    except SystemExit as error:
        code = error.code
    finally:
        for name in ("topology", "memory", "json"):
            plan.flags.FLAGS[name].unparse()
    assert code == status and json.loads((tmp_path / "plan.json").read_text())["fits"] == (status == 0)
    refusal = capsys.readouterr().err
    assert ("rollout needs 2.00 GiB a device and there are 1.00 GiB; lower rollout.slots" in refusal) == bool(status)


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 33.22G "
        "of 31.24G hbm. Exceeded hbm capacity by 1.98G.",
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (33.22G) exceeds available HBM (31.24G). HLO module: jit_publish.",
    ],
)
def test_a_compiler_that_refuses_is_understood(text):
    assert planning._refusal(text) == "33.22 GiB a device and there are 31.24 GiB"
    assert planning._refusal("INTERNAL: Used 3 of 4") == ""


@pytest.mark.parametrize("topology", ["", "v5p", "v9:2x2", "cpu:0", "v5p:4x4x4x4"])
def test_a_wrong_topology_is_named(topology):
    with pytest.raises(InputError, match=r"--topology=.* is not known; use one such as v5p:4x4x4"):
        slices.topology_devices(topology)


def test_missing_libtpu_is_one_line(monkeypatch):
    monkeypatch.setattr(slices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install iiblpo_jax\[plan\]"):
        slices.tpu_devices("v5p:2x2x1")


def test_the_architecture_comes_from_a_directory_a_flag_or_a_name():
    assert slices.architecture("/nowhere/Qwen2.5-7B/") == PRESETS["qwen2.5-7b"]
    assert slices.architecture("/nowhere/x", "qwen3-14b", layers=2) == dataclasses.replace(
        PRESETS["qwen3-14b"], n_layers=2
    )
    own = files.load_file(ROOT / "configs" / "arithmetic.py").model.path
    assert slices.architecture(own).vocab_size < 100
    with pytest.raises(InputError, match="no model at /nowhere/x and no preset x; pass --model, one of "):
        slices.architecture("/nowhere/x")
    with pytest.raises(InputError, match="no preset 'gpt'"):
        slices.architecture("/nowhere/x", "gpt")


# -- for a TPU --------------------------------------------------------------------------------------------------------


def test_a_program_for_tpus():
    pytest.importorskip("libtpu")
    config = grpo(mesh__fsdp=2, mesh__tensor=2, mesh__data=1, model__dtype="bfloat16", rollout__dtype="bfloat16")
    model = dataclasses.replace(PRESETS["qwen2.5-0.5b"], n_layers=2)
    mesh = meshes.make_mesh(config.mesh, devices=slices.tpu_devices("v5e:2x2"))
    step = abstract_step(config, model, mesh)
    program = planning.Program("publish", "", step.programs.publish, (step.state.params["policy"],))
    done, published = planning._compile(program, step.alive)
    # every matrix is gathered over fsdp once, in bfloat16, and stays split over tensor
    gathered = sum(c.bytes for c in done.collectives if c.kind == "all-gather")
    matrices = layer_weights(model) + model.vocab_size * model.d_model
    assert gathered == 2 * matrices // 2
    assert published.embed.weight.sharding.spec == PartitionSpec("tensor", None)
    # the small ones lie in tiles
    assert done.memory.arguments == pytest.approx(
        sum(map(planning.bytes_per_device, jax.tree.leaves(step.state.params["policy"]))), rel=0.01
    )
