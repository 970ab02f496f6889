"""Attention weights of a sentence, returned with its tokens and drawn as heat maps.

H heads, T tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PreTrainedModel


MAX_PANELS = 144  # 12 layers of 12 heads
MAX_LABELS = 48  # on an axis, from which on only every second, third, … token is named


@dataclass(frozen=True)
class AttentionWeights:
    """tokens: T labels. layers: for each layer (H, T, T), fp32 on CPU, [h, i, j] what token i takes from token j: rows of
    sum 1, of less where the model has attention sinks."""

    tokens: tuple[str, ...]
    layers: tuple[torch.Tensor, ...]


def attention_weights(
    model: PreTrainedModel, sentence: str | list[int] | torch.Tensor, tokenizer=None
) -> AttentionWeights:
    """The weights of every layer and head. The model is left as it was: implementation, mode and gradients.

    Only `eager` attention has weights, so that this one call is computed with it, without dropout, whatever the model was
    loaded with.

    Args:
        model: any transformers model of one sequence; of an encoder-decoder, its `get_encoder()`.
        sentence: a text, or its token ids: (T,) or (1, T).
        tokenizer: the model's; needed for a text, names the tokens of ids.

    Raises:
        ValueError: one line, for a sentence without tokens and for a model that returns no weights.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled one would be compiled again for this one call
    ids = _token_ids(sentence, tokenizer)
    if getattr(model.config, "is_encoder_decoder", False) and model.get_encoder() is not model:
        raise ValueError(
            f"model: {type(model).__name__} has an encoder and a decoder; give one of them, model.get_encoder()"
        )
    with _eager_and_in_eval(model), torch.no_grad():
        outputs = model(input_ids=ids[None].to(model.device), output_attentions=True, return_dict=True)
    layers = getattr(outputs, "attentions", None)
    if not layers or any(not isinstance(layer, torch.Tensor) for layer in layers):
        raise ValueError(
            f"model: {type(model).__name__} returns no attention weights; its layers must return them under "
            "attn_implementation='eager'"
        )
    return AttentionWeights(_labels(ids, tokenizer), tuple(layer[0].float().cpu() for layer in layers))


