"""Which of llama.cpp's architectures computes what a decoder of ours computes: its name and metadata, or why there is none.

    llama   pre-norm, RMSNorm, SwiGLU, no biases                  (Llama; rotates neighbouring dims)
    qwen2   the same with biases on query, key and value          (rotates halves, as those below)
    qwen3   the same with a norm on each head's query and key
    gemma2  sandwich norms of unit offset, GeGLU, softcaps, every other layer local

Only what transformers' reader and llama.cpp agree on is written: a file that one of them computes differently is worse than
none.
"""

from collections.abc import Iterable

from hf_ext.models.decoder import HfxDecoderConfig


# what no architecture here has, and what the field must be then
NONE_HAS = {
    "num_experts": 0,
    "num_nextn_predict_layers": 0,
    "attention_type": "multi_head",
    "mlp_type": "gated",
    "mlp_bias": False,
    "lm_head_bias": False,
    "embedding_norm": False,
    "attention_sinks": False,
    "attention_output_gate": None,
    "value_residual": False,
    "position_embedding_type": "rope",
    "rope_grid_width": None,
}
# the architectures with Llama's wiring
LLAMA_HAS = {
    "norm_type": "rmsnorm",
    "hidden_act": "silu",
    "sliding_window": None,
    "embedding_multiplier": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
GEMMA2_HAS = {"norm_type": "rmsnorm_unit_offset", "qk_norm": None, "attention_bias": False, "tie_word_embeddings": True}


def choose_architecture(config: HfxDecoderConfig) -> str:
    """Name of llama.cpp's architecture for these weights.

    Raises:
        ValueError: one line, naming the first field that none of them can express.
    """
    _require(config, NONE_HAS, "llama.cpp's decoders")
    output_bias = config.attention_bias if config.attention_output_bias is None else config.attention_output_bias
    if output_bias:
        field = "attention_bias" if config.attention_output_bias is None else "attention_output_bias"
        _refuse(config, field, "no architecture has a bias on the output of attention", "attention_output_bias=False")
    _check_rope(config)
    if config.block_type == "sandwich":
        _check_gemma2(config)
        return "gemma2"
    if config.block_type != "pre_norm":
        _refuse(config, "block_type", "llama.cpp's decoders", "'pre_norm' (Llama, Qwen) or 'sandwich' (Gemma2)")
    _require(config, LLAMA_HAS, "llama, qwen2 and qwen3")
    _check_scaling(config, "llama, qwen2 and qwen3")
    if config.qk_norm == "projection":
        _refuse(config, "qk_norm", "llama, qwen2 and qwen3", "None or 'head'")
    if config.qk_norm == "head":
        _require(config, {"attention_bias": False}, "qwen3")
        return "qwen3"
    if config.attention_bias:
        if config.head_dim * config.num_attention_heads != config.hidden_size:
            _refuse(config, "head_dim", "qwen2", "hidden_size / num_attention_heads")
        return "qwen2"
    return "llama"


# what transformers' reader of a GGUF file takes these fields for, whatever the file says
READ_AS = {
    "qwen3": {"head_dim": 128},
    "gemma2": {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
}


def fields_not_read(config: HfxDecoderConfig, architecture: str) -> dict[str, float]:
    """Fields that transformers' reader takes for others, with their values; its config must be told them."""
    values = {field: getattr(config, field) for field in READ_AS.get(architecture, {})}
    if values.get("query_pre_attn_scalar", 0) is None:
        values["query_pre_attn_scalar"] = config.head_dim
    return {field: value for field, value in values.items() if value != READ_AS[architecture][field]}


def _check_gemma2(config: HfxDecoderConfig) -> None:
    _require(config, GEMMA2_HAS, "gemma2")
    if config.hidden_act not in ("gelu_pytorch_tanh", "gelu_new"):
        _refuse(config, "hidden_act", "gemma2", "'gelu_pytorch_tanh'")
    for field in ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
        if getattr(config, field) is None:
            _refuse(config, field, "gemma2", "a number")
    if abs((config.embedding_multiplier or 1.0) ** 2 - config.hidden_size) > 1e-3 * config.hidden_size:
        _refuse(config, "embedding_multiplier", "gemma2", f"hidden_size ** 0.5 = {config.hidden_size**0.5:.4f}")
    alternating = [("sliding_attention", "full_attention")[i % 2] for i in range(config.num_hidden_layers)]
    if list(config.layer_types) != alternating:
        _refuse(config, "layer_types", "gemma2", "sliding_attention and full_attention in turn, sliding first")
    _check_scaling(config, "gemma2")


def _check_scaling(config: HfxDecoderConfig, who: str) -> None:
    if config.query_pre_attn_scalar not in (None, config.head_dim):
        _refuse(config, "query_pre_attn_scalar", who, f"None or head_dim={config.head_dim}")


def _check_rope(config: HfxDecoderConfig) -> None:
    rules = list(config.rope_parameters_by_layer_type().values())
    for rule in rules:
        is_default = rule is not None and rule.get("rope_type", "default") == "default"
        if not is_default or rule.get("partial_rotary_factor", 1.0) != 1.0 or rule != rules[0]:
            _refuse(config, "rope_parameters", "the reader of transformers", "one rule of rope_type 'default' for all")


def _require(config: HfxDecoderConfig, fields: dict, who: str) -> None:
    for field, value in fields.items():
        if getattr(config, field) != value:
            _refuse(config, field, who, repr(value))


def _refuse(config: HfxDecoderConfig, field: str, who: str, allowed: str) -> None:
    raise ValueError(f"{field}={getattr(config, field)!r}: can't be written as GGUF for {who}; must be {allowed}")


def turns_neighbours(architecture: str) -> bool:
    """Whether the architecture's rotary positions turn dims 2i and 2i + 1 together, not i and i + D/2."""
    return architecture == "llama"


def check_row_sizes(config: HfxDecoderConfig, block: int, kind: str) -> None:
    """Rows of all matrices are whole blocks.

    Raises:
        ValueError: one line, naming the size that isn't.
    """
    sizes: Iterable[tuple[str, int]] = (
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_attention_heads * head_dim", config.num_attention_heads * config.head_dim),
    )
    for name, size in sizes:
        if size % block:
            raise ValueError(f"{name}={size}: {kind} has blocks of {block}, which must divide it; use f16")
