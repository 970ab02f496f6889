"""The decoder family: causal attention over one sequence, from parts in `hf_ext/layers`.

    tokens -> embedding -> blocks -> final norm -> vocabulary

B batch, T tokens at hand, S keys (cache included), d hidden_size, V vocab_size.
"""

from functools import partial

import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MoeCausalLMOutputWithPast,
    MoeModelOutputWithPast,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hf_ext.layers.attention import MultiHeadAttention
from hf_ext.layers.blocks import BLOCKS, TransformerBlock
from hf_ext.layers.dropout import Dropout
from hf_ext.layers.linear import Linear
from hf_ext.layers.mixture_of_experts import MixtureOfExperts, Router
from hf_ext.models.attention_inputs import (
    attention_inputs,
    cached_key_positions,
    changing_frequencies,
    check_cached_frequencies,
    default_position_ids,
    forget_tokens,
)
from hf_ext.models.attention_masks import causal_masks
from hf_ext.models.checked_generation import CheckedGenerationMixin
from hf_ext.models.configured_layers import (
    make_attention,
    make_embedding_norm,
    make_feed_forward,
    make_final_norm,
    make_norm,
    make_position_bias,
    make_position_embeddings,
    make_rotary_embeddings,
)
from hf_ext.models.decoder.configuration_decoder import HfxDecoderConfig
from hf_ext.models.embedded_tokens import embed, scale_embeddings
from hf_ext.models.expert_balancing import count_choices, expert_loss, routers_of
from hf_ext.models.language_modeling_head import LOSS_OPTIONS, LanguageModelingHead
from hf_ext.models.multi_token_prediction import MultiTokenPrediction
from hf_ext.models.packed_rows import check_packed_rows, flash_lengths
from hf_ext.models.pretrained_model import HfxPreTrainedModel, check_attention_mask, check_token_ids
from hf_ext.models.scored_tokens import ScoredTokens, check_unseen_targets, next_token_labels, scored_tokens


def decoder_feed_forward(config: HfxDecoderConfig, mlp_type: str) -> nn.Module:
    """The feed-forward of a layer: "dense", or "sparse", a mixture of experts."""
    if mlp_type == "dense":
        return make_feed_forward(config)
    return MixtureOfExperts(
        config.hidden_size,
        config.moe_intermediate_size,
        config.num_experts,
        config.num_experts_per_tok,
        num_shared_experts=config.num_shared_experts,
        activation=config.hidden_act,
        mlp_type=config.mlp_type,
        scores=config.router_scores,
        normalize=config.norm_topk_prob,
        scaling_factor=config.routed_scaling_factor,
        balance_bias=config.router_balance_bias,
    )


def decoder_block(config: HfxDecoderConfig, layer_idx: int) -> TransformerBlock:
    """Block `layer_idx`, wired as `config.block_type` says.

    Those beyond the stack, which predict further tokens, attend like the last layer and are dense.
    """
    in_stack = layer_idx < config.num_hidden_layers
    return BLOCKS[config.block_type](
        make_attention(
            config,
            layer_idx,
            config.layer_types[layer_idx if in_stack else -1],
            is_causal=True,
            value_residual=config.value_residual and in_stack,  # beyond it there is no first layer before them
        ),
        decoder_feed_forward(config, config.mlp_layer_types[layer_idx] if config.num_experts and in_stack else "dense"),
        partial(make_norm, config),
        dropout=config.hidden_dropout,
    )


class HfxDecoderPreTrainedModel(HfxPreTrainedModel):
    config_class = HfxDecoderConfig
    config: HfxDecoderConfig
    base_model_prefix = "model"
    _no_split_modules = [block.__name__ for block in BLOCKS.values()]
    _can_record_outputs = {
        "hidden_states": TransformerBlock,
        "attentions": MultiHeadAttention,
        "router_logits": OutputRecorder(Router, index=0),
    }


