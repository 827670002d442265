"""What a step costs by formula: FLOPs and bytes of its programs, and the seconds a chip needs at least.

With N = matmul weights of all layers = L (2 D H E + 2 D G E + 3 D F), V D = the LM head and A = 4 L H E (scores and
weighted values of one query and one key):

    forward of n nodes      2 N n + A * (query-key pairs) + 2 V D * (nodes that emit a token)
    backward                twice the forward; recomputing activations (update.remat) once more
    prefill                 every prompt at its full width max_prompt, nothing emitted
    decode                  a forward of every generated token, over its own context
    inform                  responses with and without their prompt, cut responses with cue and answer, cue and answer
                            alone (bottleneck.likelihood); only the first of these without the likelihood estimator
    adapter                 of frozen weights no gradient is taken: a backward is one forward, not two; what the thin
                            matrices do themselves counts nothing
    update                  one forward for the old log-probs where there are several optimizer steps, and a forward and
                            a backward an epoch, over the kept rows

Bytes are those that no arrangement avoids: weights once a pass, keys and values once a token, gradients and optimizer
state once an optimizer step. Seconds are max(FLOPs / peak, bytes / bandwidth); activations, collectives and the host
count nothing, so a real step is slower. Branches are taken to inherit half of their parent.
"""

import dataclasses
import math

from iiblpo_jax.config import derived
from iiblpo_jax.model.adapters.lora import projections
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.rollout.publication import kv_heads_held
from iiblpo_jax.step import specs
from iiblpo_jax.step.specs import pack_tokens

