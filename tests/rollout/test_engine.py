"""The engine against a teacher-forced forward, against itself with other slot counts, and against plain resampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from iiblpo_jax.model.decoder import Decoder, bind, hidden_states, params_of, project
from iiblpo_jax.model.steering.codes import Codes, stratified
from iiblpo_jax.model.steering.cvae import CVAE, bind_cvae
from iiblpo_jax.model.steering.psa import bind_psa, latent_inputs, steer_rows
from iiblpo_jax.rollout import cache
from iiblpo_jax.rollout.branch_points import Record, candidate_mask
from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import STOP
from iiblpo_jax.rollout.marker import marker_table
from iiblpo_jax.rollout.publication import PublicationSpec, publish
from iiblpo_jax.rollout.sampling import Sampling
from iiblpo_jax.rollout.solved import Gold
from iiblpo_jax.rollout.spec import RolloutSpec

PROMPT_PS = jax.random.randint(jax.random.key(5), (3, 6), 2, 23)
PROMPT_LEN_P = jnp.array([6, 1, 4])
KEY = jax.random.key(9)
HALF_LIFE = 8.0
TREES = Branching(k=3, min_suffix=3)
COOLER = Sampling(temperature=0.8)
SHAPES = {
    "root": {"k": 3},
    "chain": {"k": 1, "parent": "previous", "depth": 3},
    "2 on 2": {"k": 2, "parent": "previous", "depth": 2},
    "2 on 2 on 2": {"k": 2, "parent": "previous", "depth": 3},
}


def trees(shape, **changes):
    return dataclasses.replace(TREES, **(SHAPES[shape] | changes))


@pytest.fixture(scope="module")
def latents(tiny_config, tiny_psa_params):
    cvae = CVAE(tiny_config.d_model, 4, 8, rngs=nnx.Rngs(3))
    return {"psa": tiny_psa_params, "cvae": params_of(cvae)}


@pytest.fixture(scope="module")
def sample(tiny_config, tiny_params, latents):
    """Runs the engine; keyword arguments override the spec."""
    usual = publish(tiny_params, spec=PublicationSpec(model=tiny_config))

    def run(*, with_z=True, key=KEY, published=usual, latents=latents, gold=None, **changes):
        base = RolloutSpec(
            model=tiny_config, roots=2, branching=TREES, slots=3, max_tokens=16, stop_ids=(0, 1), half_life=HALF_LIFE
        )
        spec = dataclasses.replace(base, **changes)
        latents = latents if with_z else None
        return rollout(published, PROMPT_PS, PROMPT_LEN_P, key, spec=spec, latents=latents, gold=gold)

    return run


@pytest.fixture(scope="module")
def forest(sample):
    return sample()[0]


def teacher_forced(forest, spec_levels, config, params, psa_params, temperature=1.0):
    """Log-softmax [R,T,V] of the emitting distributions from one full forward, with z on unless psa_params is None."""
    model, prompt_len_R = bind(config, params), forest.prompt_len_P[forest.group_R]
    z, at = forest.latent_path(spec_levels)
    rows = forest.sequences_RC
    latent = latent_inputs(z, at, prompt_len_R, rows.shape[1], half_life=HALF_LIFE, strength=1.0)
    steered = (
        {} if psa_params is None else {"inject": steer_rows(bind_psa(psa_params, config), config.n_layers, latent)}
    )
    logits = project(model, hidden_states(model, rows, **steered))
    index = prompt_len_R[:, None] - 1 + jnp.arange(forest.tokens_RT.shape[1])
    return jax.nn.log_softmax(jnp.take_along_axis(logits, index[..., None], 1) / temperature)


@pytest.mark.parametrize(
    "shape, points", [*((shape, "distinct") for shape in SHAPES), ("root", "shared"), ("2 on 2 on 2", "shared")]
)
def test_logprobs_and_entropies_equal_a_teacher_forced_forward(
    sample, tiny_config, tiny_params, tiny_psa_params, shape, points
):
    """Every path on its own, all at once: so no branch read a key or value that another one had overwritten."""
    branching = trees(shape, points=points)
    forest, _ = sample(branching=branching, sampling=COOLER)
    logp_RTV = teacher_forced(forest, branching.levels, tiny_config, tiny_params, tiny_psa_params, 0.8)
    logp_RT = jnp.take_along_axis(logp_RTV, forest.tokens_RT[..., None], 2)[..., 0]
    entropy_RT = -(jnp.exp(logp_RTV) * logp_RTV).sum(-1)
    assert (forest.parent_R >= 0).sum() == 3 * 2 * branching.branches
    np.testing.assert_allclose(forest.raw_logp_RT[forest.mask_RT], logp_RT[forest.mask_RT], atol=1e-4)
    np.testing.assert_allclose(forest.entropy_RT[forest.mask_RT], entropy_RT[forest.mask_RT], atol=1e-4)


def test_the_likeliest_tokens_of_every_draw_are_noted_where_it_is_asked(
    sample, tiny_config, tiny_params, tiny_psa_params
):
    """With their log-probs before truncation, in inherited prefixes too; what is drawn stays what it was."""
    plain, noted = (sample(sampling=Sampling(temperature=0.8, top_p=0.9, record=k))[0] for k in (0, 3))
    assert plain.top_token_RTK is None and noted.top_token_RTK.shape == (*noted.tokens_RT.shape, 3)
    np.testing.assert_array_equal(noted.tokens_RT, plain.tokens_RT)
    logp_RTV = teacher_forced(noted, TREES.levels, tiny_config, tiny_params, tiny_psa_params, 0.8)
    top_logp, top_token = jax.lax.top_k(logp_RTV, 3)
    on = np.asarray(noted.mask_RT)
    np.testing.assert_allclose(noted.top_logp_RTK[on], top_logp[on], atol=1e-4)
    clear = on & (np.diff(top_logp, axis=-1) < -1e-3).all(-1)  # elsewhere rounding decides the order
    assert clear.mean() > 0.5 * on.mean()
    np.testing.assert_array_equal(np.asarray(noted.top_token_RTK)[clear][:, :2], np.asarray(top_token)[clear][:, :2])


@pytest.mark.parametrize("points", ["shared", "distinct"])
def test_a_resample_on_a_branch_is_one_without_z(sample, tiny_config, tiny_params, tiny_psa_params, points):
    """Short responses run out of candidates; what grows there hears its ancestors' z in the prefix and no further."""
    branching = trees("2 on 2 on 2", points=points)
    forest, _ = sample(branching=branching, max_tokens=7)
    steered_R = (forest.parent_R >= 0) & ~forest.fallback_R
    assert int((forest.fallback_R & steered_R[forest.parent_R]).sum()) > 10
    logp_RTV = teacher_forced(forest, branching.levels, tiny_config, tiny_params, tiny_psa_params)
    logp_RT = jnp.take_along_axis(logp_RTV, forest.tokens_RT[..., None], 2)[..., 0]
    np.testing.assert_allclose(forest.raw_logp_RT[forest.mask_RT], logp_RT[forest.mask_RT], atol=1e-4)


