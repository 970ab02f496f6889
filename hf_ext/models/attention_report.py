"""Which attention each layer of a model runs, on this device and in this mode, and why not another.

    print(attention_report(model))

What torch's `sdpa` would choose is asked of torch itself, with tensors of the layer's shape, dtype and device; the reason
is found by taking one circumstance away at a time until it would choose better.
"""

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import import_utils

from hf_ext.models.pretrained_model import asked_options
from hf_ext.ops.attention_support import SINKS, WITHOUT_DROPOUT, plain_name, refusal
from hf_ext.ops.backends import BACKENDS
from hf_ext.ops.flash_attention import KEY_TILE, QUERY_TILE
from hf_ext.ops.flex_attention import too_narrow


# torch._fused_sdp_choice's answers: name, and how good; torch.nn.attention.SDPBackend has the same numbers
SDPA_KERNELS = {0: ("math", 0), 1: ("flash", 2), 2: ("efficient", 1), 3: ("cuDNN", 2), 4: ("the device's own", 2)}
PROBE_TOKENS = 64  # the choice doesn't depend on the length, and a mask of the whole one might not fit
MAX_TOKENS = 4096  # of a row that nobody has given a length for


@dataclass(frozen=True)
class LayerAttention:
    """One attention module. runs: what computes it. why: what led there."""

    layer: int
    name: str
    layer_type: str
    implementation: str
    runs: str
    why: str


@dataclass(frozen=True)
class AttentionReport:
    """title: model, device and mode. layers: in the order of the model. others: implementation -> why not, None where it
    could be taken."""

    title: str
    layers: tuple[LayerAttention, ...]
    others: dict[str, str | None]

    def __str__(self) -> str:
        groups: dict[tuple, list[int]] = {}
        for row in self.layers:
            stem = re.split(r"\.\d+\.", row.name)[0]
            facts = (row.layer_type, row.implementation, row.runs, row.why)
            groups.setdefault((stem, row.name.rsplit(".", 1)[-1], *facts), []).append(row.layer)
        table = [("layers", "type", "implementation", "runs", "why")]
        several = len({key[:2] for key in groups}) > 1  # an encoder and a decoder, self and cross
        for (stem, part, *facts), layers in groups.items():
            table.append((f"{stem} {part} {_ranges(layers)}" if several else _ranges(layers), *facts))
        lines = [self.title, "", *_columns(table), ""]
        width = max(map(len, self.others))
        for name, reason in self.others.items():
            said = (reason or "could be taken").removeprefix(f"attn_implementation={name!r} ")
            lines.append(f"{name.ljust(width)}  {said}")
        return "\n".join(lines)


def attention_report(model: PreTrainedModel, *, num_tokens: int | None = None, padded: bool = False) -> AttentionReport:
    """How each layer's attention is computed: mode (`train`, `eval`), dtype, device and gradients are taken as they are now.

    Full for our own models; of others what their modules tell, and "not known" for what they don't.

    Args:
        model: a transformers model, compiled or not.
        num_tokens: length of the row it is asked about, without a cache; default what the model is made for, at most 4096.
        padded: whether the batch has padding.

    Raises:
        ValueError: the model has no attention that follows transformers' interface, or num_tokens is below 2.
    """
    is_compiled = hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
    model = getattr(model, "_orig_mod", model)
    # the body's: blocks beside it, which predict further tokens, run in training only
    body = set(getattr(model, "base_model", model).modules())
    layers = [(name, module) for name, module in model.named_modules() if _is_attention(module) and module in body]
    if not layers:
        raise ValueError(
            f"model: {type(model).__name__} has no attention that takes an attn_implementation; nothing to report"
        )
    if num_tokens is None:
        num_tokens = min(getattr(model.config.get_text_config(), "max_position_embeddings", MAX_TOKENS), MAX_TOKENS)
    if num_tokens < 2:
        raise ValueError(f"num_tokens={num_tokens}: must be at least 2; a single token needs no mask and no choice")

    rows, calls = [], []
    for position, (name, module) in enumerate(layers):
        config = getattr(module, "config", model.config)
        implementation = config._attn_implementation or "eager"
        call = _describe_call(model, name, module, config, implementation, num_tokens, padded)
        calls.append(call)
        runs, why = _what_runs(implementation, call, module, is_compiled)
        layer = getattr(module, "layer_idx", None)
        rows.append(
            LayerAttention(position if layer is None else layer, name, call.layer_type, implementation, runs, why)
        )
    names = [
        "eager",
        "sdpa",
        "hfx_tiled",
        "hfx_triton",
        "flex_attention",
        *(f"flash_attention_{n}" for n in (2, 3, 4)),
        "paged|eager",
    ]
    names += [name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if name not in names]
    taken = {row.implementation for row in rows}
    others = {name: _reason_against(model, name, calls) for name in names if name not in taken}
    mode = ("training" if model.training else "eval") + (", gradients" if torch.is_grad_enabled() else ", no gradients")
    call = calls[0]
    title = f"{type(model).__name__} on {call.device}, {_name(call.dtype)}, {mode}, rows of {num_tokens} tokens"
    return AttentionReport(title + (", padded" if padded else ""), tuple(rows), others)