INHERITED = 0.5  # share of its parent that a branch begins with
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Data sheet of one chip: memory in bytes, bfloat16 FLOP/s, bytes/s of its memory, and what JAX may call it."""

    kinds: tuple[str, ...]
    memory: int
    flops: float
    bandwidth: float


# docs.cloud.google.com/tpu/docs, pages v4, v5e, v5p and v6e.
CHIPS = {
    "v4": Chip(kinds=("TPU v4",), memory=32 * 2**30, flops=275e12, bandwidth=1.228e12),
    "v5e": Chip(kinds=("TPU v5 lite", "TPU v5e"), memory=16 * 2**30, flops=197e12, bandwidth=0.819e12),
    "v5p": Chip(kinds=("TPU v5", "TPU v5p"), memory=95 * 2**30, flops=459e12, bandwidth=2.765e12),
    "v6e": Chip(kinds=("TPU v6 lite", "TPU v6e"), memory=32 * 2**30, flops=918e12, bandwidth=1.64e12),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one program does.

    Attributes:
      flops: of all devices together.
      useful: those that the method asks for; the rest is recomputation.
      bytes: that one device reads and writes at least.
    """

    flops: float
    useful: float
    bytes: float

    def seconds(self, chip: Chip, devices: int) -> float:
        """Least time on so many chips."""
        return max(self.flops / devices / chip.flops, self.bytes / chip.bandwidth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean tokens of a prompt and of a response."""

    prompt: float
    response: float


def layer_weights(m: ModelConfig) -> int:
    """N: matmul weights of all layers."""
    heads = 2 * m.d_model * (m.n_heads + m.n_kv_heads) * m.head_dim
    return m.n_layers * (heads + 3 * m.d_model * m.d_ff)


def head_weights(m: ModelConfig) -> int:
    """V D."""
    return m.vocab_size * m.d_model


def trained_weights(config, m: ModelConfig) -> int:
    """What has a gradient and optimizer state: all matmul weights, or those of an adapter."""
    spec = specs.lora(config)
    if spec is None:
        return layer_weights(m) + head_weights(m) * (1 if m.tied_embeddings else 2)
    known = projections(m)
    return m.n_layers * spec.rank * sum(math.prod(known[t].out) + math.prod(known[t].inside) for t in spec.targets)


def _stored_bytes(config, layers: int, rest: int) -> float:
    """Bytes of so many weights of layers and others as the update and the reference read them."""
    base = config.lora.base if config.lora.rank else config.model.dtype
    return layers * DTYPE_BYTES[base] + rest * DTYPE_BYTES["bfloat16" if base == "int8" else base]


def forward_flops(m: ModelConfig, *, nodes: float, pairs: float, emitted: float) -> float:
    """FLOPs of a forward over `nodes` inputs with so many query-key pairs and so many tokens emitted."""
    attention = 4 * m.n_layers * m.n_heads * m.head_dim * pairs
    return 2 * layer_weights(m) * nodes + attention + 2 * head_weights(m) * emitted


def text_flops(m: ModelConfig, *, texts: float, start: float, length: float, emitted: bool) -> float:
    """FLOPs of a forward over `texts` runs of `length` nodes, each behind `start` others."""
    pairs = length * start + length * (length + 1) / 2
    return texts * forward_flops(m, nodes=length, pairs=pairs, emitted=length if emitted else 0)


def kv_bytes(m: ModelConfig, dtype: str) -> int:
    """Keys and values of one token in all layers."""
    return 2 * m.n_layers * m.n_kv_heads * m.head_dim * DTYPE_BYTES[dtype]


def generated_tokens(config, lengths: Lengths) -> float:
    """Tokens that a rollout draws."""
    return config.train.prompts_per_step * config.rollout.roots * _tree_tokens(config, lengths)


def _tree_tokens(config, lengths: Lengths) -> float:
    """Tokens of one tree: a branch inherits INHERITED of its parent's own and then is as long as a whole response."""
    levels = range(derived.branch_levels(config) + 1)
    return lengths.response * sum(config.branch.k**level * (1 - INHERITED) ** level for level in levels)


def step_work(config, m: ModelConfig, lengths: Lengths, shape: dict[str, int], parts: int) -> dict[str, Work]:
    """Work of every program that does any worth the name.

    Args:
      config, m: of the run.
      lengths: assumed.
      shape: devices along the axes of the mesh.
      parts: engines of the rollout (mesh.rollout_axes).
    """
    work = {} if config.data.recorded else {"rollout": _rollout(config, m, lengths, shape, parts)}
    informed = _informed(config)
    if informed:
        work["inform"] = _inform(config, m, lengths, shape, informed == "likelihood")
    return work | {"update": _update(config, m, lengths, shape)}


def _informed(config) -> str:
    if config.ib.estimator == "likelihood":
        return "likelihood"
    tree_asks = config.branch.k > 0 and config.branch.credit == "ib_tpo"
    return "reference" if config.update.kl_coef > 0 or tree_asks else ""


def _rollout(config, m: ModelConfig, lengths: Lengths, shape, parts: int) -> Work:
    r, prompts, tokens = config.rollout, config.train.prompts_per_step, generated_tokens(config, lengths)
    mean_context = lengths.prompt + lengths.response / 2
    prefill = text_flops(m, texts=prompts, start=0, length=r.max_prompt, emitted=False)
    decode = forward_flops(m, nodes=tokens, pairs=tokens * mean_context, emitted=tokens)
    weights = layer_weights(m) * DTYPE_BYTES[r.weights or r.dtype] + head_weights(m) * DTYPE_BYTES[r.weights or r.dtype]
    # A tree is one slot's work after another unless others steal its branches: at least a root, one branch of it and
    # what grows on that.
    branches = _tree_tokens(config, lengths) - lengths.response
    longest = lengths.response + branches / max(config.branch.k, 1)
    steps = max(tokens / r.slots, longest)
    live = tokens / steps / parts  # slots that decode on each part, on average
    context = kv_bytes(m, r.kv_dtype or r.dtype) * kv_heads_held(m, shape["tensor"]) / m.n_kv_heads
    flops, step = prefill + decode, weights / shape["tensor"] + live * mean_context * context
    return Work(flops=flops, useful=flops, bytes=steps * step)


def _inform(config, m: ModelConfig, lengths: Lengths, shape, likelihood: bool) -> Work:
    prompts = config.train.prompts_per_step
    trajectories = prompts * derived.group_size(config)
    own = generated_tokens(config, lengths)
    flops = text_flops(m, texts=prompts, start=0, length=lengths.prompt, emitted=False)
    flops += _responses(m, own, lengths, start=lengths.prompt)
    if likelihood:
        flops += _responses(m, own, lengths, start=1)
        tail = specs.MAX_ANSWER
        flops += text_flops(
            m, texts=trajectories, start=lengths.prompt + lengths.response, length=tail, emitted=True
        ) + text_flops(m, texts=prompts, start=lengths.prompt, length=tail, emitted=True)
    pieces = max(1, math.ceil(own * (1 + likelihood) / _nodes(config, shape) / _shards(shape)))
    weights = _stored_bytes(config, layer_weights(m), head_weights(m))
    return Work(flops=flops, useful=flops, bytes=pieces * weights / shape["tensor"])


def _update(config, m: ModelConfig, lengths: Lengths, shape) -> Work:
    u, prompts = config.update, config.train.prompts_per_step
    share = derived.kept_per_prompt(config) / derived.group_size(config)
    own = generated_tokens(config, lengths) * share
    forward = text_flops(m, texts=prompts, start=0, length=lengths.prompt, emitted=False)
    forward += _responses(m, own, lengths, start=lengths.prompt)
    steps = u.epochs * u.minibatches
    passes = u.epochs * (2 if config.lora.rank else 3) + (steps > 1)
    nodes = own + prompts * lengths.prompt
    pieces = math.ceil(nodes / u.minibatches / _nodes(config, shape) / _shards(shape)) * u.minibatches
    trained, spread = trained_weights(config, m), _state_parts(shape)
    read = _stored_bytes(config, layer_weights(m), head_weights(m) * (1 if m.tied_embeddings else 2)) / shape["tensor"]
    # A piece reads weights forward, again where recomputed, and backward, and adds float32 gradients.
    piece = (2 + u.remat) * read + 8 * trained / spread
    moved = u.epochs * pieces * piece + pieces * read * (steps > 1) + steps * 28 * trained / spread
    return Work(flops=forward * (passes + u.epochs * u.remat), useful=forward * passes, bytes=moved)


def _responses(m: ModelConfig, tokens: float, lengths: Lengths, *, start: float) -> float:
    """A forward over so many response tokens, each behind `start` others and half a response."""
    return forward_flops(m, nodes=tokens, pairs=tokens * (start + lengths.response / 2), emitted=tokens)


def _shards(shape) -> int:
    return shape["data"] * shape["fsdp"]


def _state_parts(shape) -> int:
    return shape["fsdp"] * shape["tensor"]


def _nodes(config, shape) -> int:
    """Nodes of a bin."""
    width = config.rollout.max_prompt + config.rollout.max_tokens
    return max(pack_tokens(config, shards=_shards(shape)), width)
