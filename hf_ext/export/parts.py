"""A model as the graphs that an engine runs: what each takes and gives, by the names that Optimum gave them.

    decoder             model                     tokens and their cache in, logits and the longer cache out
    encoder-decoder     encoder_model             source in, its states out
                        decoder_model             first tokens and the states in, logits and both caches out
                        decoder_with_past_model   further tokens and both caches in, logits and the longer cache out
    any other head      model                     tokens in, what the head says out

Batch, tokens and cached tokens are free in each of them, a cache of no tokens included. A cache holds every token, also of
layers that see a window of it: the mask cuts it.

B batch, T tokens at hand, P tokens of the cache, S tokens of the source, K key/value heads, D head dim.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hf_ext.models import HfxDecoderForCausalLM, HfxEncoderDecoderForConditionalGeneration


# of the inputs that a graph is traced with; all different, for equal ones would be taken for the same
BATCH, TOKENS, CACHED, SOURCE, CHOICES = 2, 5, 7, 6, 3
MOST_TOKENS = CACHED + TOKENS  # of a text
MOST_ROWS = 3  # that graphs are compared with


@dataclass(frozen=True)
class Tokens:
    """What a model reads, from which the inputs of each of its graphs are made.

    Attributes:
        input_ids, attention_mask: (B, T), int64; of an encoder-decoder the source, (B, S); (B, choices, T) of a head that
            chooses. decoder_input_ids: (B, T), of an encoder-decoder.
        cached: how many of the decoder's tokens were read before and lie in the cache.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    decoder_input_ids: torch.Tensor | None = None
    cached: int = 0


@dataclass(frozen=True)
class Part:
    """One graph.

    Attributes:
        name: of its file, without suffix.
        module: takes its inputs by keyword and gives a dict. Caches are dicts by layer in both, and "past_key_values.0.key"
            is the name of what lies in one: `flat`, `nested`.
        inputs_of: from tokens to the inputs. free: like the inputs, the dims of each that may have any size, by what they
            count: {0: "batch", 1: "tokens"}. Equal names are equal sizes.
        goes_on: whether it has a cache, and reads what comes after `Tokens.cached`.
    """

    name: str
    module: nn.Module
    inputs_of: Callable[[Tokens], dict]
    free: dict
    goes_on: bool = False


def sample_tokens(model: PreTrainedModel, task: str, part: Part) -> Tokens:
    """What a graph is traced with."""
    sizes = (BATCH, CHOICES) if task == "multiple-choice" else (BATCH,)
    if part.name in ENCODER_DECODER:
        own = ids(BATCH, TOKENS + CACHED if part.goes_on else TOKENS)
        return Tokens(ids(BATCH, SOURCE), ones(BATCH, SOURCE), own, CACHED if part.goes_on else 0)
    if part.goes_on:
        return Tokens(ids(BATCH, CACHED + TOKENS), ones(BATCH, CACHED + TOKENS), cached=CACHED)
    own = ids(BATCH, TOKENS - 1) if model.config.is_encoder_decoder else None
    return Tokens(ids(*sizes, TOKENS), ones(*sizes, TOKENS), own)


def flat(tensors: Mapping, prefix: str = "") -> dict[str, torch.Tensor]:
    """Nested dicts of tensors -> "outer.inner" -> tensor."""
    found = {}
    for key, value in tensors.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        found |= flat(value, name) if isinstance(value, Mapping) else {name: value}
    return found


def nested(named: Mapping[str, torch.Tensor]) -> dict:
    """The other way."""
    made: dict = {}
    for name, value in named.items():
        *outer, last = name.split(".")
        inside = made
        for key in outer:
            inside = inside.setdefault(key, {})
        inside[last] = value
    return made


# but what is only recorded, and caches
HEADS_GIVE = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")
TEXT_INPUTS = ("input_ids", "attention_mask")
# dims that may have any size
TEXT = {0: "batch", 1: "tokens"}
SOURCE_TEXT = {0: "batch", 1: "source"}
ALL_TOKENS = {0: "batch", 1: "seen"}  # cached ones too
ENCODER_DECODER = ("encoder_model", "decoder_model", "decoder_with_past_model")


def parts_of(model: PreTrainedModel, task: str) -> list[Part]:
    """The graphs of `model`, in the order in which they run."""
    if isinstance(model, HfxDecoderForCausalLM):
        return [_decoder(model)]
    if isinstance(model, HfxEncoderDecoderForConditionalGeneration):
        return [_encoder(model), _first_step(model), _further_step(model)]
    return [_head(model, task)]


def ids(*shape: int) -> torch.Tensor:
    """Token ids that are no special ones in most vocabularies, and the same each time."""
    return torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape) % 8 + 2


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long)


def position_ids_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) int64: tokens counted from the first unmasked one."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