def draw_attention(
    model: PreTrainedModel,
    sentence: str | list[int] | torch.Tensor,
    tokenizer=None,
    *,
    layer: int | list[int] | None = None,
    head: int | list[int] | None = None,
    path: str | Path = "attention.png",
) -> AttentionWeights:
    """Draw `attention_weights` as a PNG: a row of panels a layer, a panel a head, one colour scale from 0 to 1.

    Args:
        model, sentence, tokenizer: as in `attention_weights`.
        layer, head: which, counted from 0; None is all.
        path: of the PNG; its folder must be there.

    Returns:
        the weights, of all layers and heads.

    Raises:
        ValueError: one line, for what isn't there to be drawn, before anything is written.
        ImportError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("draw_attention: matplotlib is not installed; pip install 'hf-ext[train]' or matplotlib")
    path = Path(path)
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise ValueError(f"path={str(path)!r}: must be a .png in a folder that exists")
    weights = attention_weights(model, sentence, tokenizer)
    layers = _chosen("layer", layer, len(weights.layers))
    heads = _chosen("head", head, min(len(weights.layers[i]) for i in layers))
    if len(layers) * len(heads) > MAX_PANELS:
        raise ValueError(
            f"layer, head: {len(layers)} layers of {len(heads)} heads are more than {MAX_PANELS} panels; choose some of them"
        )
    _draw(weights, layers, heads, path)
    return weights


def _token_ids(sentence, tokenizer) -> torch.Tensor:
    """(T,) int64."""
    if isinstance(sentence, str):
        if tokenizer is None:
            raise ValueError("tokenizer: missing for a text; give the model's, or token ids instead of the text")
        if not sentence.strip():
            raise ValueError(f"sentence={sentence!r}: holds no tokens; give at least a word")
        sentence = tokenizer(sentence)["input_ids"]
    ids = torch.as_tensor(sentence)
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1 or (ids.numel() and ids.is_floating_point()):
        raise ValueError(f"sentence: shape {tuple(ids.shape)} of {ids.dtype}, must be one row of token ids")
    if not ids.numel():
        raise ValueError("sentence: holds no tokens; give at least one")
    return ids.long()


def _labels(ids: torch.Tensor, tokenizer) -> tuple[str, ...]:
    if tokenizer is None:
        return tuple(str(token) for token in ids.tolist())
    labels = []
    for token in ids.tolist():
        label = tokenizer.decode([token])
        if not label or "\ufffd" in label:  # part of a character: the vocabulary's own spelling
            label = str(tokenizer.convert_ids_to_tokens(token))
        labels.append(label.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·"))
    return tuple(labels)


@contextmanager
def _eager_and_in_eval(model: PreTrainedModel) -> Iterator[None]:
    """The model with eager attention and without dropout; as it was before at the end, also after an exception."""
    configs = _configs(model)
    implementations = [config._attn_implementation_internal for config in configs]
    modes = [(module, module.training) for module in model.modules()]
    try:
        # a model with an attention of its own has nothing to set, and returns its weights anyway
        if model._can_set_attn_implementation():
            model.set_attn_implementation("eager")
        model.eval()
        yield
    finally:
        for config, implementation in zip(configs, implementations, strict=True):
            config._attn_implementation_internal = implementation  # set_attn_implementation might load a kernel again
        for module, training in modes:
            module.training = training


def _configs(model: PreTrainedModel) -> list:
    """Every config by which a part of the model may choose its attention, each once."""
    found = [module.config for module in model.modules() if hasattr(module, "config")]
    for config in found:  # grows as it is walked
        found += [
            sub for name in getattr(config, "sub_configs", ()) if (sub := getattr(config, name, None)) is not None
        ]
    return [config for config in {id(c): c for c in found}.values() if hasattr(config, "_attn_implementation_internal")]


def _chosen(name: str, wanted: int | list[int] | None, count: int) -> list[int]:
    if wanted is None:
        return list(range(count))
    chosen = [wanted] if isinstance(wanted, int) else list(wanted)
    if not chosen:
        raise ValueError(f"{name}={wanted}: names none; leave it out for all {count}")
    for number in chosen:
        if not isinstance(number, int) or not 0 <= number < count:
            raise ValueError(f"{name}={number}: there are {count}, numbered 0 to {count - 1}")
    return chosen


def _draw(weights: AttentionWeights, layers: list[int], heads: list[int], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    T = len(weights.tokens)
    every = -(-T // MAX_LABELS)
    places = range(0, T, every)
    side = min(max(0.24 * T, 1.8), 8.0)  # of a panel, in inches
    font = min(9.0, max(4.0, 72 * side / len(places) * 0.62))
    margin = 0.35 + 0.0085 * font * max(len(token) for token in weights.tokens)
    # a figure of its own, not pyplot's: nothing global is touched
    figure = Figure(
        figsize=(side * len(heads) * 1.08 + margin + 1.0, side * len(layers) * 1.12 + margin + 0.6),
        dpi=120,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(layers), len(heads), squeeze=False, sharex=True, sharey=True)
    for row, layer in zip(panels, layers, strict=True):
        for axes, head in zip(row, heads, strict=True):
            image = axes.imshow(
                weights.layers[layer][head].numpy(), vmin=0, vmax=1, cmap="Blues", interpolation="nearest"
            )
            axes.set_title(f"layer {layer}, head {head}", fontsize=9)
            axes.set_xticks(places, [weights.tokens[i] for i in places], rotation=90, fontsize=font)
            axes.set_yticks(places, [weights.tokens[i] for i in places], fontsize=font)
            for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
                label.set_parse_math(False)  # a token may hold dollars
            axes.tick_params(length=0)
            axes.spines[:].set_color("#cccccc")
    figure.supxlabel("token that is seen", fontsize=9)
    figure.supylabel("token that looks", fontsize=9)
    figure.colorbar(image, ax=panels, label="attention weight", shrink=0.8, aspect=30)
    figure.savefig(path)