class HfxDecoderModel(HfxDecoderPreTrainedModel):
    """The decoder without a head: tokens to hidden states."""

    def __init__(self, config: HfxDecoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_positions = make_position_embeddings(config)
        self.embedding_norm = make_embedding_norm(config)
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(decoder_block(config, i) for i in range(config.num_hidden_layers))
        self.norm = make_final_norm(config)
        self.rotary_emb = make_rotary_embeddings(config)
        self.position_bias = make_position_bias(config, is_causal=True)  # one for all layers
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        prefix_mask: torch.BoolTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm.

        Args:
            input_ids: (B, T) tokens, or inputs_embeds (B, T, d) instead.
            attention_mask: (B, S) 1 for tokens and 0 for padding, S with the cache's; or a ready 4-D mask.
            position_ids: (B, T); default: tokens counted from the row's first unmasked one. Positions that restart
                within a row, with attention_mask=None, keep packed documents apart.
            past_key_values: a `Cache` to go on from. use_cache: return one.
            prefix_mask: (B, tokens so far) True for tokens that see each other in both directions: a prefix LM.

        Returns:
            last_hidden_state (B, T, d), past_key_values; hidden_states and attentions where asked for.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: exactly one of them must be given")
        check_token_ids(input_ids, self.config.vocab_size)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        num_tokens = inputs_embeds.shape[1]
        check_attention_mask(attention_mask, num_tokens, past_key_values)
        check_packed_rows(position_ids, attention_mask, past_key_values, kwargs)
        if past_key_values is None:
            attention = self.config._attn_implementation
            kwargs |= flash_lengths(attention, position_ids, inputs_embeds, attention_mask, kwargs)
        if position_ids is None:
            position_ids = default_position_ids(attention_mask, past_key_values, num_tokens, inputs_embeds.device)
        elif position_ids.shape[-1] != num_tokens:
            raise ValueError(
                f"position_ids: shape {tuple(position_ids.shape)} for {num_tokens} tokens; give one a token"
            )

        if past_key_values is not None:
            check_cached_frequencies(self.rotary_emb, past_key_values, position_ids)

        # made before a new cache is: packed rows are looked for only where there is none yet
        inputs_by_kind = self.attention_inputs(
            inputs_embeds, attention_mask, past_key_values, position_ids, prefix_mask
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        hidden_states = embed(self, inputs_embeds, position_ids)
        if self.config.value_residual:
            kwargs["first_values"] = []
        for kind, block in zip(self.layer_types, self.layers[: self.config.num_hidden_layers], strict=True):
            hidden_states = block(
                hidden_states,
                **inputs_by_kind[kind],
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        output_class = MoeModelOutputWithPast if self.config.num_experts else BaseModelOutputWithPast
        return output_class(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    @property
    def layer_types(self) -> list[str]:
        """Of the layers that run: generate has the first few draft for all by config.num_hidden_layers alone."""
        return self.config.layer_types[: self.config.num_hidden_layers]

    def attention_inputs(
        self, inputs_embeds, attention_mask, past_key_values, position_ids, prefix_mask=None
    ) -> dict[str, dict]:
        """Layer type -> what its blocks are called with besides the hidden states: mask, bias, rotation, backend."""
        kinds = list(dict.fromkeys(self.layer_types))
        masks = causal_masks(
            self.config, kinds, inputs_embeds, attention_mask, past_key_values, position_ids, prefix_mask
        )
        biases = {}
        for kind in kinds if self.position_bias is not None else []:
            key_positions = cached_key_positions(position_ids, past_key_values, self.layer_types.index(kind))
            biases[kind] = self.position_bias(position_ids, key_positions)
        return attention_inputs(self.config, masks, biases, self.rotary_emb, inputs_embeds, position_ids)


class HfxDecoderForCausalLM(LanguageModelingHead, HfxDecoderPreTrainedModel, CheckedGenerationMixin):
    """The decoder with a language-modelling head: each token predicts the next."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: HfxDecoderConfig):
        super().__init__(config)
        self.model = HfxDecoderModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.mtp = None
        if config.num_nextn_predict_layers:
            layers = range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)
            self.mtp = MultiTokenPrediction(
                config.hidden_size, [decoder_block(config, i) for i in layers], partial(make_norm, config)
            )
        self.post_init()

    def prepare_inputs_for_generation(
        self,
        input_ids,
        next_sequence_length=None,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,  # named, because generate reads from the signature that it may be given
        **kwargs,
    ):
        """As transformers', but where the rotary rule changes its frequencies, all tokens go through again."""
        rotary_emb, cached = self.model.rotary_emb, 0
        if past_key_values is not None and any(rope.depends_on_length for rope in rotary_emb.values()):
            cached = int(past_key_values.get_seq_length())
        if cached:
            # where input_ids holds the newest tokens only, the mask still has a column for each
            num_tokens = input_ids.shape[1] if attention_mask is None else attention_mask.shape[-1]
            position_ids = default_position_ids(attention_mask, None, num_tokens, input_ids.device)
            lengths = position_ids[:, -1] + 1
            rule = changing_frequencies(rotary_emb, lengths - (num_tokens - cached), lengths)
            if rule is not None:
                if input_ids.shape[1] < num_tokens:
                    raise ValueError(
                        f"inputs_embeds: rope_type={rule!r} changes its frequencies "
                        "here and needs the prompt again; generate from input_ids"
                    )
                forget_tokens(past_key_values)
                next_sequence_length, kwargs["position_ids"] = None, position_ids
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        prefix_mask: torch.BoolTensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits and loss.

        Args, besides those of `HfxDecoderModel.forward`:
            labels: (B, T); token t + 1 is what token t is scored on; -100 is not scored.
            logits_to_keep: compute logits for the last so many tokens, or for the given indices; 0 is all.
            skip_logits: compute the loss without ever holding the logits; default: where training with labels.
            num_items_in_batch: scored tokens in the whole (accumulated) batch; the loss is the sum over it.
            kwargs: `shift_labels` (B, T), labels already moved to the token that predicts them, instead of `labels`;
                `label_smoothing`, weight moved from the label to all tokens alike; `z_loss_weight`, on log(Z)².

        Returns:
            loss (0-d), logits (B, T, V) or None, past_key_values, hidden_states, attentions.
        """
        # not named above: the Trainer takes every argument with "label" in its name for a column that each batch has
        loss_options = {name: kwargs.pop(name) for name in LOSS_OPTIONS if name in kwargs}
        targets = loss_options.get("shift_labels") if labels is None else next_token_labels(labels)
        if targets is not None and past_key_values is None:
            check_unseen_targets(targets, prefix_mask)
        in_training = self.training and targets is not None
        returns_router_logits = kwargs.pop("output_router_logits", self.config.output_router_logits)
        if self.config.num_experts:
            kwargs["output_router_logits"] = returns_router_logits or in_training
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            prefix_mask=prefix_mask,
            **kwargs,
        )
        loss, logits = self.loss_and_logits(
            outputs.last_hidden_state,
            labels,
            logits_to_keep=logits_to_keep,
            skip_logits=skip_logits,
            num_items_in_batch=num_items_in_batch,
            **loss_options,
        )
        if in_training and (self.config.num_experts or self.mtp is not None):
            targets = targets.to(outputs.last_hidden_state.device)
            tokens = scored_tokens(targets, position_ids, num_items_in_batch, attention_mask)
            if self.config.num_experts:
                loss = loss + self.expert_loss(outputs.router_logits, tokens)
            if self.mtp is not None:
                inputs_embeds = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
                loss = loss + self.multi_token_loss(
                    outputs.last_hidden_state, inputs_embeds, tokens, attention_mask, position_ids, prefix_mask
                )
        returned = {
            "loss": loss,
            "logits": logits,
            "past_key_values": outputs.past_key_values,
            "hidden_states": outputs.hidden_states,
            "attentions": outputs.attentions,
        }
        if not self.config.num_experts:
            return CausalLMOutputWithPast(**returned)
        return MoeCausalLMOutputWithPast(
            **returned, router_logits=outputs.router_logits if returns_router_logits else None
        )

    def expert_loss(self, router_logits: tuple[torch.Tensor, ...], tokens: ScoredTokens) -> torch.Tensor:
        """The experts' auxiliary losses, 0-d; counts the batch for those balanced by a bias."""
        routers = routers_of(self.model)
        count_choices(routers, router_logits, tokens)
        return expert_loss(
            routers,
            router_logits,
            tokens,
            balance=self.config.router_aux_loss_coef,
            z=self.config.router_z_loss_coef,
        )

    def multi_token_loss(
        self, hidden_states, inputs_embeds, tokens, attention_mask, position_ids, prefix_mask=None
    ) -> torch.Tensor:
        """Weighted mean over the depths of the loss on the tokens after the next, 0-d."""
        if position_ids is None:
            position_ids = default_position_ids(attention_mask, None, inputs_embeds.shape[1], inputs_embeds.device)
        inputs_by_kind = self.model.attention_inputs(inputs_embeds, attention_mask, None, position_ids, prefix_mask)
        by_depth = self.mtp(
            scale_embeddings(self.config, inputs_embeds),
            hidden_states,
            **inputs_by_kind[self.config.layer_types[-1]],
            **flash_lengths(self.config._attn_implementation, position_ids, inputs_embeds, attention_mask, {}),
        )
        losses = [
            self.loss_and_logits(
                states,
                None,
                shift_labels=tokens.targets_after(depth),
                skip_logits=True,
                num_items_in_batch=tokens.num_items,
            )[0]
            for depth, states in enumerate(by_depth, start=1)
        ]
        return self.config.mtp_loss_weight * torch.stack(losses).mean()


__all__ = ["HfxDecoderForCausalLM", "HfxDecoderModel", "HfxDecoderPreTrainedModel"]