@dataclass(frozen=True)
class _Call:
    """One attention call as far as it decides which kernel runs. mask: why there is one, None without."""

    device: torch.device
    dtype: torch.dtype
    num_heads: int
    num_groups: int
    head_dim: int
    value_dim: int
    num_tokens: int
    layer_type: str
    is_causal: bool
    mask: str | None
    mask_needs_gradient: bool
    dropout: float
    needs_gradient: bool


def _is_attention(module: nn.Module) -> bool:
    """The innermost modules that call an attention function: transformers asks `is_causal` of each."""
    return "Attention" in type(module).__name__ and hasattr(module, "is_causal") and hasattr(module, "config")


def _describe_call(model, name, module, config, implementation, num_tokens, padded) -> _Call:
    parameter = next(module.parameters(), None)
    parameter = next(model.parameters()) if parameter is None else parameter
    device, dtype = parameter.device, parameter.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    num_heads = getattr(config, "num_attention_heads", None) or getattr(module, "num_heads", 1)
    head_dim = getattr(module, "qk_head_dim", None) or getattr(module, "head_dim", None)
    if head_dim is None:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    is_cross = getattr(module, "is_cross_attention", None)
    if is_cross is None:
        is_cross = any(word in name.lower() for word in ("cross", "encdec", "encoder_attn"))
    layer_type = "cross_attention" if is_cross else _layer_type(module, config)

    masks = ["padding"] if padded else []
    window = {
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }.get(layer_type)
    # our tiles take a window as a rule whatever the length, transformers leaves out one that hides nothing
    if window is not None and (num_tokens >= window or implementation in BACKENDS):
        masks.append(f"window of {window}")
    bias = None if is_cross else getattr(model.base_model, "position_bias", None) or _bias_of_t5(model)
    with_gradients = torch.is_grad_enabled()
    if bias is not None and implementation == "sdpa":  # the others take it beside the mask
        masks.append("score bias as a matrix")
    return _Call(
        device=device,
        dtype=dtype,
        num_heads=num_heads,
        num_groups=getattr(module, "num_key_value_groups", 1) or 1,
        head_dim=head_dim,
        value_dim=getattr(module, "v_head_dim", None) or head_dim,
        num_tokens=num_tokens,
        layer_type=layer_type,
        is_causal=bool(module.is_causal) and not is_cross,
        mask=", ".join(masks) or None,
        mask_needs_gradient=with_gradients and bias is not None and any(p.requires_grad for p in bias.parameters()),
        dropout=_dropout_of(module) if model.training else 0.0,
        needs_gradient=with_gradients and any(p.requires_grad for p in model.parameters()),
    )


def _layer_type(module, config) -> str:
    layer, types = getattr(module, "layer_idx", None), getattr(config, "layer_types", None)
    if types is not None and layer is not None and layer < len(types):
        return types[layer]
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return "sliding_attention" if slides else "full_attention"


