"""The gradient and the publication of an adapter are the same in pieces and on a mesh that splits all of it."""

SCRIPT = """
    import jax, jax.numpy as jnp, numpy as np
    from flax import nnx
    from iiblpo_jax.config.defaults import LORA_TARGETS
    from iiblpo_jax.defaults import default_config
    from iiblpo_jax.devices import mesh as meshes
    from iiblpo_jax.model.adapters.adapted import Adapted, base_shardings, stored
    from iiblpo_jax.model.adapters.lora import LoRA, LoRASpec
    from iiblpo_jax.model.config import ModelConfig
    from iiblpo_jax.model.decoder import Decoder, params_of
    from iiblpo_jax.objectives import make_objective
    from iiblpo_jax.objectives.rows import Rows
    from iiblpo_jax.rollout.publication import PublicationSpec, publisher
    from iiblpo_jax.update.gradient import MinibatchGradient
    from iiblpo_jax.update.settings import UpdateSettings

    config = ModelConfig(family="qwen3", vocab_size=24, d_model=16, d_ff=32, n_layers=2, n_heads=4, n_kv_heads=2,
                         head_dim=8, qk_norm=True, tied_embeddings=True)
    spec, N, T = LoRASpec(rank=4, alpha=8.0, targets=LORA_TARGETS), 8, 6
    model, lora = Decoder(config, rngs=nnx.Rngs(0)), LoRA(config, spec, rngs=nnx.Rngs(1))
    rng = np.random.default_rng(0)
    ints = {name: jnp.zeros(N, jnp.int32) for name in ("trajectory_R", "parent_R", "branch_at_R")}
    reals = {name: jnp.zeros(N) for name in ("reward_R", "correct_R", "ib_score_R")}
    mask = jnp.ones((N, T))
    rows = Rows(tokens_RC=jnp.asarray(rng.integers(1, 24, (N, 10)), jnp.int32), prompt_len_R=jnp.full(N, 4),
                length_R=jnp.full(N, T), mask_RT=mask, own_mask_RT=mask, raw_logp_RT=-mask,
                advantage_R=jnp.asarray(rng.normal(size=N), jnp.float32), keep_R=jnp.ones(N, bool),
                group_R=jnp.arange(N) // 4, **ints, **reals)

    def results(*axes, **settings):
        section = default_config().mesh
        section.update(dict(zip(meshes.AXES, axes)))
        mesh = meshes.make_mesh(section, devices=jax.devices()[:int(np.prod(axes))])
        places = meshes.param_shardings(model, mesh, meshes.TRAIN)
        base = stored(params_of(model), "int8")
        base = jax.device_put(base, base_shardings(places, base))
        mine = meshes.param_shardings(lora, mesh, meshes.TRAIN)
        adapter = meshes.shard_params({name: w + 0.1 for name, w in params_of(lora).items()}, mine)
        frozen = Adapted(base=base, adapter=None, model=config, spec=spec)
        gradient = MinibatchGradient(settings=UpdateSettings(mesh=mesh, group_size=4, **settings), model_config=config,
                                     objective=make_objective("grpo", max_tokens=T), shardings={"lora": mine})

        @jax.jit
        def look(params, rows, base):
            with meshes.using(mesh):
                return gradient.over(base)(params, rows, None, step=jnp.int32(0), key=jax.random.key(0))[:2]

        loss, gradients = look({"lora": adapter}, meshes.to_devices(rows, mesh, "batch"), frozen)
        policy = frozen.replace(adapter=adapter)
        published = publisher(PublicationSpec(model=config, unroll=False), policy, mesh)(policy)
        held = {name: w.addressable_shards[0].data.size / w.size for name, w in gradients["lora"].items()}
        scale = base["layers"]["qkv"].scale
        held["scale"] = scale.addressable_shards[0].data.size / scale.size
        return jax.device_get((loss, gradients["lora"], published)), held

    expected, _ = results(1, 1, 1, 1)
    assert min(np.abs(g).max() for g in expected[1].values()) > 1e-4
    for axes, settings in [((1, 2, 1, 2), {"pack_tokens": 24})]:
        found, held = results(*axes, **settings)
        for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(x, y, atol=2e-6 * max(1.0, np.abs(x).max()), rtol=1e-5)
    # D lies over fsdp, heads and the width of the MLP over tensor, and of a base its scales like its channels.
    halves = {"q_proj_a", "q_proj_b", "o_proj_a", "o_proj_b", "gate_proj_b", "down_proj_a", "down_proj_b", "scale"}
    assert all(held[name] == 0.5 for name in halves), held
"""


def test_pieces_and_a_mesh_give_the_same_numbers(run_script):
    run_script(SCRIPT, devices=4)
