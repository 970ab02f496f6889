"""Exported graphs that write text: transformers' `generate` over them, the cache in torch's tensors.

What a graph gives for a cache is what it takes for it at the next token: the same memory, never copied on the way between.

B batch, T tokens at hand, P tokens of the cache, S tokens of the source, V vocabulary.
"""

from functools import cached_property

import torch
from torch import nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast, Seq2SeqLMOutput

from hf_ext.export.exported_model import HfxExportedModel, refuse_unknown
from hf_ext.export.parts import empty_cache, flat, position_ids_of
from hf_ext.models.attention_inputs import changing_frequencies
from hf_ext.models.configured_layers import make_rotary_embeddings


class ExportedGenerationMixin(GenerationMixin):
    """What both kinds share: which caches there are, and what the graphs' inputs are made of."""

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs) -> None:
        """An empty cache of the only kind that the graphs have.

        Raises:
            ValueError: another kind is asked for.
        """
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise ValueError(f"cache_implementation={kind!r}: an export has a cache that grows; leave it out")
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.new_cache()

    def _valid_auto_compile_criteria(self, model_kwargs: dict, generation_config) -> bool:
        """Raises ValueError for a `compile_config`: there is nothing to compile."""
        if generation_config.compile_config is not None:
            raise ValueError("compile_config: an export is compiled already; leave it out")
        return False

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, past_key_values=None, **kwargs):
        """As transformers', but where the rotary rule changes its frequencies, all tokens go through again."""
        mask = kwargs.get("decoder_attention_mask" if self.config.is_encoder_decoder else "attention_mask")
        if past_key_values is not None and self._frequencies_change(input_ids, mask, past_key_values.get_seq_length()):
            _forget(past_key_values)
            next_sequence_length = None
        return super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, past_key_values=past_key_values, **kwargs
        )

    @cached_property
    def _rotary_emb(self) -> nn.ModuleDict:
        """The rules by which frequencies may change."""
        return make_rotary_embeddings(self.config)

    def _frequencies_change(self, input_ids: torch.Tensor, mask: torch.Tensor | None, cached: int) -> bool:
        if not cached or not any(rope.depends_on_length for rope in self._rotary_emb.values()):
            return False
        lengths = position_ids_of(torch.ones_like(input_ids) if mask is None else mask)[:, -1] + 1
        return changing_frequencies(self._rotary_emb, lengths - (input_ids.shape[1] - cached), lengths) is not None

    def cached_tensors(self, cache: Cache | None, batch_size: int) -> dict[str, torch.Tensor]:
        """ "past_key_values.…" -> what lies in a cache, or no tokens."""
        names = flat(empty_cache(self.description.cache, batch_size))
        found = {}
        for name, empty in names.items():
            layer, kind, tensor = _place(name)
            layers = _layers(cache, kind)
            is_filled = layers is not None and len(layers) > layer and layers[layer].get_seq_length()
            found[f"past_key_values.{name}"] = getattr(layers[layer], tensor) if is_filled else empty
        return found


def keep(cache: Cache, outputs: dict[str, torch.Tensor]) -> Cache:
    """`cache`, which now holds a graph's "present.…"."""
    for name, value in outputs.items():
        if not name.startswith("present."):
            continue
        index, kind, tensor = _place(name.removeprefix("present."))
        own = _cache_of(cache, kind)
        while len(own.layers) <= index:
            own.layers.append(own.layer_class_to_replicate())
        layer = own.layers[index]
        if not layer.is_initialized:
            layer.lazy_initialization(value, value)
        setattr(layer, tensor, value)
        if kind == "encoder":
            cache.is_updated[index] = True
    return cache


def _place(name: str) -> tuple[int, str, str]:
    """ "3.decoder.key" -> layer, which of the caches ("" where there is one), attribute of a transformers layer."""
    layer, *kind, tensor = name.split(".")
    return int(layer), "".join(kind), f"{tensor}s"


def _cache_of(cache: Cache, kind: str) -> DynamicCache:
    return (
        getattr(cache, {"decoder": "self_attention_cache", "encoder": "cross_attention_cache"}[kind]) if kind else cache
    )


def _layers(cache: Cache | None, kind: str) -> list | None:
    return None if cache is None else _cache_of(cache, kind).layers


def _forget(cache: Cache) -> None:
    """Of an encoder-decoder its own tokens; the source stays."""
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    for layer in own.layers:
        layer.keys, layer.values = layer.keys[:, :, :0], layer.values[:, :, :0]


def _check_cache(cache: Cache | None) -> None:
    both = isinstance(cache, EncoderDecoderCache)
    for one in (cache.self_attention_cache, cache.cross_attention_cache) if both else (cache,):
        if one is not None and (type(one) is not DynamicCache or any(one.is_sliding)):
            raise ValueError(
                "past_key_values: an export's cache holds every token; give DynamicCache(), without a config"
            )


