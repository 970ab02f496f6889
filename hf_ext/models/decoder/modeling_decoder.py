"""The decoder family: causal attention over one sequence, from parts in `hf_ext/layers`.

    tokens -> embedding -> blocks -> final norm -> vocabulary

B batch, T tokens at hand, S keys (cache included), d hidden_size, V vocab_size.
"""

from functools import partial

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.attention import MultiHeadAttention
from hf_ext.layers.blocks import BLOCKS, PostNormBlock, TransformerBlock
from hf_ext.layers.feed_forward import FEED_FORWARDS
from hf_ext.layers.norms import NORMS, LayerNorm
from hf_ext.layers.positional_encoding import AlibiBias, LearnedPositions, RelativeBias, SinusoidalPositions
from hf_ext.layers.rope import RotaryEmbedding
from hf_ext.models.decoder.configuration_decoder import HfxDecoderConfig
from hf_ext.models.language_modeling_head import LanguageModelingHead
from hf_ext.models.pretrained_model import (
    HfxPreTrainedModel,
    can_look_at,
    check_attention_mask,
    check_positions,
    check_token_ids,
)
from hf_ext.ops.backends import BACKENDS, eager_attention_forward
from hf_ext.ops.eager_attention import causal_mask
from hf_ext.ops.mask_rule import MaskRule
from hf_ext.ops.score_bias import ScoreBias


def decoder_norm(config: HfxDecoderConfig) -> nn.Module:
    """The config's norm over the residual stream."""
    if config.norm_type == "layernorm":
        return LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
    return NORMS[config.norm_type](config.hidden_size, eps=config.norm_eps)


def decoder_block(config: HfxDecoderConfig, layer_idx: int) -> TransformerBlock:
    """Block `layer_idx`: attention and feed-forward, wired as `config.block_type` says."""
    attention = MultiHeadAttention(
        config.hidden_size,
        config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        bias=config.attention_bias,
        output_bias=config.attention_output_bias,
        qk_norm=config.qk_norm,
        norm_eps=config.norm_eps,
        dropout=config.attention_dropout,
        scaling=None if config.query_pre_attn_scalar is None else config.query_pre_attn_scalar**-0.5,
        softcap=config.attn_logit_softcapping,
        sliding_window=config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None,
        layer_idx=layer_idx,
        rope_interleave=config.rope_interleave,
    )
    feed_forward = FEED_FORWARDS[config.mlp_type](
        config.hidden_size, config.intermediate_size, activation=config.hidden_act, bias=config.mlp_bias
    )
    return BLOCKS[config.block_type](
        attention, feed_forward, partial(decoder_norm, config), dropout=config.hidden_dropout
    )


class HfxDecoderPreTrainedModel(HfxPreTrainedModel):
    config_class = HfxDecoderConfig
    config: HfxDecoderConfig
    base_model_prefix = "model"
    _no_split_modules = [block.__name__ for block in BLOCKS.values()]
    _can_record_outputs = {"hidden_states": TransformerBlock, "attentions": MultiHeadAttention}