class HeadPart(nn.Module):
    """Any head, or none."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs) -> dict[str, torch.Tensor]:
        cache = {} if self.model.config.model_type == "hfx_encoder" else {"use_cache": False}
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **inputs, **cache)
        return {name: outputs[name] for name in HEADS_GIVE if name in outputs}


def _head(model: PreTrainedModel, task: str) -> Part:
    has_decoder = task == "feature-extraction" and model.config.is_encoder_decoder  # other heads' reads the same text

    def inputs_of(tokens: Tokens) -> dict:
        inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
        if getattr(model.config, "type_vocab_size", 0):
            inputs["token_type_ids"] = torch.zeros_like(tokens.input_ids)
        if has_decoder:
            inputs["decoder_input_ids"] = tokens.decoder_input_ids
        return inputs

    free = {"input_ids": _text(task), "attention_mask": _text(task)}
    if getattr(model.config, "type_vocab_size", 0):
        free["token_type_ids"] = _text(task)
    if has_decoder:
        free["decoder_input_ids"] = {0: "batch", 1: "target"}
    return Part("model", HeadPart(model), inputs_of, free)


def _text(task: str) -> dict[int, str]:
    return {0: "batch", 1: "choices", 2: "tokens"} if task == "multiple-choice" else TEXT


class DecoderPart(nn.Module):
    """A causal language model that goes on from a cache."""

    def __init__(self, model: HfxDecoderForCausalLM):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, past_key_values, logits_to_keep) -> dict:
        """Logits and cache.

        Args:
            input_ids, position_ids: (B, T) int64. attention_mask: (B, P + T) int64, 0 for padding.
            past_key_values: {layer: {"key", "value"}}, (B, K, P, D) each.
            logits_to_keep: (N,) int64, which of the T tokens logits are wanted for.

        Returns:
            logits (B, N, V), present: as past_key_values, of P + T tokens.
        """
        cache = cache_of(past_key_values)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        return {"logits": outputs.logits, "present": tensors_of(cache)}


def _decoder(model: HfxDecoderForCausalLM) -> Part:
    module = DecoderPart(model)

    def inputs_of(tokens: Tokens) -> dict:
        P, T = tokens.cached, tokens.input_ids.shape[1] - tokens.cached
        positions = position_ids_of(tokens.attention_mask)
        cache = empty_cache(cache_shapes(model), tokens.input_ids.shape[0])
        read = {
            "input_ids": tokens.input_ids[:, :P],
            "attention_mask": tokens.attention_mask[:, :P],
            "position_ids": positions[:, :P],
            "past_key_values": cache,
            "logits_to_keep": torch.arange(0),
        }
        with torch.no_grad():
            cache = module(**read)["present"] if P else cache
        return {
            "input_ids": tokens.input_ids[:, P:],
            "attention_mask": tokens.attention_mask,
            "position_ids": positions[:, P:],
            "past_key_values": cache,
            "logits_to_keep": torch.arange(max(0, T - (TOKENS - 1)), T),
        }

    free = {"input_ids": TEXT, "attention_mask": ALL_TOKENS, "position_ids": TEXT}
    free |= {"past_key_values": _by_layer(model, _cached("cached")), "logits_to_keep": {0: "kept"}}
    return Part("model", module, inputs_of, free, goes_on=True)


def cache_shapes(model: PreTrainedModel) -> dict[str, dict[str, tuple[int, int]]]:
    """{layer: {"key": (K, D), "value": (K, D)}}; an encoder-decoder's layers have {"decoder": …, "encoder": …} each."""
    probe, given = ids(1, 1), {}
    if model.config.is_encoder_decoder:
        given = {"decoder_input_ids": probe, "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}
    else:
        given = {"past_key_values": DynamicCache()}
    with torch.no_grad():
        cache = model(input_ids=probe, use_cache=True, **given).past_key_values

    def sizes(cache: DynamicCache) -> dict:
        kinds = tensors_of(cache).items()
        return {layer: {kind: (t.shape[1], t.shape[3]) for kind, t in tensors.items()} for layer, tensors in kinds}

    if not model.config.is_encoder_decoder:
        return sizes(cache)
    own, read = sizes(cache.self_attention_cache), sizes(cache.cross_attention_cache)
    return {layer: {"decoder": own[layer], "encoder": read[layer]} for layer in own}


def empty_cache(shapes: Mapping, batch_size: int) -> dict:
    """Of no tokens, nested as `cache_shapes` has it; fp32."""
    if isinstance(shapes, Mapping):
        return {key: empty_cache(inner, batch_size) for key, inner in shapes.items()}
    K, D = shapes
    return torch.zeros(batch_size, K, 0, D)


def _by_layer(model: PreTrainedModel, content: dict) -> dict:
    return {str(layer): content for layer in range(model.config.num_hidden_layers)}


def _cached(tokens: str) -> dict:
    return {kind: {0: "batch", 2: tokens} for kind in ("key", "value")}


def cache_of(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> DynamicCache:
    """A cache whose layers all hold every token, also those that see a window: how many there are is a shape then."""
    return DynamicCache([(layer["key"], layer["value"]) for layer in tensors.values()])


def tensors_of(cache: DynamicCache) -> dict[str, dict[str, torch.Tensor]]:
    """{layer: {"key", "value"}}, (B, K, P, D) each."""
    return {str(i): {"key": layer.keys, "value": layer.values} for i, layer in enumerate(cache.layers)}


class EncoderPart(nn.Module):
    """The encoder alone."""

    def __init__(self, model: HfxEncoderDecoderForConditionalGeneration):
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """last_hidden_state (B, S, d) of input_ids and attention_mask (B, S) int64."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return {"last_hidden_state": states}


class FirstStepPart(nn.Module):
    """Decoder and head on the first tokens: they make both caches."""

    def __init__(self, model: HfxEncoderDecoderForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, input_ids, encoder_hidden_states, encoder_attention_mask) -> dict:
        """logits (B, T, V) and present {layer: {"decoder": {"key", "value"}, "encoder": …}}.

        Args:
            input_ids: (B, T) int64, the decoder's. encoder_hidden_states: (B, S, d). encoder_attention_mask: (B, S) int64.
        """
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = _decode(self.model, input_ids, encoder_hidden_states, encoder_attention_mask, cache)
        own, read = tensors_of(cache.self_attention_cache), tensors_of(cache.cross_attention_cache)
        return {"logits": logits, "present": {i: {"decoder": own[i], "encoder": read[i]} for i in own}}


class FurtherStepPart(nn.Module):
    """Decoder and head on further tokens."""

    def __init__(self, model: HfxEncoderDecoderForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, input_ids, encoder_attention_mask, past_key_values) -> dict:
        """logits (B, T, V) and present {layer: {"decoder": …}}, of P + T tokens; the encoder's stay what they are.

        Args:
            input_ids: (B, T) int64. encoder_attention_mask: (B, S) int64.
            past_key_values: {layer: {"decoder": {"key", "value"}, "encoder": …}}, (B, K, P or S, D) each.
        """
        cache = EncoderDecoderCache(
            cache_of({i: layer["decoder"] for i, layer in past_key_values.items()}),
            cache_of({i: layer["encoder"] for i, layer in past_key_values.items()}),
        )
        cache.is_updated = dict.fromkeys(range(len(past_key_values)), True)
        B, S = encoder_attention_mask.shape
        # only its shape is read: what the encoder gave lies in the cache
        states = torch.zeros(1, 1, 1).expand(B, S, self.model.config.hidden_size)
        logits = _decode(self.model, input_ids, states, encoder_attention_mask, cache)
        own = tensors_of(cache.self_attention_cache)
        return {"logits": logits, "present": {i: {"decoder": layer} for i, layer in own.items()}}


def _decode(model, input_ids, encoder_hidden_states, encoder_attention_mask, cache) -> torch.Tensor:
    return model(
        attention_mask=encoder_attention_mask,
        decoder_input_ids=input_ids,
        encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states),
        past_key_values=cache,
        use_cache=True,
    ).logits


def _encoder(model: HfxEncoderDecoderForConditionalGeneration) -> Part:
    def inputs_of(tokens: Tokens) -> dict:
        return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}

    return Part("encoder_model", EncoderPart(model), inputs_of, dict.fromkeys(TEXT_INPUTS, SOURCE_TEXT))


def _first_step(model: HfxEncoderDecoderForConditionalGeneration) -> Part:
    encoder = EncoderPart(model)

    def inputs_of(tokens: Tokens) -> dict:
        with torch.no_grad():
            states = encoder(tokens.input_ids, tokens.attention_mask)["last_hidden_state"]
        return {
            "input_ids": tokens.decoder_input_ids,
            "encoder_hidden_states": states,
            "encoder_attention_mask": tokens.attention_mask,
        }

    free = {"input_ids": TEXT, "encoder_hidden_states": SOURCE_TEXT, "encoder_attention_mask": SOURCE_TEXT}
    return Part("decoder_model", FirstStepPart(model), inputs_of, free)


def _further_step(model: HfxEncoderDecoderForConditionalGeneration) -> Part:
    first = _first_step(model)

    def inputs_of(tokens: Tokens) -> dict:
        before = replace(tokens, decoder_input_ids=tokens.decoder_input_ids[:, : tokens.cached])
        with torch.no_grad():
            cache = first.module(**first.inputs_of(before))["present"]
        return {
            "input_ids": tokens.decoder_input_ids[:, tokens.cached :],
            "encoder_attention_mask": tokens.attention_mask,
            "past_key_values": cache,
        }

    caches = {"decoder": _cached("cached"), "encoder": _cached("source")}
    free = {"input_ids": TEXT, "encoder_attention_mask": SOURCE_TEXT, "past_key_values": _by_layer(model, caches)}
    return Part("decoder_with_past_model", FurtherStepPart(model), inputs_of, free, goes_on=True)
