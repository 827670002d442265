"""The same step on every mesh of eight virtual devices: same tokens, same loss, same weights afterwards."""

import json

import pytest

pytestmark = pytest.mark.slow

ROLLOUTS = """
    import dataclasses, json, re, jax, numpy as np
    from flax import nnx
    from iiblpo_jax.devices import mesh as meshes
    from iiblpo_jax.defaults import default_config
    from iiblpo_jax.model.config import ModelConfig
    from iiblpo_jax.model.steering.code_tokens import CodeTokens
    from iiblpo_jax.model.steering.cvae import CVAE
    from iiblpo_jax.model.decoder import Decoder, params_of
    from iiblpo_jax.model.steering.psa import PSA
    from iiblpo_jax.rollout.publication import PublicationSpec, publisher
    from iiblpo_jax.model.steering.psa import bind_psa, project_latents, steer_slots
    from iiblpo_jax.rollout.branching import Branching
    from iiblpo_jax.rollout.cache import empty_cache
    from iiblpo_jax.rollout.decoding import decode_step
    from iiblpo_jax.rollout.engine import rollout
    from iiblpo_jax.rollout.spec import RolloutSpec

    config = ModelConfig(family="qwen3", vocab_size=24, d_model=16, d_ff=32, n_layers=2, n_heads=4, n_kv_heads=2,
                         head_dim=8, qk_norm=True)
    modules = Decoder(config, rngs=nnx.Rngs(0)), PSA(config, 4, 2, rngs=nnx.Rngs(1)), CVAE(16, 4, 8, rngs=nnx.Rngs(2))
    prompt_PS = np.random.default_rng(0).integers(1, 24, (8, 6)).astype(np.int32)
    length_P = np.arange(8, dtype=np.int32) % 6 + 1

    def kinds_of(program):
        kinds = re.findall(r" (all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\\(", program.as_text())
        return {kind: kinds.count(kind) for kind in set(kinds)}

    def prepared(*axes, **options):
        section = default_config().mesh
        section.update(dict(zip(meshes.AXES, axes)))
        mesh = meshes.make_mesh(section, devices=jax.devices()[:int(np.prod(axes))])
        model, psa, cvae = modules
        params = params_of(model)
        params = meshes.shard_params(params | {"embed": params["embed"] * 20},
                                     meshes.param_shardings(model, mesh, meshes.TRAIN))
        gain = 0.3 * jax.random.normal(jax.random.key(3), psa.gain.shape)
        psa = meshes.shard_params(params_of(psa) | {"gain": gain}, meshes.param_shardings(psa, mesh, meshes.TRAIN))
        latents = {"psa": psa, "cvae": jax.device_put(params_of(cvae), jax.NamedSharding(mesh, jax.P()))}
        return mesh, latents, publisher(PublicationSpec(model=config, **options), params, mesh)(params)

    def run(*axes, **options):
        mesh, latents, published = prepared(*axes, **options)
        spec = RolloutSpec(model=config, roots=2, branching=Branching(k=2, replace=False), slots=8, refill_at=2,
                           max_tokens=12, stop_ids=(0,), half_life=4.0, codes=CodeTokens(first=21, count=3), mesh=mesh)
        program = rollout.lower(published, *meshes.to_devices((prompt_PS, length_P), mesh, "batch"), jax.random.key(5),
                                spec=spec, latents=latents).compile()
        forest, stats = program(published, *meshes.to_devices((prompt_PS, length_P), mesh, "batch"), jax.random.key(5),
                                latents=latents)
        return {k: np.asarray(v) for k, v in vars(forest).items()}, int(stats.tokens), kinds_of(program)

    def one_token(*axes):
        # Collectives of a decode step, its logits left out, and the shape of a device's part of the keys.
        mesh, latents, published = prepared(*axes)

        def step(published, latents, z_BZ):
            with meshes.using(mesh):
                cache = empty_cache(config, 4, 16, "float32", unrolled=True, kv_copies=published.kv_copies)
                projected = project_latents(bind_psa(latents["psa"], config), z_BZ, 2, published.kv_copies)
                tokens, inject = np.arange(4), steer_slots(projected, np.ones(4))
                return decode_step(published, config, cache, tokens, tokens, np.int32(3), inject)

        program = jax.jit(step).lower(published, latents, np.ones((4, 4), np.float32)).compile()
        _, cache = program(published, latents, np.ones((4, 4), np.float32))
        return kinds_of(program), cache.k[0][0].sharding.shard_shape(cache.k[0][0].shape)

    # Every axis is split, alone or beside others; kv heads are copied (tensor 4) by a scan and, as int8, unrolled.
    several = {"": ((2, 2, 1, 2), (2, 1, 2, 1)), "unroll": ((2, 1, 1, 4),), "weights": ((2, 1, 1, 4),)}
    for options in ({}, {"unroll": False}, {"weights": "int8"}):
        if "unroll" not in options:  # a scan over layers is held against the unrolled layers of one device
            expected, tokens, alone = run(1, 1, 1, 1, **options)
            assert not alone and tokens > 300, (alone, tokens)
        for axes in several["".join(options)]:
            found, count, collectives = run(*axes, **options)
            assert count == tokens
            for name, value in expected.items():
                if value.dtype == np.float32:
                    np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=f"{axes} {name}")
                else:
                    np.testing.assert_array_equal(found[name], value, err_msg=f"{axes} {name}")
            print(json.dumps([axes, collectives]))
    print(json.dumps(["one token", *one_token(1, 1, 1, 4)]))
"""

