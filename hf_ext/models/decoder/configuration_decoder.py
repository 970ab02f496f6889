"""Configuration of the decoder family."""

from huggingface_hub.dataclasses import strict

from hf_ext.layers.mixture_of_experts import ROUTER_SCORES
from hf_ext.models.configuration_checks import check_experts, check_unused
from hf_ext.models.configuration_transformer import HfxTransformerConfig


@strict
class HfxDecoderConfig(HfxTransformerConfig):
    """A decoder of your own design. Defaults: a Llama-like model of 58M parameters, 42M with tied
    embeddings (vocabulary 32,000).

    Args, besides those of `HfxTransformerConfig`:
        num_experts: experts of a mixture in place of the feed-forward; 0 for none. num_experts_per_tok: chosen for a token.
        moe_intermediate_size: width inside an expert; default intermediate_size. num_shared_experts: for every token.
        mlp_layer_types: "sparse" (mixture) or "dense" for each layer; default all sparse where there are experts.
        router_scores: "softmax" (Mixtral) or "sigmoid" (DeepSeek-V3). norm_topk_prob: a token's weights sum to 1.
        routed_scaling_factor: on those weights.
        router_aux_loss_coef, router_z_loss_coef: of the load-balancing loss and the router z-loss in training.
        router_balance_bias: balance by a bias on the choice, moved by router_balance_rate a step (our Trainer does).
        output_router_logits: return them.
        num_nextn_predict_layers: further tokens predicted in training, by a block each (DeepSeek-V3's multi-token
            prediction). mtp_loss_weight: of their mean loss.
        use_cache: whether keys and values are kept by default.

    Raises:
        ValueError: one line, for what can't be built.
    """

    model_type = "hfx_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"num_local_experts": "num_experts"}
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    _choices = HfxTransformerConfig._choices | {"router_scores": ROUTER_SCORES}
    _sizes = (*HfxTransformerConfig._sizes, "num_experts_per_tok", "moe_intermediate_size")
    _not_negative = (
        *HfxTransformerConfig._not_negative,
        "num_experts",
        "num_shared_experts",
        "routed_scaling_factor",
        "router_aux_loss_coef",
        "router_z_loss_coef",
        "router_balance_rate",
        "num_nextn_predict_layers",
        "mtp_loss_weight",
    )

    num_experts: int = 0
    num_experts_per_tok: int = 2
    moe_intermediate_size: int | None = None
    num_shared_experts: int = 0
    mlp_layer_types: list[str] | None = None
    router_scores: str = "softmax"
    norm_topk_prob: bool = True
    routed_scaling_factor: float | int = 1.0
    router_aux_loss_coef: float | int = 0.01
    router_z_loss_coef: float | int = 0.0
    router_balance_bias: bool = False
    router_balance_rate: float | int = 1e-3
    output_router_logits: bool = False
    num_nextn_predict_layers: int = 0
    mtp_loss_weight: float | int = 0.3
    use_cache: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.num_experts:
            self.moe_intermediate_size = self.moe_intermediate_size or self.intermediate_size
            self.mlp_layer_types = self.mlp_layer_types or ["sparse"] * self.num_hidden_layers

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "num_hidden_layers" and len(set(self.mlp_layer_types or ())) == 1:
            self.mlp_layer_types = self.mlp_layer_types[:1] * value

    def validate_architecture(self):
        super().validate_architecture()
        check_experts(self)
        if not self.num_nextn_predict_layers:
            check_unused(self, "mtp_loss_weight", without="num_nextn_predict_layers")


__all__ = ["HfxDecoderConfig"]
