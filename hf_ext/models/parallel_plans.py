"""How a model is split over devices, matrix by matrix, as transformers' tensor parallelism reads it."""


def tensor_parallel_plan(config) -> dict[str, str]:
    """What of a stack tensor parallelism splits; what isn't named is held whole by every device.

    The heads of an attention go to different devices: query, key, value and gate by columns, the output by rows. That is
    right only where no number but these matrices knows how many heads there are, and no norm goes over several heads.
    """
    plan = {}
    heads_are_alone = (
        config.attention_type == "multi_head"
        and config.position_embedding_type not in ("alibi", "relative")
        and config.qk_norm != "projection"
        and not config.attention_sinks
    )
    if heads_are_alone:
        names = ("q_proj", "k_proj", "v_proj", *(["gate_proj"] if config.attention_output_gate else []))
        plan |= {f"layers.*.self_attn.{name}": "colwise" for name in names}
        plan["layers.*.self_attn.o_proj"] = "rowwise"
    if not getattr(config, "num_experts", 0) or "dense" in config.mlp_layer_types:
        names = ("gate_proj", "up_proj") if config.mlp_type == "gated" else ("up_proj",)
        plan |= {f"layers.*.mlp.{name}": "colwise" for name in names}
        plan["layers.*.mlp.down_proj"] = "rowwise"
    return plan
