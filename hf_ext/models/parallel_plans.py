"""How a model is split over devices, matrix by matrix, as transformers' tensor and expert parallelism read it.

The styles are transformers' (`transformers/distributed`): by columns, by rows, a vocabulary's rows, whole with gradients
added up, experts' matrices by columns and rows, whole experts here or there.
"""


def tensor_parallel_plan(config) -> dict[str, str]:
    """What of a stack tensor parallelism splits; what isn't named is held whole by every device.

    The heads of an attention go to different devices: query, key, value and gate by columns, the output by rows. That is
    right only where no number but these matrices knows how many heads there are, and no norm goes over several heads. What
    all heads share, a norm of each or the mix of values, is held whole, and its gradients are added up: each device has
    those of its own heads alone.
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
        if config.qk_norm == "head":
            plan |= {f"layers.*.self_attn.{name}": "replicated_with_grad_allreduce" for name in ("q_norm", "k_norm")}
        if config.value_residual:
            plan["layers.*.self_attn"] = "replicated_with_grad_allreduce"  # value_mix
    if not getattr(config, "num_experts", 0) or "dense" in config.mlp_layer_types:
        plan |= _feed_forward("layers.*.mlp", config.mlp_type)
    if getattr(config, "num_experts", 0) and "sparse" in config.mlp_layer_types:
        plan |= _experts(config)
    return plan


def _feed_forward(name: str, mlp_type: str) -> dict[str, str]:
    first = ("gate_proj", "up_proj") if mlp_type == "gated" else ("up_proj",)
    return {f"{name}.{part}": "colwise" for part in first} | {f"{name}.down_proj": "rowwise"}


def _experts(config) -> dict[str, str]:
    """A part of every expert on each device; the router whole."""
    first = {"gate_up_proj": "packed_colwise"} if config.mlp_type == "gated" else {"up_proj": "colwise"}
    plan = {f"layers.*.mlp.experts.{name}": how for name, how in first.items()}
    plan |= {"layers.*.mlp.experts.down_proj": "rowwise", "layers.*.mlp.experts": "moe_tp_experts"}
    return plan | (_feed_forward("layers.*.mlp.shared_experts", config.mlp_type) if config.num_shared_experts else {})


def expert_parallel_plan(config) -> dict[str, str] | None:
    """Whole experts, each on one of the devices, and tokens sent to them and back; None where there are no experts."""
    if not getattr(config, "num_experts", 0) or "sparse" not in config.mlp_layer_types:
        return None
    first = "gate_up_proj" if config.mlp_type == "gated" else "up_proj"
    plan = {f"layers.*.mlp.experts.{name}": "grouped_gemm" for name in (first, "down_proj")}
    return plan | {"layers.*.mlp.experts": "ep_dispatch_experts"}


def why_not_split(config, ranks: int) -> str | None:
    """The field, with its value, that tensor parallelism over `ranks` devices can't divide; None where it can."""
    plan = tensor_parallel_plan(config)
    parts = []
    if any("q_proj" in entry for entry in plan):
        parts += ["num_attention_heads", "num_key_value_heads"]
    if any(entry.endswith("mlp.down_proj") or "shared_experts" in entry for entry in plan):
        parts.append("intermediate_size")
    if any("experts" in entry for entry in plan):
        parts.append("moe_intermediate_size")
    return next((f"{name}={getattr(config, name)}" for name in parts if getattr(config, name) % ranks), None)
