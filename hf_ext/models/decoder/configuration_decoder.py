"""Configuration of the decoder family."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

from hf_ext.layers.attention import QK_NORMS, check_heads
from hf_ext.layers.blocks import BLOCKS
from hf_ext.layers.feed_forward import ACTIVATIONS, FEED_FORWARDS
from hf_ext.layers.norms import NORMS
from hf_ext.models.configuration_choices import check_choice
from hf_ext.ops.rotary import check_rope_parameters


POSITIONS = ("rope", "learned", "sinusoidal", "alibi", "relative", "none")
LAYER_TYPES = ("full_attention", "sliding_attention")


@strict
class HfxDecoderConfig(PretrainedConfig):
    """A decoder of your own design. Defaults: a Llama-like model of 39M parameters (vocabulary 32,000).

    Args:
        vocab_size: tokens in the vocabulary.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the feed-forward; default 4 hidden_size for a plain one, 8/3 of it, rounded up to
            a multiple of 64, for a gated one (as many parameters).
        num_hidden_layers, num_attention_heads: counts.
        num_key_value_heads: default num_attention_heads; 1 is multi-query attention.
        head_dim: default hidden_size / num_attention_heads.
        block_type: wiring of a block by its name in `hf_ext/layers/blocks.py`: "pre_norm", "post_norm", "sandwich", …
        norm_type: "rmsnorm", "rmsnorm_unit_offset" or "layernorm". norm_eps: added to the mean square or variance.
        mlp_type: "gated" (SwiGLU with silu, GeGLU with gelu) or "plain". hidden_act: its activation.
        qk_norm: None, "head" or "projection", see `MultiHeadAttention`.
        position_embedding_type: "rope", "learned" (GPT-2) or "sinusoidal" (2017) vectors added to the embeddings, "alibi"
            (BLOOM) or "relative" (T5) biases on the scores, or "none" (causality alone tells the order).
        relative_attention_num_buckets, relative_attention_max_distance: of the relative bias.
        embedding_norm: a norm right after the embeddings (BLOOM).
        rope_parameters: transformers' dict (rope_type, rope_theta, factor, …), or one for each layer type, by its name;
            None in place of a dict: no positions in those layers.
        rope_interleave: rotate neighbouring dims (GPT-J) instead of halves (Llama).
        max_position_embeddings: tokens in a row the model is made for.
        attention_bias, attention_output_bias (default attention_bias), mlp_bias, lm_head_bias: biases of the matrices.
        norm_bias: of LayerNorms.
        query_pre_attn_scalar: scores are divided by its root; default head_dim.
        attn_logit_softcapping: c in c * tanh(scores / c); None for none.
        attention_sinks: a learnt score for each head that takes weight without giving a value (GPT-OSS).
        sliding_window: tokens that a query sees, itself included, in the layers that `layer_types` calls
            "sliding_attention" (the others: "full_attention"); without `layer_types` in all layers.
        embedding_multiplier: factor on the embeddings; Gemma's is hidden_size ** 0.5.
        attention_dropout, hidden_dropout, embedding_dropout: probabilities in training.
        final_logit_softcapping: c in c * tanh(logits / c); None for none.
        initializer_range: standard deviation of new matrices.
        tie_word_embeddings: whether the output matrix is the embedding.
        use_cache: whether keys and values are kept by default.

    Raises:
        ValueError: one line, for what can't be built.
    """

    model_type = "hfx_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 32_000
    hidden_size: int = 512
    intermediate_size: int | None = None
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    block_type: str = "pre_norm"
    norm_type: str = "rmsnorm"
    norm_eps: float = 1e-6
    norm_bias: bool = True
    mlp_type: str = "gated"
    hidden_act: str = "silu"
    mlp_bias: bool = False
    attention_bias: bool = False
    attention_output_bias: bool | None = None
    lm_head_bias: bool = False
    query_pre_attn_scalar: float | int | None = None
    attn_logit_softcapping: float | int | None = None
    attention_sinks: bool = False
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    embedding_norm: bool = False
    embedding_multiplier: float | int | None = None
    qk_norm: str | None = None
    position_embedding_type: str = "rope"
    rope_parameters: dict | None = None
    rope_interleave: bool = False
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    max_position_embeddings: int = 2048
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    final_logit_softcapping: float | int | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self.validate_architecture()  # before anything is derived: a plain ValueError, not a division by zero
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            gated = -(-self.hidden_size * 8 // 3 // 64) * 64
            self.intermediate_size = gated if self.mlp_type == "gated" else 4 * self.hidden_size
        if self.layer_types is None:
            every = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [every] * self.num_hidden_layers
        if self.position_embedding_type != "rope" and self.rope_parameters is not None:
            raise ValueError(
                f"rope_parameters={self.rope_parameters}: have no effect with position_embedding_type="
                f"{self.position_embedding_type!r}; leave them out"
            )
        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rope":
            self.rope_parameters = None  # transformers fills in its default
        else:
            self.validate_rope()
            for rope_parameters in self.rope_parameters_by_layer_type().values():
                if rope_parameters is not None:
                    check_rope_parameters(rope_parameters, self.head_dim, self.max_position_embeddings)

    def validate_rope(self):
        """transformers' own check, with its KeyError as the one line that a user expects."""
        try:
            super().validate_rope()
        except KeyError as error:
            raise ValueError(f"rope_parameters={self.rope_parameters}: {error.args[0]}") from None

    def rope_parameters_by_layer_type(self) -> dict[str, dict | None]:
        """Layer type -> its rope_parameters."""
        kinds = sorted(set(self.layer_types))
        nested = any(kind in self.rope_parameters for kind in LAYER_TYPES)
        return {kind: self.rope_parameters.get(kind) if nested else self.rope_parameters for kind in kinds}

    def validate_architecture(self):
        """Runs at creation and again whenever the config is saved."""
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "relative_attention_num_buckets",
        ):
            size = getattr(self, name)
            if isinstance(size, int) and size < 1:
                raise ValueError(f"{name}={size}: must be at least 1")
        check_heads(self.hidden_size, self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        for name, choices in (
            ("block_type", BLOCKS),
            ("norm_type", NORMS),
            ("mlp_type", FEED_FORWARDS),
            ("hidden_act", ACTIVATIONS),
            ("position_embedding_type", POSITIONS),
            ("qk_norm", (None, *QK_NORMS)),
        ):
            check_choice(name, getattr(self, name), choices)
        for name in ("attention_dropout", "hidden_dropout", "embedding_dropout"):
            probability = getattr(self, name)
            if not 0 <= probability < 1:
                raise ValueError(f"{name}={probability}: must be at least 0 and below 1")
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if self.position_embedding_type == "relative" and (buckets < 2 or distance <= buckets // 2):
            raise ValueError(
                f"relative_attention_max_distance={distance}, relative_attention_num_buckets={buckets}: needs at least 2 "
                "buckets, and a distance above half of them"
            )
        self._validate_layer_types()
        for name in (
            "query_pre_attn_scalar",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "embedding_multiplier",
            "sliding_window",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: must be above 0, or None for none")
        if not 0 < self.norm_eps < math.inf:
            raise ValueError(f"norm_eps={self.norm_eps}: must be above 0")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"initializer_range={self.initializer_range}: must be a number and not negative")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise ValueError(
                        f"{name}={token}: must be None or a token of the vocabulary 0..{self.vocab_size - 1}"
                    )

    def _validate_layer_types(self) -> None:
        if self.layer_types is None:
            return
        for layer_type in self.layer_types:
            check_choice("layer_types", layer_type, LAYER_TYPES)
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types: {len(self.layer_types)} names for num_hidden_layers={self.num_hidden_layers}; "
                "give one a layer"
            )
        if ("sliding_attention" in self.layer_types) != (self.sliding_window is not None):
            raise ValueError(
                f"sliding_window={self.sliding_window}: must be given where layer_types has 'sliding_attention', "
                "and only there"
            )


__all__ = ["HfxDecoderConfig"]
