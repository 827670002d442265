"""What the frozen reference model says about a Forest."""

import functools

import jax
import jax.numpy as jnp

from iiblpo_jax import bottleneck
from iiblpo_jax.bottleneck import Evidence, Information
from iiblpo_jax.bottleneck.information import reference_logprobs
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.decoder import bind
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.marker import MarkerTable, marker_cut
from iiblpo_jax.step.score import ScoreSpec


@functools.partial(jax.jit, static_argnames="spec")
def inform(
    reference: dict,
    forest: Forest,
    markers: tuple[MarkerTable, ...],
    marker_P: jax.Array,
    cue: tuple[jax.Array, jax.Array],
    answer: tuple[jax.Array, jax.Array],
    *,
    spec: ScoreSpec,
) -> Information | None:
    """What the frozen reference model says about a Forest; None where nothing asks for it.

    Args:
      reference: its weights.
      forest: finished trajectories.
      markers: answer markers of the tasks; marker_P says which one a prompt's task has.
      cue, answer: (tokens [P,Q or P,A], lengths [P]) of the answer cue and the gold answer.
      spec: static.
    """
    with meshes.using(spec.mesh):
        return _inform(bind(spec.model, reference), forest, markers, marker_P, cue, answer, spec)


def _inform(model, forest: Forest, markers, marker_P, cue, answer, spec: ScoreSpec) -> Information | None:
    if spec.estimator == "likelihood":
        cut_NR = jnp.stack([marker_cut(m, forest.tokens_RT, forest.length_R, forest.finish_R) for m in markers])
        cut_R = jnp.take_along_axis(cut_NR, marker_P[forest.group_R][None], axis=0)[0]
        evidence = Evidence(
            prompt_PS=forest.prompt_PS,
            prompt_len_P=forest.prompt_len_P,
            response_RT=forest.tokens_RT,
            length_R=forest.length_R,
            cut_R=cut_R,
            cue_PQ=cue[0],
            cue_len_P=cue[1],
            answer_PA=answer[0],
            answer_len_P=answer[1],
        )
        return bottleneck.likelihood(
            model,
            evidence,
            start_id=spec.start_id,
            compression=spec.compression,
            temperature=spec.temperature,
            pack_tokens=spec.pack_tokens,
            attention=spec.attention,
            shards=meshes.shards(spec.mesh),
        )
    if not spec.reference:
        return None
    logp_RT = reference_logprobs(
        model,
        forest,
        temperature=spec.temperature,
        pack_tokens=spec.pack_tokens,
        attention=spec.attention,
        shards=meshes.shards(spec.mesh),
    )
    nothing_R = jnp.full(forest.length_R.shape, jnp.nan)
    return Information(answer_R=nothing_R, prompt_R=nothing_R, ref_logp_RT=logp_RT)
