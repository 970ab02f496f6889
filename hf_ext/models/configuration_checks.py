"""Checks of a whole configuration before anything is built from it: each raises ValueError, one line, saying what to change.

Every function takes the config; a field that it hasn't got is not checked, so that all families share them.
"""

import math

from hf_ext.layers.differential_attention import check_pairs
from hf_ext.models.configuration_choices import check_choice


# blocks whose sublayers' outputs go through a norm before they are added
NORMED_OUTPUTS = ("sandwich", "reordered_norm")
LAYER_TYPES = ("full_attention", "sliding_attention")
MLP_LAYER_TYPES = ("dense", "sparse")
EXPERT_FIELDS = (
    "num_shared_experts",
    "moe_intermediate_size",
    "mlp_layer_types",
    "router_scores",
    "norm_topk_prob",
    "routed_scaling_factor",
    "router_aux_loss_coef",
    "router_z_loss_coef",
    "router_balance_bias",
    "router_balance_rate",
    "output_router_logits",
)
LATENT_FIELDS = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def check_sizes(config, names: tuple[str, ...]) -> None:
    """Counts and widths are at least 1, or None where they are to be derived."""
    for name in names:
        size = getattr(config, name, None)
        if isinstance(size, int) and size < 1:
            raise ValueError(f"{name}={size}: must be at least 1")


def check_numbers(
    config, names: tuple[str, ...], *, above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf
) -> None:
    """Finite numbers within bounds, or None."""
    bounds = [f"{word} {bound}" for word, bound in (("above", above), ("at least", at_least), ("below", below))]
    rule = " and ".join(bound for bound in bounds if "inf" not in bound)
    for name in names:
        value = getattr(config, name, None)
        if value is not None and not (above < value < below and at_least <= value):
            raise ValueError(f"{name}={value}: must be {rule}{'' if math.isfinite(value) else ', and finite'}")


def check_special_tokens(config) -> None:
    """Special tokens are in the vocabulary."""
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not 0 <= token < config.vocab_size:
                raise ValueError(
                    f"{name}={token}: must be None or a token of the vocabulary 0..{config.vocab_size - 1}"
                )


def check_positions(config) -> None:
    """Options of one position scheme are not given with another."""
    scheme = config.position_embedding_type
    for name in ("rope_parameters", "rope_grid_width"):
        if scheme != "rope" and getattr(config, name, None) is not None:
            raise ValueError(
                f"{name}={getattr(config, name)}: has no effect with position_embedding_type={scheme!r}; leave it out"
            )
    if scheme != "sinusoidal":
        check_unused(config, "sinusoidal_interleave", without="position_embedding_type='sinusoidal'")
    buckets, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
    if scheme == "relative" and (buckets < 2 or distance <= buckets // 2):
        raise ValueError(
            f"relative_attention_max_distance={distance}, relative_attention_num_buckets={buckets}: needs at least 2 "
            "buckets, and a distance above half of them"
        )


def check_zero_init(config) -> None:
    """Blocks can start as the identity."""
    if config.zero_init_residual and config.block_type in NORMED_OUTPUTS:
        raise ValueError(
            f"zero_init_residual=True: block_type={config.block_type!r} normalises each output, and the norm of zeros has "
            "gradients of 1 / sqrt(norm_eps); leave it out, or use another block_type"
        )


def check_layer_types(config) -> None:
    """A known type for each layer, and a window where one is used."""
    if config.layer_types is None:
        return
    check_one_a_layer(config, "layer_types", LAYER_TYPES)
    kinds = set(config.layer_types)
    if getattr(config, "encoder_layer_types", None) is not None:  # the other stack of an encoder-decoder
        check_one_a_layer(config, "encoder_layer_types", LAYER_TYPES, count="encoder_layers")
        kinds |= set(config.encoder_layer_types)
    if ("sliding_attention" in kinds) != (config.sliding_window is not None):
        raise ValueError(
            f"sliding_window={config.sliding_window}: must be given where layer_types has 'sliding_attention', "
            "and only there"
        )


def check_one_a_layer(config, name: str, choices: tuple[str, ...], count: str = "num_hidden_layers") -> None:
    """A list of names, one of `choices` for each of the layers that the field `count` counts."""
    values = getattr(config, name)
    for value in values:
        check_choice(name, value, choices)
    if len(values) != getattr(config, count):
        raise ValueError(f"{name}: {len(values)} names for {count}={getattr(config, count)}; give one a layer")


def check_attention_type(config) -> None:
    """Heads and options suit the type of attention."""
    if config.attention_type == "differential":
        check_pairs(config.num_attention_heads, config.num_key_value_heads)
    if config.attention_type != "latent":
        for name in LATENT_FIELDS:
            if getattr(config, name) is not None:
                raise ValueError(
                    f"{name}={getattr(config, name)}: has no effect with attention_type={config.attention_type!r}; "
                    "use attention_type='latent' or leave it out"
                )
        return
    if config.num_key_value_heads != config.num_attention_heads:
        raise ValueError(
            f"num_key_value_heads={config.num_key_value_heads}: latent attention has a key and value for each of the "
            f"num_attention_heads={config.num_attention_heads}; leave it out, the cache is compressed by kv_lora_rank"
        )
    for name in ("qk_norm", "value_residual"):
        if getattr(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)!r}: not with attention_type='latent', whose latents have norms of "
                "their own; leave it out"
            )


def check_unused(config, name: str, *, without: str) -> None:
    """Raises ValueError where a field was set that only another one gives an effect."""
    value = getattr(config, name)
    if value != type(config).__dataclass_fields__[name].default:
        raise ValueError(f"{name}={value!r}: has no effect without {without}; set that too or leave it out")


def check_experts(config) -> None:
    """Options of a mixture of experts are not given without one, and fit each other."""
    if config.num_experts == 0:
        for name in EXPERT_FIELDS:
            check_unused(config, name, without="num_experts")
        return
    if not config.router_balance_bias:
        check_unused(config, "router_balance_rate", without="router_balance_bias")
    if config.num_experts_per_tok > config.num_experts:
        raise ValueError(f"num_experts_per_tok={config.num_experts_per_tok}: is above num_experts={config.num_experts}")
    if config.activation_dropout:
        raise ValueError(
            f"activation_dropout={config.activation_dropout}: experts have none; leave it out or set num_experts=0"
        )
    if config.mlp_bias:
        raise ValueError("mlp_bias=True: experts have no biases; leave it out or set num_experts=0")
    if config.mlp_layer_types is not None:
        check_one_a_layer(config, "mlp_layer_types", MLP_LAYER_TYPES)
        if "sparse" not in config.mlp_layer_types:
            raise ValueError(
                f"mlp_layer_types: all dense, of num_experts={config.num_experts} none would be used; make one layer "
                "'sparse' or leave num_experts out"
            )
