"""The latent stage on four virtual devices: what one device finds, with a quarter of its work on each."""

import json

import pytest

pytestmark = pytest.mark.slow

FOUR = """
    import functools, json, jax, numpy as np
    from flax import nnx
    from iiblpo_jax.devices import mesh as meshes
    from iiblpo_jax.defaults import default_config
    from iiblpo_jax.latents import diagnostics, features, training
    from iiblpo_jax.latents.features import Continuation, extract, rows_of
    from iiblpo_jax.model.config import ModelConfig
    from iiblpo_jax.model.decoder import Decoder, params_of
    from iiblpo_jax.rollout.branching import Branching

    config = ModelConfig(family="qwen3", vocab_size=24, d_model=32, d_ff=64, n_layers=2, n_heads=4, n_kv_heads=2,
                         head_dim=8, qk_norm=True)
    model = Decoder(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    rows = rows_of([Continuation(i, rng.integers(1, 24, 4).tolist(), rng.integers(1, 24, 8 + i % 9).tolist(), True)
                    for i in range(30)])
    HOW = {"temperature": 0.8, "half_life": 8.0, "strength": 1.0}
    jit, flops = jax.jit, {}

    def spy(function, *, name, **options):
        program = jit(function, **options)

        def run(*args, **kwargs):
            if name not in flops:
                flops[name] = program.lower(*args, **kwargs).compile().cost_analysis()["flops"]
            return program(*args, **kwargs)
        return run

    def stage(*axes):
        section = default_config().mesh
        section.update(dict(zip(meshes.AXES, axes)))
        mesh = meshes.make_mesh(section, devices=jax.devices()[:int(np.prod(axes))])
        shardings = meshes.param_shardings(model, mesh, meshes.TRAIN)
        params = meshes.shard_params(params_of(model) | {"embed": params_of(model)["embed"] * 20}, shardings)
        flops.clear()
        pairs = extract(config, params, rows, jax.random.key(1), temperature=0.8, branching=Branching(k=1), mesh=mesh)
        [(padded, _)] = features.chunks((rows, jax.random.split(jax.random.key(1), 30)), 20, mesh)
        static = {"temperature": 0.8, "branching": Branching(k=1), "window": 0, "anywhere": 0.5, "mesh": mesh}
        lowered = features._extract.lower(config, params, *padded, **static)
        flops["extract"] = lowered.compile().cost_analysis()["flops"]
        jax.jit = functools.partial(spy, name="cvae")
        fit = training.Fit(latent=4, hidden=32, steps=60, batch=16, lr=1e-3, mesh=mesh)
        cvae, first = training.train_cvae(
            pairs.context_ND, pairs.target_ND, jax.random.key(2), fit, free_bits=0.1, kl_warmup=10)
        jax.jit = functools.partial(spy, name="psa")
        # 14 rows a step: four devices have 4 each, two of which count nothing
        psa, second = training.train_psa(
            config, params, cvae, pairs, jax.random.key(3), n_injected=2, steps=30, batch=14, lr=1e-3, mesh=mesh, **HOW)
        jax.jit = jit
        told = extract(config, params, rows, jax.random.key(1), temperature=0.8, branching=Branching(k=1), window=3,
                       anywhere=0.0, mesh=mesh)
        codes, _ = training.train_codes(told.context_ND, told.target_ND, jax.random.key(2), fit)
        found = {"pairs": pairs, "cvae": params_of(cvae), "psa": params_of(psa), "losses": (first, second)}
        found |= {"told": told, "codes": params_of(codes)}
        metrics = diagnostics.diagnose(config, params, cvae, psa, pairs, jax.random.key(4), mesh=mesh, **HOW)
        return jax.device_get(found), metrics, dict(flops)

    expected, metrics, alone = stage(1, 1, 1, 1)
    assert np.abs(expected["psa"]["gain"]).max() > 1e-3
    found, measured, split = stage(2, 2, 1, 1)
    np.testing.assert_array_equal(found["pairs"].cut_N, expected["pairs"].cut_N)
    near = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4)
    jax.tree.map(near, found, expected)
    assert set(measured) == set(metrics)
    for name, value in metrics.items():
        np.testing.assert_allclose(measured[name], value, rtol=2e-3, atol=2e-4, err_msg=name)
    print(json.dumps({name: split[name] / alone[name] for name in alone}))
"""


def test_four_devices_find_what_one_does_and_share_its_work(run_script):
    shares = json.loads(run_script(FOUR, devices=4))
    # A quarter and a little more: 32 rows for 30, 16 for 14, and every device updates all weights of the CVAE.
    assert shares["extract"] < 0.35 and shares["psa"] < 0.35 and shares["cvae"] < 0.6, shares