STEPS = """
    import json, shutil, sys, jax, numpy as np
    from pathlib import Path
    from flax import nnx
    from rich.console import Console
    from iiblpo_jax import load_model
    from iiblpo_jax.defaults import default_config
    from iiblpo_jax.latents.storage import save_latents
    from iiblpo_jax.devices.mesh import AXES
    from iiblpo_jax.model.steering.cvae import CVAE
    from iiblpo_jax.model.decoder import params_of
    from iiblpo_jax.model.steering.psa import PSA, bind_psa
    from iiblpo_jax.rewards.scorer import Grades
    from iiblpo_jax.run.trainer import Trainer

    folder = Path(sys.argv[1])
    model, _ = load_model(default_config().model.path)
    psa = params_of(PSA(model.config, 4, 3, rngs=nnx.Rngs(1)))
    psa["gain"] = 0.3 * jax.random.normal(jax.random.key(2), psa["gain"].shape)
    cvae = CVAE(model.config.d_model, 4, 8, rngs=nnx.Rngs(3))
    save_latents(folder / "latent", model.config, params_of(model), cvae, bind_psa(psa, model.config), settings={},
                 metrics={})

    def trainer(name, *axes):
        config = default_config()
        config.task.options = {"k_min": 2, "k_max": 3, "train_size": 64, "heldout_size": 16}
        sizes = {
            "rollout": {"roots": 2, "slots": 8, "refill_at": 3, "max_prompt": 8, "max_tokens": 20, "top_p": 1.0,
                        "temperature": 1.6, "unroll": False},
            "branch": {"k": 1}, "ib": {"estimator": "likelihood"}, "psa": {"half_life": 8.0},
            "latent": {"z": 4, "hidden": 8, "condition": "conditioned"},
            "train": {"steps": 4, "prompts_per_step": 8, "refills": 1}, "optim": {"lr": 1e-4, "psa_lr": 1e-4},
            "distill": {"coef": 0.5, "beta": 0.5},  # the teacher is the policy, with answers
            "update": {"minibatches": 2, "microbatch": 4, "kl_coef": 0.1}, "mesh": dict(zip(AXES, axes)),
            "eval": {"problems": 4, "samples": 2, "k": (1,), "greedy": False},
        }
        for section, values in sizes.items():
            config[section].update(values)
        workdir = folder / name
        if not workdir.exists():
            shutil.copytree(folder / "latent", workdir / "latent")
        quiet = Console(quiet=True)
        return Trainer(config, workdir, console=quiet, devices=jax.devices()[:int(np.prod(axes))])

    def all_right(problems, texts, **_):
        undecided = np.full(len(texts), np.nan, np.float32)
        return Grades(np.ones(len(texts), np.float32), {"verdict": undecided, "seconds": undecided}, {})

    def outcome(trainer, step):
        metrics, columns = trainer.step(step)
        return metrics, columns, jax.device_get(trainer.state.params)

    def compare(expected, found, axes):
        (m, c, p), (other, columns, params) = expected, found
        assert c["tokens"] == columns["tokens"], axes
        for name in ("kept", "branch_at", "reward"):
            np.testing.assert_array_equal(c[name], columns[name], err_msg=f"{axes} {name}")
        np.testing.assert_allclose(columns["advantage"], c["advantage"], atol=1e-5, err_msg=str(axes))
        for name in ("update/loss", "update/grad_norm", "update/entropy", "update/kl_ref", "ib/prompt", "ib/answer"):
            np.testing.assert_allclose(other[name], m[name], rtol=2e-5, atol=1e-5, err_msg=f"{axes} {name}")
        # Adam divides by the size of the gradient: where that is rounding noise, so is the direction of a step of lr.
        near = [np.isclose(a, b, atol=1e-6).mean() for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(params))]
        assert min(near) > 0.98, (axes, near)
        assert max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(params))) < 5e-4

    alone = trainer("alone", 1, 1, 1, 1)
    first, evaluated = outcome(alone, 1), alone.evaluate()
    second = outcome(alone, 2)
    assert first[0]["rollout/refills"] == 1 and first[0]["update/distilled"] > 0
    # Every axis is split beside others; test_processes.py has data and fsdp alone.
    for axes in ((1, 2, 1, 4), (2, 1, 4, 1)):
        other = trainer("x".join(map(str, axes)), *axes)
        compare(first, outcome(other, 1), axes)
        if axes == (1, 2, 1, 4):
            again = other.evaluate()
            assert {k: v for k, v in again.items() if "time" not in k} == {
                k: v for k, v in evaluated.items() if "time" not in k}
            other.save(1, force=True)
            weights = jax.device_get((other.state.params, other.state.opt_state))
            other.scorer.score = all_right
            nothing, _ = other.step(2)  # neither the KL nor momentum moves anything
            assert nothing["update/empty"] == 2 and nothing["update/empty_steps"] == 1
            left = jax.device_get((other.state.params, other.state.opt_state))
            jax.tree.map(np.testing.assert_array_equal, left, weights)
            other.close()
            resumed = trainer("1x2x1x4", 1, 2, 1, 1)  # what eight devices wrote, two go on with
            assert resumed.restore() == 1
            compare(second, outcome(resumed, 2), "resumed")
        print(json.dumps([axes, "fine"]))
"""


def test_a_rollout_draws_the_same_tokens_on_every_mesh(run_script):
    *runs, (_, of_a_token, keys) = map(json.loads, run_script(ROLLOUTS, devices=8).splitlines())
    found = {tuple(axes): collectives for axes, collectives in runs}
    # Nothing travels between engines but the final sums; `tensor` adds up activations and hands logits around.
    assert found[2, 1, 2, 1].keys() <= {"all-reduce"}
    assert found[2, 2, 1, 2]["all-to-all"] >= 1
    assert not any("collective-permute" in kinds for kinds in found.values())
    # Two kv heads over four devices: each holds the one that its query head needs, and a token moves two sums a layer
    # and one for its embedding.
    assert keys == [4, 1, 8, 16] and of_a_token.keys() == {"all-reduce"}


def test_a_step_is_the_same_on_every_mesh(tmp_path, run_script):
    assert len([json.loads(line) for line in run_script(STEPS, str(tmp_path), devices=8).splitlines()]) == 2