def _bias_of_t5(model) -> nn.Module | None:
    """The table of relative biases that the first layer of a T5-like stack has, and all its layers use."""
    found = (m for m in model.modules() if _is_attention(m) and getattr(m, "has_relative_attention_bias", False))
    module = next(found, None)
    return None if module is None else module.relative_attention_bias


def _dropout_of(module) -> float:
    for name in ("attention_dropout", "attn_dropout", "dropout"):
        dropout = getattr(module, name, None)
        if dropout is not None:
            return float(getattr(dropout, "p", dropout))
    return 0.0


def _what_runs(implementation: str, call: _Call, module, is_compiled: bool) -> tuple[str, str]:
    name = plain_name(implementation)
    masked = "no mask: causal by index" if call.is_causal else "no mask: every token sees every token"
    masked = masked if call.mask is None else f"mask: {call.mask}"
    if name in ("eager", "paged|eager"):
        return "the equation, step by step", f"the only one that returns the weights; {masked}"
    if name == "sdpa":
        return _sdpa_kernel(call, masked)
    if name == "hfx_tiled":
        if is_compiled:
            return "one tile of the whole row, own backward", "torch.compile can't unroll a loop over a symbolic length"
        tiles = f"tiles of {QUERY_TILE} x {KEY_TILE}, own backward"
        return tiles, masked if call.mask is None else f"mask as a rule: {call.mask}"
    if name == "hfx_triton":
        kernels = "our Triton kernels, forward and backward"
        return kernels, masked if call.mask is None else f"mask as an interval of keys for each query: {call.mask}"
    if name == "hfx_ulysses":
        return "hfx_tiled for some heads, tokens exchanged for heads before and after it", masked
    if name == "flex_attention":
        where = "uncompiled, forward only" if call.device.type == "cpu" else "compiled, forward and backward"
        return f"torch's flex_attention, {where}", masked
    if "flash" in name:
        return name, "the Hub's kernel" if "/" in name else "the installed package, else the Hub's kernel"
    return "not known", f"registered by someone else; {masked}"


def _sdpa_kernel(call: _Call, masked: str) -> tuple[str, str]:
    """The kernel that torch would choose, and what kept it from a better one."""
    if not hasattr(torch, "_fused_sdp_choice") or call.device.type == "meta":
        return "torch's choice, not known here", masked
    chosen, rank = SDPA_KERNELS[_ask_torch(call)]
    runs = f"torch's {chosen} kernel"
    if rank == max(rank for _, rank in SDPA_KERNELS.values()):
        return runs, masked
    circumstances = {
        f"dropout of {call.dropout} in training": {"dropout": 0.0},
        "the bias in the mask needs a gradient": {"mask_needs_gradient": False},
        f"values of head dim {call.value_dim}, keys of {call.head_dim}": {"value_dim": call.head_dim},
        f"a mask ({call.mask})": {"mask": None, "mask_needs_gradient": False},
        f"dtype {_name(call.dtype)}": {"dtype": torch.bfloat16},
        f"head dim {call.head_dim}": {"head_dim": 64, "value_dim": 64},
        f"{call.num_groups} query heads to a key head": {"num_groups": 1},
    }
    changes = {why: change for why, change in circumstances.items() if replace(call, **change) != call}

    def better_without(causes: list[str]) -> bool:
        together = {name: value for why in causes for name, value in changes[why].items()}
        return SDPA_KERNELS[_ask_torch(replace(call, **together))][1] > rank

    alone = [why for why in changes if better_without([why])]
    if alone:
        # a gradient through the mask would go with the mask: name the smaller cause alone
        return runs, alone[0] if chosen == "math" else " or ".join(alone)
    if better_without(list(changes)):
        causes = list(changes)
        for why in reversed(list(changes)):  # leave out what makes no difference, the least likely causes first
            fewer = [cause for cause in causes if cause != why]
            causes = fewer if better_without(fewer) else causes
        return runs, " and ".join(causes)
    return runs, "torch has no better one enabled on this device"