def _kept_positions(logits_to_keep: int | torch.Tensor, T: int) -> torch.Tensor:
    """(N,) int64, which of T tokens logits are wanted for."""
    if isinstance(logits_to_keep, int):
        return torch.arange(T - logits_to_keep if 0 < logits_to_keep < T else 0, T)
    if logits_to_keep.ndim != 1 or logits_to_keep.dtype == torch.bool:
        raise ValueError(f"logits_to_keep: shape {tuple(logits_to_keep.shape)}, must be a number or positions (N,)")
    return logits_to_keep.long()


class HfxExportedModelForCausalLM(HfxExportedModel, ExportedGenerationMixin):
    """An exported decoder."""

    task = "text-generation"
    output_class = CausalLMOutputWithPast

    def new_cache(self) -> DynamicCache:
        return DynamicCache()

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits and cache.

        Args:
            input_ids, position_ids: (B, T) int64. attention_mask: (B, P + T), 0 for padding; default none is.
            past_key_values: goes on from it, and extends it in place; None makes one, unless `use_cache` is False.
            logits_to_keep: of the last so many tokens, 0 for all, or positions (N,).

        Returns:
            logits (B, N, V), past_key_values.
        """
        refuse_unknown(kwargs)
        _check_cache(past_key_values)
        B, T = input_ids.shape
        P = 0 if past_key_values is None else past_key_values.get_seq_length()
        mask = torch.ones(B, P + T, dtype=torch.long) if attention_mask is None else attention_mask.long()
        if mask.shape != (B, P + T):
            raise ValueError(f"attention_mask: shape {tuple(mask.shape)} must be {(B, P + T)}, cached tokens included")
        outputs = self.graphs["model"].run(
            {
                "input_ids": input_ids,
                "attention_mask": mask,
                "position_ids": position_ids_of(mask)[:, P:] if position_ids is None else position_ids.expand(B, T),
                "logits_to_keep": _kept_positions(logits_to_keep, T),
                **self.cached_tensors(past_key_values, B),
            }
        )
        cache = past_key_values
        if cache is None and use_cache is not False:
            cache = self.new_cache()
        if cache is not None:
            keep(cache, outputs)
        found = CausalLMOutputWithPast(logits=outputs["logits"], past_key_values=cache)
        return found.to_tuple() if return_dict is False else found


class ExportedEncoder(nn.Module):
    """The encoder's graph as the module that `generate` calls once."""

    main_input_name = "input_ids"

    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """last_hidden_state (B, S, d) of input_ids (B, S)."""
        refuse_unknown(kwargs)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        outputs = BaseModelOutput(**self.graph.run({"input_ids": input_ids, "attention_mask": mask}))
        return outputs.to_tuple() if return_dict is False else outputs


class HfxExportedModelForSeq2SeqLM(HfxExportedModel, ExportedGenerationMixin):
    """An exported encoder-decoder."""

    task = "text2text-generation"
    output_class = Seq2SeqLMOutput

    def __init__(self, config, description, graphs, folder):
        super().__init__(config, description, graphs, folder)
        self.encoder = ExportedEncoder(graphs["encoder_model"])

    def new_cache(self) -> EncoderDecoderCache:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Of text, the only one that there is."""
        return self.encoder if modality is None else self

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.LongTensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """Logits and cache.

        Args:
            input_ids, attention_mask: (B, S) int64, the source; or encoder_outputs instead of input_ids.
            decoder_input_ids: (B, T) int64. decoder_attention_mask: of ones: the graph has none.
            past_key_values: goes on from it, and extends it in place; None makes one, unless `use_cache` is False.

        Returns:
            logits (B, T, V), past_key_values, encoder_last_hidden_state (B, S, d).
        """
        refuse_unknown(kwargs)
        if decoder_attention_mask is not None and not bool((decoder_attention_mask != 0).all()):
            raise ValueError(
                "decoder_attention_mask: the exported decoder reads no padding; leave it out, one text a row"
            )
        _check_cache(past_key_values)
        if decoder_input_ids is None:
            raise ValueError("decoder_input_ids: missing; give what the decoder has read so far")
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask)
        states = encoder_outputs[0]
        B, S = states.shape[:2]
        inputs = {
            "input_ids": decoder_input_ids,
            "encoder_attention_mask": torch.ones(B, S, dtype=torch.long)
            if attention_mask is None
            else attention_mask.long(),
        }
        cached = past_key_values is not None and past_key_values.get_seq_length()
        if cached:
            graph, further = "decoder_with_past_model", self.cached_tensors(past_key_values, B)
        else:
            graph, further = "decoder_model", {"encoder_hidden_states": states}
        outputs = self.graphs[graph].run(inputs | further)
        cache = past_key_values
        if cache is None and use_cache is not False:
            cache = self.new_cache()
        if cache is not None:
            keep(cache, outputs)
        found = Seq2SeqLMOutput(logits=outputs["logits"], past_key_values=cache, encoder_last_hidden_state=states)
        return found.to_tuple() if return_dict is False else found