def test_z_changes_the_distribution(forest, sample):
    """Otherwise the comparison with the teacher-forced forward would prove nothing about z."""
    plain, _ = sample(with_z=False)
    branch = forest.parent_R >= 0
    assert float(jnp.abs(forest.raw_logp_RT - plain.raw_logp_RT)[branch].max()) > 0.1
    assert float(jnp.abs(forest.z_RZ[branch]).min()) > 0 and not forest.z_RZ[~branch].any()


@pytest.mark.parametrize(
    "shape, slots, refill_at",
    [
        ("root", 3, 2),
        ("root", 16, 1),
        ("chain", 1, 1),
        ("chain", 16, 7),
        ("2 on 2", 2, 1),
        ("2 on 2", 16, 7),
        ("2 on 2 on 2", 1, 1),
        ("2 on 2 on 2", 5, 2),
        ("2 on 2 on 2", 16, 7),
    ],
)
def test_forest_does_not_depend_on_slots_or_refills(sample, shape, slots, refill_at):
    branching = trees(shape, points="distinct")
    one, stats_one = sample(branching=branching, sampling=COOLER)
    other, stats = sample(branching=branching, sampling=COOLER, slots=slots, refill_at=refill_at)
    for name in ("tokens_RT", "length_R", "finish_R", "branch_at_R", "parent_R", "fallback_R"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("raw_logp_RT", "entropy_RT", "z_RZ"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5, err_msg=name)
    assert int(stats.tokens) == int(stats_one.tokens) == int(one.own_RT.sum())


def test_a_scan_over_layers_and_split_caches_give_the_same_forest(
    sample, forest, monkeypatch, tiny_config, tiny_params
):
    stacked = publish(tiny_params, spec=PublicationSpec(model=tiny_config, unroll=False))
    monkeypatch.setattr(cache, "SEGMENT", 5)  # the caches of 22 positions have segments of 5, 5, 10 and 2
    for published, refill_at in ((None, 2), (stacked, 2)):  # another refill_at than above: else no new compilation
        other, _ = sample(refill_at=refill_at, **({} if published is None else {"published": published}))
        np.testing.assert_array_equal(forest.tokens_RT, other.tokens_RT)
        np.testing.assert_array_equal(forest.branch_at_R, other.branch_at_R)
        np.testing.assert_allclose(forest.raw_logp_RT, other.raw_logp_RT, atol=1e-5)


def test_z_is_drawn_from_the_prior_of_the_last_prefix_token_without_z(forest, latents, tiny_config, tiny_params):
    """The probe: one plain forward over the parent gives the hidden state that it sees."""
    model, cvae = bind(tiny_config, tiny_params), bind_cvae(latents["cvae"])
    hidden_RCD = hidden_states(model, forest.sequences_RC)
    drawn = np.flatnonzero((forest.parent_R >= 0) & ~forest.fallback_R)
    at = forest.prompt_len_P[forest.group_R][drawn] + forest.branch_at_R[drawn] - 1  # of token t* - 1
    context_ND = hidden_RCD[drawn, at]
    keys = jax.vmap(lambda r: jax.random.fold_in(jax.random.split(KEY, 3)[2], r))(drawn)
    np.testing.assert_allclose(forest.z_RZ[drawn], cvae.sample_prior(context_ND, keys), atol=1e-4)


@pytest.fixture(scope="module")
def codes(tiny_config, latents):
    """Codes with a prior that leans on the context; as wide as the PSA of the other latents."""
    codes = Codes(tiny_config.d_model, 4, 8, rngs=nnx.Rngs(4))
    return codes, {**latents, "cvae": params_of(codes)}


@pytest.mark.parametrize("shape, slots, refill_at", [("root", 1, 1), ("2 on 2", 16, 7)])
def test_stratified_z_of_siblings_come_from_one_key_whatever_the_slots(
    sample, codes, tiny_config, tiny_params, tiny_psa_params, shape, slots, refill_at
):
    """Every branch's z follows from its parent's key, its number among its siblings and its own probe."""
    codes, latents = codes
    branching = trees(shape)
    forest, _ = sample(branching=branching, stratified=True, latents=latents)
    other, _ = sample(branching=branching, stratified=True, latents=latents, slots=slots, refill_at=refill_at)
    np.testing.assert_array_equal(forest.tokens_RT, other.tokens_RT)
    np.testing.assert_allclose(forest.z_RZ, other.z_RZ, atol=1e-5)
    drawn = np.flatnonzero((forest.parent_R >= 0) & ~forest.fallback_R)
    at = forest.prompt_len_P[forest.group_R][drawn] + forest.branch_at_R[drawn] - 1
    keys = jax.vmap(lambda r: jax.random.fold_in(jax.random.split(KEY, 3)[2], r))(forest.parent_R[drawn])
    # A probe hears the latents of the prefix, and at its own token none.
    z_RJZ, at_RJ = forest.latent_path(branching.levels)
    rows, prompt_len_R = forest.sequences_RC, forest.prompt_len_P[forest.group_R]
    off_RJ = at_RJ.at[:, -1].multiply(-1)
    latent = latent_inputs(z_RJZ, off_RJ, prompt_len_R, rows.shape[1], half_life=HALF_LIFE, strength=1.0)
    psa, model = bind_psa(tiny_psa_params, tiny_config), bind(tiny_config, tiny_params)
    inject = steer_rows(psa, tiny_config.n_layers, latent)
    context_ND = hidden_states(model, rows, inject=inject)[drawn, at]
    nth = np.array(branching.shape.nth_J)[drawn % branching.tree_size]
    expected = codes.from_uniform(context_ND, stratified(keys, nth, branching.k, 4))
    np.testing.assert_allclose(forest.z_RZ[drawn], expected, atol=1e-4)


@pytest.mark.parametrize("with_z", [True, False])
def test_utilisation_counts_a_probe_as_a_wasted_step(sample, with_z):
    """One slot is never idle: all it wastes are the probes, one for every branch with a z."""
    forest, stats = sample(slots=1, with_z=with_z)
    probes = int(((forest.parent_R >= 0) & ~forest.fallback_R).sum()) if with_z else 0
    assert float(stats.slot_utilisation) == pytest.approx(int(stats.tokens) / (int(stats.tokens) + probes))


@pytest.mark.parametrize("spec", [{"weights": "int8"}, {"dtype": "bfloat16"}, {}])
def test_cheaper_publications_follow_the_policy_that_they_hold(sample, tiny_config, tiny_params, tiny_psa_params, spec):
    """int8: exactly the forward of the dequantised weights. bfloat16, or its caches alone: close to the policy."""
    published = publish(tiny_params, spec=PublicationSpec(model=tiny_config, **spec))
    forest, _ = sample(published=published, kv_dtype="" if spec else "bfloat16")
    held, tolerance = (dequantised(tiny_params), 1e-4) if spec.get("weights") else (tiny_params, 0.5)
    logp_RTV = teacher_forced(forest, TREES.levels, tiny_config, held, tiny_psa_params)
    logp_RT = jnp.take_along_axis(logp_RTV, forest.tokens_RT[..., None], 2)[..., 0]
    error = jnp.abs(forest.raw_logp_RT - logp_RT)[forest.mask_RT]
    assert float(error.max()) < tolerance and float(error.mean()) < tolerance / 10
    exact = teacher_forced(forest, TREES.levels, tiny_config, tiny_params, tiny_psa_params)
    off = forest.raw_logp_RT - jnp.take_along_axis(exact, forest.tokens_RT[..., None], 2)[..., 0]
    assert float(jnp.abs(off)[forest.mask_RT].max()) > 1e-3  # else the comparison would prove nothing


def dequantised(params):
    """Weights as int8 with one scale an output channel leaves them, computed apart from publication.py."""

    def dense(weight, inputs):
        rows = np.asarray(weight, np.float64).reshape(-1, inputs)
        scale = np.abs(rows).max(1, keepdims=True) / 127
        return jnp.asarray((np.round(rows / scale) * scale).reshape(weight.shape), jnp.float32)

    layers = dict(params["layers"])
    for name in ("qkv", "gate_up"):
        layers[name] = dense(layers[name], layers[name].shape[-1])
    for name in ("o", "down"):
        layers[name] = dense(layers[name], int(np.prod(layers[name].shape[2:])))
    return {**params, "layers": layers, "embed": dense(params["embed"], params["embed"].shape[1])}


def test_biases_an_untied_head_and_a_window_decode_as_they_train(sample, tiny_config):
    config = dataclasses.replace(
        tiny_config, qkv_bias=True, qk_norm=False, tied_embeddings=False, sliding_window=5, norm_eps=1e-5
    )
    params = params_of(Decoder(config, rngs=nnx.Rngs(6)))
    bias = jax.random.normal(KEY, params["layers"]["qkv_bias"].shape)
    params = {**params, "head": params["head"] * 5, "layers": {**params["layers"], "qkv_bias": bias}}
    published = publish(params, spec=PublicationSpec(model=config))
    forest, _ = sample(model=config, published=published, with_z=False, branching=Branching(k=1))
    model = bind(config, params)
    logp_RCV = jax.nn.log_softmax(project(model, hidden_states(model, forest.sequences_RC)))
    index = forest.prompt_len_P[forest.group_R][:, None] - 1 + jnp.arange(forest.tokens_RT.shape[1])
    logp_RTV = jnp.take_along_axis(logp_RCV, index[..., None], 1)
    logp_RT = jnp.take_along_axis(logp_RTV, forest.tokens_RT[..., None], 2)[..., 0]
    np.testing.assert_allclose(forest.raw_logp_RT[forest.mask_RT], logp_RT[forest.mask_RT], atol=1e-4)


@pytest.mark.parametrize("slots, refill_at", [(1, 1), (3, 2), (16, 7)])
def test_solved_roots_have_no_branches_and_the_others_all(sample, slots, refill_at):
    """The gold answer of a prompt is what its first root says behind its first token, the prompt's marker."""
    everything, _ = sample()
    tokens, length = np.asarray(everything.tokens_RT[::4]), np.asarray(everything.length_R[::4])  # of the six roots
    pieces = [bytes([33 + i if i < 15 else 43 + i]) for i in range(23)]  # no letters or digits
    gold = Gold(
        markers=tuple(marker_table(pieces, pieces[tokens[2 * p, 0]].decode()) for p in range(3)),
        marker_P=jnp.arange(3),
        answer_PA=jnp.asarray(tokens[::2, 1:2]),
        answer_len_P=jnp.ones(3, int),
        cue_PQ=jnp.zeros((3, 1), int),  # a rollout does not read it
        cue_len_P=jnp.zeros(3, int),
    )

    def says_it(root):
        marker, answer = tokens[root - root % 2, :2]
        said = tokens[root, : length[root]].tolist()
        return marker in said[:-1] and said[said.index(marker) + 1] == answer

    solved = np.array([says_it(root) for root in range(6)])
    assert solved[::2].all() and not solved.all()
    forest, _ = sample(branching=dataclasses.replace(TREES, solved=False), gold=gold, slots=slots, refill_at=refill_at)
    grown = np.asarray(forest.length_R).reshape(6, 4) > 0
    np.testing.assert_array_equal(grown, np.where(solved[:, None], np.arange(4) == 0, True))
    kept = grown.ravel()
    np.testing.assert_array_equal(forest.tokens_RT[kept], everything.tokens_RT[kept])


def test_idle_slots_steal_pending_branches(sample):
    """Six trees in sixteen slots: without stealing ten slots would never do anything and the rest grow all branches."""
    forest, stats = sample(slots=16)
    own_T = np.asarray(forest.own_RT.sum(1)).reshape(-1, 4)
    steps_alone = own_T.sum(1).max()  # the longest tree, if one slot had to grow it all
    tokens, steps = int(stats.tokens), round(int(stats.tokens) / (16 * float(stats.slot_utilisation)))
    assert tokens == own_T.sum() and steps < steps_alone


def test_a_branch_inherits_its_parents_prefix(forest):
    inherited = forest.mask_RT & ~forest.own_RT
    parent_R = jnp.maximum(forest.parent_R, 0)
    for field in (forest.tokens_RT, forest.raw_logp_RT, forest.entropy_RT):
        np.testing.assert_array_equal(field[inherited], field[parent_R][inherited])
    assert inherited.any()


def test_branch_points_are_among_the_most_hesitant_positions(forest):
    """Brute force: t* ranks among the max(2, 5%) highest entropies of the root's eligible tokens."""
    for r in np.flatnonzero((forest.parent_R >= 0) & ~forest.fallback_R):
        root, t = int(forest.parent_R[r]), int(forest.branch_at_R[r])
        length = int(forest.length_R[root])
        tail = max(min(3, length // 4), int(forest.finish_R[root] == STOP))
        eligible = [float(forest.entropy_RT[root, i]) for i in range(1, length - tail)]
        assert 1 <= t < length - tail
        assert sorted(eligible, reverse=True).index(float(forest.entropy_RT[root, t])) < max(2, int(0.05 * length))


@pytest.mark.parametrize("points", ["shared", "distinct"])
def test_deeper_branches_begin_among_their_parents_own_tokens(sample, points):
    """Brute force over max(2, 40%) of them; later siblings no later. Without a candidate: where the parent began."""
    branching = trees("2 on 2 on 2", points=points, fraction=0.4)
    forest, _ = sample(branching=branching, max_tokens=24)
    at_R, length_R, parent_R = (np.asarray(x) for x in (forest.branch_at_R, forest.length_R, forest.parent_R))
    deeper = [r for r in np.flatnonzero(parent_R >= 0) if parent_R[parent_R[r]] >= 0]
    for r in deeper:
        parent, t = parent_R[r], at_R[r]
        begin, length = at_R[parent], length_R[parent]
        tail = max(min(3, length // 4), int(forest.finish_R[parent] == STOP))
        eligible = [float(forest.entropy_RT[parent, i]) for i in range(begin + 1, length - tail)]
        assert bool(forest.fallback_R[r]) == (not eligible)
        if eligible:
            rank = sorted(eligible, reverse=True).index(float(forest.entropy_RT[parent, t]))
            assert begin < t < length - tail and rank < max(2, int(0.4 * (length - begin) + 1e-6))
        else:
            assert t == max(begin, 1)
        older = [s for s in range(parent + 1, r) if parent_R[s] == parent]
        assert all(at_R[s] >= t for s in older) and (points == "distinct" or all(at_R[s] == t for s in older))
    both = forest.fallback_R[jnp.array(deeper)]
    assert both.any() and not both.all()


@pytest.mark.parametrize(
    "at, shape, changes",
    [
        ("argmax", "root", {"k": 4, "per_point": 2}),
        ("random", "2 on 2", {}),
        ("logp", "2 on 2", {}),
        ("segments", "2 on 2", {"segment": 3}),
    ],
)
def test_every_policy_branches_where_it_says_whatever_the_slots(
    sample, tiny_config, tiny_params, tiny_psa_params, at, shape, changes
):
    """Points by a sort of each parent's record; log-probs of a full forward, so prefixes were found whole."""
    branching = trees(shape, at=at, points="distinct", **changes)
    forest, _ = sample(branching=branching)
    other, _ = sample(branching=branching, slots=16, refill_at=7)
    for name in ("tokens_RT", "length_R", "branch_at_R", "fallback_R"):
        np.testing.assert_array_equal(getattr(forest, name), getattr(other, name), err_msg=name)
    logp_RTV = teacher_forced(forest, branching.levels, tiny_config, tiny_params, tiny_psa_params)
    logp_RT = jnp.take_along_axis(logp_RTV, forest.tokens_RT[..., None], 2)[..., 0]
    np.testing.assert_allclose(forest.raw_logp_RT[forest.mask_RT], logp_RT[forest.mask_RT], atol=1e-4)
    at_R, length_R, parent_R = (np.asarray(x) for x in (forest.branch_at_R, forest.length_R, forest.parent_R))
    entropy_RT, said_RT, full = np.asarray(forest.entropy_RT), np.asarray(forest.raw_logp_RT), 0
    for parent in sorted(set(parent_R[parent_R >= 0])):
        mine = np.flatnonzero(parent_R == parent)
        tail = max(min(3, length_R[parent] // 4), int(forest.finish_R[parent] == STOP))
        eligible = range(at_R[parent] + 1, length_R[parent] - tail)
        ranked = {
            "argmax": sorted(eligible, key=lambda t: -entropy_RT[parent, t]),
            "random": list(eligible),
            "logp": sorted(eligible, key=lambda t: said_RT[parent, t]),
            "segments": [t for t in eligible if t % 3 == 0],
        }[at]
        n = branching.different_points
        allowed = ranked if at == "random" else ranked[:n]
        assert (forest.fallback_R[mine] == (not allowed)).all()
        if allowed:
            assert set(at_R[mine]) <= set(allowed) and len(set(at_R[mine])) == min(n, len(allowed))
            assert (np.diff(at_R[mine]) <= 0).all()
            full += len(allowed) >= n
    assert full > 3


def test_strength_zero_is_an_ordinary_resample(sample):
    silent, _ = sample(strength=0.0)
    plain, _ = sample(with_z=False)
    np.testing.assert_array_equal(silent.tokens_RT, plain.tokens_RT)
    np.testing.assert_array_equal(silent.raw_logp_RT, plain.raw_logp_RT)


def test_roots_are_untouched_by_the_branches(forest, sample):
    alone, _ = sample(branching=Branching(k=0), with_z=False)
    roots = jnp.flatnonzero(forest.parent_R < 0)
    same_keys = alone.tokens_RT.shape[0] == roots.shape[0]
    assert same_keys and not (alone.parent_R >= 0).any()
    # Trajectory ids differ (r*(1+K)), hence other draws; the first root has id 0 in both.
    np.testing.assert_array_equal(alone.tokens_RT[0], forest.tokens_RT[0])


def test_tokens_stop_at_a_stop_token_or_at_the_limit(forest):
    for tokens, length, finish in zip(forest.tokens_RT, forest.length_R, forest.finish_R, strict=True):
        stops = np.isin(tokens[: int(length)], [0, 1])
        assert not stops[:-1].any() and bool(stops[-1]) == (int(finish) == STOP)
        assert int(length) == 16 or int(finish) == STOP
        assert not tokens[int(length) :].any()


def test_min_tokens_holds_stop_tokens_back(sample):
    forest, _ = sample(min_tokens=9)
    assert int(forest.length_R.min()) >= 9
    assert (forest.finish_R == STOP).any()


def test_ids_that_are_never_drawn(sample, tiny_config, tiny_params):
    """Log-probs and entropies are those of a forward over the rest of the vocabulary."""
    never = tuple(range(4, 23, 2))
    forest, _ = sample(never_ids=never, with_z=False, branching=Branching(k=1, min_suffix=3), min_tokens=3)
    tokens = np.asarray(forest.tokens_RT)[np.asarray(forest.mask_RT)]
    assert not set(tokens) & set(never) and len(set(tokens)) > 5
    model, rows = bind(tiny_config, tiny_params), forest.sequences_RC
    index = forest.prompt_len_P[forest.group_R][:, None] - 1 + jnp.arange(16)
    logits_RTV = jnp.take_along_axis(project(model, hidden_states(model, rows)), index[..., None], 1)
    logp_RTV = jax.nn.log_softmax(logits_RTV.at[..., list(never)].set(-1e30))
    mask, take = forest.mask_RT, lambda x: jnp.take_along_axis(x, forest.tokens_RT[..., None], 2)[..., 0]
    np.testing.assert_allclose(forest.raw_logp_RT[mask], take(logp_RTV)[mask], atol=1e-4)
    entropy_RT = -(jnp.exp(logp_RTV) * logp_RTV).sum(-1)
    np.testing.assert_allclose(forest.entropy_RT[mask], entropy_RT[mask], atol=1e-4)


def test_a_root_that_cannot_branch_is_resampled_without_z(sample):
    """Two-token responses have no eligible position: token 0 never is, the last one is the stop or ends the row."""
    forest, _ = sample(max_tokens=1)
    branch = forest.parent_R >= 0
    assert bool(forest.fallback_R[branch].all()) and not forest.z_RZ.any()
    np.testing.assert_array_equal(forest.branch_at_R, 0)


def test_greedy_decoding_follows_the_argmax(sample, tiny_config, tiny_params):
    forest, _ = sample(branching=Branching(k=0), with_z=False, roots=1, sampling=Sampling(temperature=0.0))
    model, rows = bind(tiny_config, tiny_params), forest.sequences_RC
    best_RC = project(model, hidden_states(model, rows)).argmax(-1)
    for best_C, row_C, start, length in zip(best_RC, rows, PROMPT_LEN_P, forest.length_R, strict=True):
        np.testing.assert_array_equal(best_C[start - 1 : start + length - 1], row_C[start : start + length])


@pytest.mark.parametrize("shape, slots", [("root", 3), ("2 on 2", 1), ("2 on 2", 7)])
def test_sure_roots_leave_their_branches_empty(sample, shape, slots):
    """The roots of the usual Forest, and of its branches those whose root hesitates enough; tokens are counted so."""
    branching = trees(shape)
    size, (forest, _) = branching.tree_size, sample(branching=branching)
    roots = jax.tree.map(lambda x_R: x_R[::size], forest)
    record = Record(
        entropy_BT=roots.entropy_RT,
        logp_BT=roots.raw_logp_RT,
        length_B=roots.length_R,
        stopped_B=roots.finish_R == STOP,
        begin_B=roots.branch_at_R,
    )
    candidates = candidate_mask(record, TREES)
    highest = np.where(candidates, forest.entropy_RT[::size], 0.0).max(1)
    least = float(np.sort(highest)[len(highest) // 2 - 1 : len(highest) // 2 + 1].mean())  # between two roots
    found, stats = sample(slots=slots, branching=dataclasses.replace(branching, min_entropy=least))
    grown = np.repeat(highest >= least, size) | (np.arange(len(found.length_R)) % size == 0)
    assert 0 < grown.sum() < len(grown)
    np.testing.assert_array_equal(found.length_R, np.where(grown, forest.length_R, 0))
    np.testing.assert_array_equal(found.tokens_RT, np.where(grown[:, None], forest.tokens_RT, 0))
    assert int(stats.tokens) == int((found.length_R - found.branch_at_R).sum())


@pytest.mark.parametrize("shape, points", [("root", "shared"), ("2 on 2", "distinct")])
def test_branches_without_replacement(sample, tiny_config, tiny_params, shape, points):
    """None begins as its parent or an elder sibling did there, whatever the slots; `left` from a full forward."""
    branching = trees(shape, points=points, replace=False)
    forest, _ = sample(branching=branching, with_z=False)
    other, _ = sample(branching=branching, with_z=False, slots=16, refill_at=7)
    np.testing.assert_array_equal(forest.tokens_RT, other.tokens_RT)
    np.testing.assert_allclose(forest.left_R, other.left_R, atol=1e-5)
    p_RTV = np.exp(teacher_forced(forest, branching.levels, tiny_config, tiny_params, None))
    tokens, at, parent_R = np.asarray(forest.tokens_RT), np.asarray(forest.branch_at_R), np.asarray(forest.parent_R)
    shared = 0
    for r in np.flatnonzero(parent_R >= 0):
        elder = [i for i in range(r) if parent_R[i] == parent_R[r] and at[i] == at[r]]
        taken = {int(tokens[i, at[r]]) for i in (parent_R[r], *elder)}
        assert len(taken) == 1 + len(elder) and tokens[r, at[r]] not in taken
        assert forest.left_R[r] == pytest.approx(1 - p_RTV[r, at[r], list(taken)].sum(), abs=1e-4)
        shared += len(elder) > 0
    assert (forest.left_R[parent_R < 0] == 1).all() and (shared > 0 or points == "distinct")


def test_the_prefix_of_a_branch_does_not_depend_on_replacement(sample):
    """Roots and points are drawn from other numbers than first own tokens."""
    with_, _ = sample(with_z=False)
    without, _ = sample(with_z=False, branching=dataclasses.replace(TREES, replace=False))
    np.testing.assert_array_equal(with_.branch_at_R, without.branch_at_R)
    root = np.asarray(with_.parent_R) < 0
    np.testing.assert_array_equal(with_.tokens_RT[root], without.tokens_RT[root])
    assert (with_.left_R == 1).all()