def _ask_torch(call: _Call) -> int:
    """`torch._fused_sdp_choice`, which scaled_dot_product_attention itself dispatches by, on tensors like the layer's."""
    T = min(call.num_tokens, PROBE_TOKENS)
    like = {"device": call.device, "dtype": call.dtype}
    # transformers repeats grouped keys where there is a mask
    repeated = call.mask is not None or call.num_groups == 1
    num_key_heads = call.num_heads if repeated else call.num_heads // call.num_groups
    query = torch.empty(1, call.num_heads, T, call.head_dim, **like, requires_grad=call.needs_gradient)
    key = torch.empty(1, num_key_heads, T, call.head_dim, **like, requires_grad=call.needs_gradient)
    value = torch.empty(1, num_key_heads, T, call.value_dim, **like, requires_grad=call.needs_gradient)
    mask = None
    if call.mask_needs_gradient:
        mask = torch.zeros(1, call.num_heads, T, T, **like, requires_grad=True)
    elif call.mask is not None:
        mask = torch.ones(1, 1, T, T, dtype=torch.bool, device=call.device)
    return torch._fused_sdp_choice(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=call.dropout,
        is_causal=call.is_causal and mask is None,
        enable_gqa=not repeated,
    )


def _reason_against(model: PreTrainedModel, implementation: str, calls: list[_Call]) -> str | None:
    """Why the model can't run with `implementation` here and now, in one line; None where it could be taken."""
    name, call = plain_name(implementation), calls[0]
    asked = asked_options(model.config)
    if any(getattr(module, "sinks", None) is not None for module in model.modules() if _is_attention(module)):
        asked.setdefault(SINKS, "attention sinks")
    reason = refusal(implementation, asked)
    if reason is not None:
        return reason
    if name == "eager":
        return None
    if not model._can_set_attn_implementation():
        return f"{type(model).__name__} has an attention of its own, which asks no implementation"
    for word, flag in (("flash", "_supports_flash_attn"), ("sdpa", "_supports_sdpa"), ("flex", "_supports_flex_attn")):
        if word in name and not getattr(model, flag, False):
            return f"{type(model).__name__} is not made for it ({flag}=False)"
    if name in BACKENDS and _bias_of_t5(model) is not None:
        return "takes a score bias as a rule, and this model gives a matrix"
    if implementation.startswith("paged|"):
        return "needs the paged cache of continuous batching; generate_batch takes it by itself"
    if "flash" in name:
        reason = _flash_missing(name, call)
    elif name in BACKENDS:
        reason = BACKENDS[name].missing()
        if name == "hfx_triton" and reason is None and torch.cuda.is_available() and call.device.type != "cuda":
            reason = f"the model is on {call.device}; move it to the CUDA device"
    elif name == "flex_attention" and call.device.type == "cpu":
        if SINKS in asked:
            reason = f"on CPU it does not support {asked[SINKS]}"
        elif call.needs_gradient:
            reason = "on CPU it has no backward; use it under torch.no_grad()"
    elif name == "flex_attention":
        narrow = too_narrow(call.device, call.head_dim, call.value_dim)
        reason = None if narrow is None else f"it does not support {narrow}"
    dropout = max(call.dropout for call in calls)
    if reason is None and dropout and name in WITHOUT_DROPOUT:
        reason = f"it has no dropout, and this model drops {dropout} of the weights in training"
    return reason


def _flash_missing(name: str, call: _Call) -> str | None:
    """What of device, package and dtype a flash-attention kernel misses."""
    if not torch.cuda.is_available():
        return "no CUDA device here"
    if call.device.type != "cuda":
        return f"the model is on {call.device}; move it to the CUDA device"
    if "/" not in name:
        installed = getattr(import_utils, f"is_flash_attn_{name[-1]}_available", lambda: False)()
        if not installed and not find_spec("kernels"):
            return "neither its package nor `kernels` is installed"
    if call.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 and bfloat16, the model is {_name(call.dtype)}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _ranges(numbers: list[int]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _columns(table: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
