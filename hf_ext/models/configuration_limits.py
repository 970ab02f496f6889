"""Sizes that a configuration from a file may ask for: what is absurd is refused before anything of that size is made.

A configuration written in a program is its author's word and isn't limited.
"""

import math
import os
from collections.abc import Iterator, Mapping


# Above what has been trained by anyone; HF_EXT_CONFIG_LIMITS=10 allows ten times as much of everything.
MAX_PARAMETERS = 10**12
# kind -> (most, names of it in configurations of many families)
LIMITS = {
    "layers": (
        10_000,
        ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers", "n_layer"),
    ),
    "width": (2**24, ("hidden_size", "intermediate_size", "d_model", "d_ff", "n_embd", "n_inner", "ffn_dim")),
    "heads": (2**16, ("num_attention_heads", "num_key_value_heads", "n_head", "num_heads")),
    "dims of a head": (2**20, ("head_dim", "kv_lora_rank", "q_lora_rank", "v_head_dim", "d_kv")),
    "tokens": (10**8, ("vocab_size", "encoder_vocab_size")),
    "positions": (10**9, ("max_position_embeddings", "n_positions", "rope_grid_width")),
    "experts": (2**16, ("num_experts", "num_local_experts", "n_routed_experts", "num_shared_experts")),
    "labels": (10**6, ("num_labels",)),
    "buckets": (10**6, ("relative_attention_num_buckets",)),
    "further tokens": (1000, ("num_nextn_predict_layers", "num_predicted_tokens")),
}
_VARIABLE = "HF_EXT_CONFIG_LIMITS"
_MAX_DEPTH = 20  # of configurations within configurations


def check_saved_sizes(values: Mapping, where: str = "config.json", defaults: Mapping | None = None) -> None:
    """Raises ValueError, one line, for a size that is negative or absurd, and for more parameters than any model has.

    Args:
        values: fields as a file has them, nested configurations too. defaults: those of the class that reads them.
    """
    factor = _factor()
    parameters = 0
    for fields in _configurations(values, where):
        for kind, (most, names) in LIMITS.items():
            for name in names:
                _check(where, name, fields.get(name), kind, most * factor)
        parameters += least_parameters({**(defaults or {}), **fields} if fields is values else fields)
    if parameters > MAX_PARAMETERS * factor:
        raise ValueError(
            f"{where}: asks for at least {parameters:.2g} parameters, above {MAX_PARAMETERS * factor:.2g}; if that is "
            f"meant, set {_VARIABLE} to a factor"
        )


def _factor() -> float:
    given = os.environ.get(_VARIABLE, "1")
    try:
        factor = float(given)
    except ValueError:
        factor = math.nan
    if not 1 <= factor < math.inf:
        raise ValueError(f"{_VARIABLE}={given!r}: must be a number from 1, by which the limits of configurations grow")
    return factor


def _configurations(values: Mapping, where: str, depth: int = 0) -> Iterator[Mapping]:
    """The mapping and those in it, of a vision tower or a text decoder."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"{where}: has mappings within mappings more than {_MAX_DEPTH} deep; no configuration has")
    yield values
    for value in values.values():
        if isinstance(value, Mapping):
            yield from _configurations(value, where, depth + 1)


def _check(where: str, name: str, value, kind: str, most: float) -> None:
    # heterogeneous models have a list, a size a layer
    for size in value if isinstance(value, list) else [value]:
        if isinstance(size, bool) or not isinstance(size, int | float):
            continue
        if not 0 <= size <= most:  # NaN too
            raise ValueError(
                f"{where}: {name}={size}: must be from 0 to {most:,.0f} {kind}; if more is meant, set {_VARIABLE} to a "
                "factor"
            )


def least_parameters(fields: Mapping) -> int:
    """Parameters that a model of these sizes has at least: embeddings, the output of attention, feed-forwards or experts.

    Names that a family doesn't use count nothing.
    """
    width = _first(fields, "hidden_size", "d_model", "n_embd")
    layers = sum(_size(fields, name) for name in ("num_hidden_layers", "n_layer", "num_layers", "decoder_layers"))
    layers += _size(fields, "encoder_layers")
    heads = _first(fields, "num_attention_heads", "n_head", "num_heads")
    attention = heads * _first(fields, "v_head_dim", "head_dim", "d_kv") or width
    inner = _first(fields, "intermediate_size", "d_ff", "n_inner", "ffn_dim") or 2 * width  # none is narrower
    experts = _first(fields, "num_experts", "num_local_experts", "n_routed_experts")
    matrices = 3 if fields.get("mlp_type") == "gated" else 2
    feed_forward = (
        matrices * width * ((_size(fields, "moe_intermediate_size") or inner) * experts if experts else inner)
    )
    positions = 0
    if fields.get("position_embedding_type") in ("learned", "absolute", "sinusoidal"):
        positions = _first(fields, "max_position_embeddings", "n_positions") * width
    vocabulary = (_size(fields, "vocab_size") + _size(fields, "encoder_vocab_size")) * width
    return vocabulary + positions + layers * (2 * width * attention + feed_forward)


def _size(fields: Mapping, name: str) -> int:
    value = fields.get(name)
    if isinstance(value, list):
        value = max((v for v in value if isinstance(v, int)), default=0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _first(fields: Mapping, *names: str) -> int:
    return next((size for name in names if (size := _size(fields, name))), 0)
