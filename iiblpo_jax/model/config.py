"""The static description of a decoder: everything that decides a compiled program, nothing that is learnt."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """Frequency-dependent rope scaling of Llama 3.1 (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of one decoder-only transformer.

    Attributes:
      family: `qwen2`, `qwen3`, `llama` or `mistral`; decides only how the model is written to disk.
      vocab_size: V, rows of the embedding.
      d_model: D, width of the residual stream.
      d_ff: F, width of the gated MLP.
      n_layers: L.
      n_heads: H query heads.
      n_kv_heads: G key/value heads; H is a multiple of G.
      head_dim: E; need not be D / H.
      rope_theta: base of the rotary frequencies.
      rope_scaling: Llama 3 frequency scaling, or None.
      norm_eps: epsilon of every RMSNorm.
      tied_embeddings: the LM head is the embedding.
      qkv_bias: biases on q, k, v (Qwen2).
      qk_norm: RMSNorm over each head of q and k (Qwen3).
      max_positions: longest sequence the model was made for.
      sliding_window: tokens a query looks back, itself included; None for all.
    """

    family: str
    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Rope | None = None
    norm_eps: float = 1e-6
    tied_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    max_positions: int = 32_768
    sliding_window: int | None = None