class HfxDecoderModel(HfxDecoderPreTrainedModel):
    """The decoder without a head: tokens to hidden states."""

    def __init__(self, config: HfxDecoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_positions = None
        if config.position_embedding_type == "learned":
            self.embed_positions = LearnedPositions(config.max_position_embeddings, config.hidden_size)
        elif config.position_embedding_type == "sinusoidal":
            self.embed_positions = SinusoidalPositions(config.hidden_size)
        self.embedding_norm = decoder_norm(config) if config.embedding_norm else nn.Identity()
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(decoder_block(config, i) for i in range(config.num_hidden_layers))
        # a post-norm stack ends in a norm already
        self.norm = nn.Identity() if BLOCKS[config.block_type] is PostNormBlock else decoder_norm(config)
        self.rotary_emb = nn.ModuleDict()  # by layer type; a type without has no positions
        if config.position_embedding_type == "rope":
            for kind, rope_parameters in config.rope_parameters_by_layer_type().items():
                if rope_parameters is not None:
                    self.rotary_emb[kind] = RotaryEmbedding(
                        config.head_dim,
                        config.max_position_embeddings,
                        interleaved=config.rope_interleave,
                        rope_parameters=rope_parameters,
                    )
        self.position_bias = None  # one for all layers
        if config.position_embedding_type == "alibi":
            self.position_bias = AlibiBias(config.num_attention_heads)
        elif config.position_embedding_type == "relative":
            self.position_bias = RelativeBias(
                config.num_attention_heads,
                config.relative_attention_num_buckets,
                config.relative_attention_max_distance,
            )
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
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm.

        Args:
            input_ids: (B, T) tokens, or inputs_embeds (B, T, d) instead.
            attention_mask: (B, S) 1 for tokens and 0 for padding, S with the cache's; or a ready 4-D mask.
            position_ids: (B, T); default: tokens counted from the row's first unmasked one. Positions that restart
                within a row, with attention_mask=None, keep packed documents apart.
            past_key_values: a `Cache` to go on from. use_cache: return one.

        Returns:
            last_hidden_state (B, T, d), past_key_values; hidden_states and attentions where asked for.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: exactly one of them must be given")
        check_token_ids(input_ids, self.config.vocab_size)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        num_tokens = inputs_embeds.shape[1]
        check_attention_mask(attention_mask, num_tokens)
        if position_ids is None:
            position_ids = default_position_ids(attention_mask, past_key_values, num_tokens, inputs_embeds.device)

        if past_key_values is not None:
            check_cached_frequencies(self.rotary_emb, past_key_values, position_ids)

        # both made before a new cache is: packed rows are looked for only where there is none yet
        biases = self._position_biases(position_ids, past_key_values)
        masks = self._masks(inputs_embeds, attention_mask, past_key_values, position_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        mask_and_bias = {
            kind: join_mask_and_bias(self.config._attn_implementation, mask, biases.get(kind), inputs_embeds)
            for kind, mask in masks.items()
        }

        hidden_states = inputs_embeds
        if self.config.embedding_multiplier is not None:
            # rounded to the states' dtype before it multiplies, as Gemma does
            hidden_states = hidden_states * torch.tensor(self.config.embedding_multiplier, dtype=hidden_states.dtype)
        if self.embed_positions is not None:
            if self.config.position_embedding_type == "learned":
                check_positions(position_ids, self.config.max_position_embeddings)
            hidden_states = hidden_states + self.embed_positions(position_ids).to(hidden_states.dtype)
        hidden_states = self.embedding_dropout(self.embedding_norm(hidden_states))
        angles = {kind: rope(position_ids, dtype=hidden_states.dtype) for kind, rope in self.rotary_emb.items()}
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        for kind, block in zip(self.config.layer_types, self.layers, strict=True):
            hidden_states = block(
                hidden_states,
                **mask_and_bias[kind],
                position_embeddings=angles.get(kind),
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                attention_interface=attention_interface,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _position_biases(self, position_ids, past_key_values) -> dict[str, ScoreBias]:
        """The score bias of each layer type; empty without one."""
        if self.position_bias is None:
            return {}
        biases = {}
        for kind in set(self.config.layer_types):
            key_positions = cached_key_positions(position_ids, past_key_values, self.config.layer_types.index(kind))
            biases[kind] = self.position_bias(position_ids, key_positions)
        return biases

    def _masks(self, inputs_embeds, attention_mask, past_key_values, position_ids) -> dict[str, torch.Tensor]:
        """The mask of each layer type, as the attention implementation takes it."""
        kinds = set(self.config.layer_types)
        if isinstance(attention_mask, dict):  # made by generate already
            return attention_mask
        if isinstance(attention_mask, MaskRule):
            return dict.fromkeys(kinds, attention_mask)
        makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        return {
            kind: makers[kind](
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
            for kind in kinds
        }


def default_position_ids(attention_mask, past_key_values, num_tokens: int, device) -> torch.Tensor:
    """(1 or B, T): tokens counted from the first unmasked one, so that padding on the left changes nothing."""
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -num_tokens:].to(device)
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    return (torch.arange(num_tokens, device=device) + past).unsqueeze(0)


def join_mask_and_bias(attention: str, mask, bias: ScoreBias | None, inputs_embeds: torch.Tensor) -> dict:
    """The arguments by which an attention implementation takes a mask and a score bias."""
    if bias is None:
        return {"attention_mask": mask}
    if attention in ("eager", *BACKENDS):  # ours take the rule
        return {"attention_mask": mask, "position_bias": bias}
    matrix = bias.dense(inputs_embeds.dtype).expand(inputs_embeds.shape[0], -1, -1, -1)
    if attention != "sdpa":
        return {"attention_mask": mask, "position_bias": matrix}
    # sdpa's one mask holds both; transformers would forbid by a large number, not -inf, and padding see everything
    if mask is None and matrix.shape[-2] == 1:  # the newest token sees all
        return {"attention_mask": matrix}
    if mask is None:
        mask = causal_mask(*matrix.shape[-2:], device=matrix.device)
    if mask.dtype != torch.bool:
        return {"attention_mask": matrix + mask}
    return {"attention_mask": matrix.masked_fill(~mask, float("-inf"))}


def cached_key_positions(position_ids: torch.Tensor, past_key_values, layer_idx: int) -> torch.Tensor:
    """(1 or B, S): positions of all keys that a layer's attention sees, those in the cache included.

    A cache holds one document a row, so its keys count down from the newest token's position; what comes out below 0 is
    padding.
    """
    if past_key_values is None:
        return position_ids
    num_tokens = position_ids.shape[1]
    num_keys, key_offset = past_key_values.get_mask_sizes(num_tokens, layer_idx)
    newest = past_key_values.get_seq_length() + num_tokens - 1  # slot of the newest key
    slots = torch.arange(num_keys, device=position_ids.device) + key_offset
    return position_ids[:, -1:] + slots - newest


def changing_frequencies(rotary_emb: nn.ModuleDict, cached_lengths, lengths) -> str | None:
    """The rule of `rotary_emb` under which documents grown from `cached_lengths` to `lengths` turn anew, or None."""
    for rope in rotary_emb.values():
        if rope.depends_on_length and bool(rope.frequencies_change(cached_lengths, lengths).any()):
            return rope.rope_parameters["rope_type"]
    return None


def check_cached_frequencies(rotary_emb: nn.ModuleDict, past_key_values, position_ids: torch.Tensor) -> None:
    """Raises ValueError where the rule has changed the frequencies since the cache was filled (values on CPU only)."""
    if not any(rope.depends_on_length for rope in rotary_emb.values()) or not can_look_at(position_ids):
        return
    if int(past_key_values.get_seq_length()) == 0:
        return
    cached, lengths = position_ids.amin(dim=-1), position_ids.amax(dim=-1) + 1
    rule = changing_frequencies(rotary_emb, cached, lengths)
    if rule is not None:
        raise ValueError(
            f"past_key_values: {int(cached.max())} tokens were cached at other frequencies than rope_type={rule!r} gives "
            f"{int(lengths.max())}; pass all tokens without a cache, or "
            "use generate, which does"
        )


class HfxDecoderForCausalLM(LanguageModelingHead, HfxDecoderPreTrainedModel, GenerationMixin):
    """The decoder with a language-modelling head: each token predicts the next."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: HfxDecoderConfig):
        super().__init__(config)
        self.model = HfxDecoderModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    def prepare_inputs_for_generation(
        self, input_ids, next_sequence_length=None, past_key_values=None, attention_mask=None, **kwargs
    ):
        """As transformers', but where the rotary rule changes its frequencies, all tokens go through again."""
        rotary_emb, cached = self.model.rotary_emb, 0
        if past_key_values is not None and any(rope.depends_on_length for rope in rotary_emb.values()):
            cached = int(past_key_values.get_seq_length())
        if cached:
            position_ids = default_position_ids(attention_mask, None, input_ids.shape[1], input_ids.device)
            lengths = position_ids[:, -1] + 1
            rule = changing_frequencies(rotary_emb, lengths - (input_ids.shape[1] - cached), lengths)
            if rule is not None:
                if input_ids.shape[1] <= cached:
                    raise ValueError(
                        f"inputs_embeds: rope_type={rule!r} changes its frequencies "
                        "here and needs the prompt again; generate from input_ids"
                    )
                past_key_values.reset()
                next_sequence_length, kwargs["position_ids"] = None, position_ids
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
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
        shift_labels: torch.LongTensor | None = None,
        label_smoothing: float = 0.0,
        z_loss_weight: float = 0.0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits and loss.

        Args, besides those of `HfxDecoderModel.forward`:
            labels: (B, T); token t + 1 is what token t is scored on; -100 is not scored.
            shift_labels: (B, T) labels already moved to the token that predicts them; instead of `labels`.
            logits_to_keep: compute logits for the last so many tokens, or for the given indices; 0 is all.
            skip_logits: compute the loss without ever holding the logits; default: where training with labels.
            num_items_in_batch: scored tokens in the whole (accumulated) batch; the loss is the sum over it.
            label_smoothing: weight moved from the label to all tokens alike. z_loss_weight: on log(Z)².

        Returns:
            loss (0-d), logits (B, T, V) or None, past_key_values, hidden_states, attentions.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        loss, logits = self.loss_and_logits(
            outputs.last_hidden_state,
            labels,
            shift_labels,
            logits_to_keep=logits_to_keep,
            skip_logits=skip_logits,
            num_items_in_batch=num_items_in_batch,
            label_smoothing=label_smoothing,
            z_loss_weight=z_loss_weight,
        )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["HfxDecoderForCausalLM", "HfxDecoderModel", "HfxDecoderPreTrainedModel"]
