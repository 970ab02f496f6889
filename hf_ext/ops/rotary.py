"""Rotary position embedding: frequencies, every scaling rule, and the rotation itself.

B batch, H heads, T tokens, D head dim, R <= D rotated dims ("rotary dim"), i = 0 … R/2 - 1 counts pairs of dims.

A token at position m has pair i turned by the angle m * theta_i, theta_i = rope_theta^(-2i/R), so that the product of
a query at m and a key at n depends on m - n only (Su et al. 2021, arXiv 2104.09864, eq. 34). Which two dims make a pair
is a convention: halves (i, i + R/2; Llama, GPT-NeoX) or neighbours (2i, 2i + 1; GPT-J, the paper), here `interleaved`.

A scaling rule changes theta_i to reach further than the trained length. Its parameters carry the names of transformers'
`rope_parameters`; frequencies are fp32, in radians a token, and equal transformers' to the last few bits.
"""

import math
from collections.abc import Callable
from difflib import get_close_matches
from inspect import signature

import torch
from torch.nn.functional import pad

from hf_ext.ops.kernel_choice import takes_triton


def default(dim: int, rope_theta: float, device: torch.device | None = None) -> tuple[torch.Tensor, float]:
    """theta_i = rope_theta^(-2i/dim); Su et al. 2021, arXiv 2104.09864, section 3.2.2."""
    return 1.0 / rope_theta ** _exponents(dim, device), 1.0


def linear(dim: int, rope_theta: float, *, factor: float) -> tuple[torch.Tensor, float]:
    """theta_i / factor, which is squeezing the positions; Chen et al. 2023, arXiv 2306.15595."""
    return default(dim, rope_theta)[0] / factor, 1.0


def proportional(
    head_dim: int, rope_theta: float, *, partial_rotary_factor: float = 1.0, factor: float = 1.0
) -> tuple[torch.Tensor, float]:
    """theta_i over the whole head, (head_dim/2,), of which the slowest 1 - partial_rotary_factor get 0 and stand still;
    p-RoPE, Barbero et al. 2024, arXiv 2410.06205."""
    num_turning = int(partial_rotary_factor * head_dim // 2)
    turning = default(head_dim, rope_theta)[0][:num_turning]
    return pad(turning, (0, head_dim // 2 - num_turning)) / factor, 1.0


def dynamic(
    dim: int,
    rope_theta: float,
    *,
    factor: float,
    max_position_embeddings: int,
    seq_len: int | torch.Tensor | None = None,
) -> tuple[torch.Tensor, float]:
    """rope_theta (factor L / L_0 - (factor - 1))^(dim/(dim - 2)) in place of rope_theta, L = max(seq_len, L_0) and
    L_0 = max_position_embeddings; "dynamic NTK", Peng et al. 2023, arXiv 2309.00071."""
    device = None
    if isinstance(seq_len, torch.Tensor):
        device = seq_len.device
        seq_len = seq_len.clamp(min=max_position_embeddings).to(torch.float32)[..., None]
    else:
        seq_len = max(seq_len or 0, max_position_embeddings)
    stretch = factor * seq_len / max_position_embeddings - (factor - 1)
    return default(dim, rope_theta * stretch ** (dim / (dim - 2)), device)


def yarn(
    dim: int,
    rope_theta: float,
    *,
    original_max_position_embeddings: int,
    max_position_embeddings: int | None = None,
    factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    truncate: bool = True,
) -> tuple[torch.Tensor, float]:
    """Pairs that turn more than beta_fast times within the original length keep theta_i, those below beta_slow turns
    get theta_i / factor, a ramp lies between; Peng et al. 2023, arXiv 2309.00071, section 3.

    Without `factor` it is max_position_embeddings / original_max_position_embeddings. cos and sin are multiplied by
    0.1 ln(factor) + 1, or, given both, by the ratio of two such terms for `mscale` and `mscale_all_dim` (DeepSeek-AI
    2024, arXiv 2405.04434). `truncate` rounds the ends of the ramp outwards to whole pairs.
    """
    if factor is None:
        factor = max_position_embeddings / original_max_position_embeddings

    def pair_that_turns(num_turns: float) -> float:  # the i (not whole) with theta_i * length = 2 pi * num_turns
        return dim * math.log(original_max_position_embeddings / (2 * math.pi * num_turns)) / (2 * math.log(rope_theta))

    first, last = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first or 0.001  # a step where the ends meet
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
    theta = default(dim, rope_theta)[0]

    def temperature(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if attention_factor is None:
        attention_factor = temperature(1.0)
        if mscale and mscale_all_dim:
            attention_factor = temperature(mscale) / temperature(mscale_all_dim)
    return theta * (1 - ramp) + theta / factor * ramp, attention_factor


def longrope(
    dim: int,
    rope_theta: float,
    *,
    short_factor: list[float],
    long_factor: list[float],
    original_max_position_embeddings: int,
    max_position_embeddings: int | None = None,
    factor: float | None = None,
    attention_factor: float | None = None,
    seq_len: int | torch.Tensor | None = None,
) -> tuple[torch.Tensor, float]:
    """theta_i / long_factor_i in documents longer than the original length L_0, else theta_i / short_factor_i; cos and
    sin are multiplied by sqrt(1 + ln(factor) / ln(L_0)); Ding et al. 2024, arXiv 2402.13753, section 3."""
    if factor is None:
        factor = max_position_embeddings / original_max_position_embeddings
    if attention_factor is None:
        growth = math.log(factor) / math.log(original_max_position_embeddings) if factor > 1 else 0.0
        attention_factor = math.sqrt(1 + growth)

    device = seq_len.device if isinstance(seq_len, torch.Tensor) else None
    short, long = (torch.tensor(f, dtype=torch.float32, device=device) for f in (short_factor, long_factor))
    if isinstance(seq_len, torch.Tensor):
        divisor = torch.where((seq_len > original_max_position_embeddings)[..., None], long, short)
    else:
        divisor = long if seq_len is not None and seq_len > original_max_position_embeddings else short
    return 1.0 / (divisor * rope_theta ** _exponents(dim, device)), attention_factor


def llama3(
    dim: int,
    rope_theta: float,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> tuple[torch.Tensor, float]:
    """theta_i ((1 - s_i) / factor + s_i), s_i = (turns_i - low_freq_factor) / (high_freq_factor - low_freq_factor) kept
    within 0 … 1, turns_i = L_0 theta_i / 2 pi; the rule of Llama 3.1, Grattafiori et al. 2024, arXiv 2407.21783."""
    theta = default(dim, rope_theta)[0]
    turns = original_max_position_embeddings * theta / (2 * math.pi)
    keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return theta * (1 - keep) / factor + theta * keep, 1.0


ROPE_RULES: dict[str, Callable[..., tuple[torch.Tensor, float]]] = {
    "default": default,
    "linear": linear,
    "dynamic": dynamic,
    "yarn": yarn,
    "longrope": longrope,
    "llama3": llama3,
    "proportional": proportional,
}
# what each rule takes, read off its keywords: name -> whether it must be given
_PARAMETERS = {
    rope_type: {
        name: p.default is p.empty for name, p in signature(rule).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    for rope_type, rule in ROPE_RULES.items()
}
_CONTEXT = ("max_position_embeddings", "seq_len")  # what the model knows, not the dict
# a fact about the model rather than a setting of a rule: any dict may state it, only rules that name it go by it
_STATED = "original_max_position_embeddings"


def rope_frequencies(
    rope_type: str = "default",
    *,
    head_dim: int,
    rope_theta: float = 10_000.0,
    max_position_embeddings: int | None = None,
    seq_len: int | torch.Tensor | None = None,
    **parameters,
) -> tuple[torch.Tensor, float]:
    """Frequencies theta_i under a rule of `ROPE_RULES`, and the factor that cos and sin are multiplied by.

    Args:
        head_dim: dims of a head; the first int(head_dim * partial_rotary_factor) are rotated (`proportional`: all).
        max_position_embeddings: tokens. seq_len: tokens; only `dynamic` and `longrope` look at it. A tensor of lengths,
            say (B, T) from `document_lengths`, gives each token the frequencies of its own document.
        parameters: the rest of transformers' `rope_parameters`; None counts as absent. See `check_rope_parameters`.

    Returns:
        fp32, (R/2,), or (*seq_len.shape, R/2) where the rule depends on the tensor `seq_len`; and a float.
    """
    parameters = {name: value for name, value in parameters.items() if value is not None and name != "type"}
    accepted = _PARAMETERS[rope_type]
    context = {"max_position_embeddings": max_position_embeddings, "seq_len": seq_len}
    parameters.update({name: value for name, value in context.items() if name in accepted})
    if _STATED not in accepted:
        parameters.pop(_STATED, None)
    if "partial_rotary_factor" not in accepted:
        head_dim = int(head_dim * parameters.pop("partial_rotary_factor", 1.0))
    return ROPE_RULES[rope_type](head_dim, rope_theta, **parameters)


def document_indices(position_ids: torch.Tensor) -> torch.Tensor:
    """Of each token, which document of its row it is of, counted from 0: int64, (..., T) as `position_ids`.

    A document begins wherever the position isn't the one before plus 1, which is how packed rows and left padding look.
    """
    previous = pad(position_ids, (1, 0), value=-2)[..., :-1]  # the first token begins a document, whatever its position
    return (position_ids != previous + 1).cumsum(dim=-1) - 1


def document_lengths(position_ids: torch.Tensor) -> torch.Tensor:
    """Of each token, 1 + the largest position in its document: int64, (..., T) as `position_ids`."""
    position_ids = position_ids.to(torch.int64)
    document = document_indices(position_ids)
    last = torch.zeros_like(document).scatter_reduce(-1, document, position_ids, "amax")
    return last.gather(-1, document) + 1


def rotary_cos_sin(
    position_ids: torch.Tensor,
    inv_freq: torch.Tensor,
    attention_scaling: float = 1.0,
    interleaved: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position * frequency for every rotated dim, times `attention_scaling`.

    Args:
        position_ids: (B, T), integers. inv_freq: (R/2,), or (B, T or 1, R/2) where each token has its own.

    Returns:
        Two (B, T, R) of `dtype`, laid out for `apply_rotary`. Angles are fp32 whatever `dtype` is: at position
        100,000 the numbers of bf16 are 512 tokens apart.
    """
    angles = position_ids[..., None].to(torch.float32) * inv_freq.to(torch.float32)
    return cos_sin_by_dim(angles, attention_scaling, interleaved, dtype)


def cos_sin_by_dim(
    angles: torch.Tensor, attention_scaling: float, interleaved: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles (B, T, R/2), one for each pair of dims -> cos and sin (B, T, R) of `dtype`, laid out for `apply_rotary`."""
    cos = (angles.cos() * attention_scaling).to(dtype)
    sin = (angles.sin() * attention_scaling).to(dtype)
    if interleaved:
        return cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)
    return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(..., R) -> (..., R): a quarter turn of each pair (i, i + R/2), (a, b) -> (-b, a)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate_interleaved(x: torch.Tensor) -> torch.Tensor:
    """(..., R) -> (..., R): a quarter turn of each pair (2i, 2i + 1), (a, b) -> (-b, a)."""
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


def apply_rotary_to(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """x cos + rotate(x) sin on the first R dims of x (B, H, T, D); the other D - R pass. cos, sin: (B, T, R).

    Returns: (B, H, T, D) in the dtype of `x`.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rotary_dim = cos.shape[-1]
    turning, standing = x[..., :rotary_dim], x[..., rotary_dim:]
    rotate = rotate_interleaved if interleaved else rotate_half
    turned = (turning * cos + rotate(turning) * sin).to(x.dtype)
    return turned if rotary_dim == x.shape[-1] else torch.cat((turned, standing), dim=-1)


def apply_rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """`apply_rotary_to` on queries (B, H, T, D) and keys (B, K, T, D) at the same positions."""
    if not (cos.requires_grad or sin.requires_grad) and takes_triton(query, key):
        from hf_ext.ops.triton.triton_rotary import triton_rotary

        return triton_rotary(query, key, cos, sin, interleaved)
    return apply_rotary_to(query, cos, sin, interleaved), apply_rotary_to(key, cos, sin, interleaved)


def check_rope_parameters(rope_parameters: dict, head_dim: int, max_position_embeddings: int) -> None:
    """Raises a ValueError of one line for a dict that `rope_frequencies` would not compute with, or not as meant.

    Args:
        rope_parameters: transformers' dict: `rope_type`, `rope_theta`, the rule's own keys; None counts as absent.
        head_dim: dims of a head. max_position_embeddings: tokens.
    """
    if not isinstance(rope_parameters, dict):
        raise ValueError(f"rope_parameters={rope_parameters!r}: must be a dict such as {{'rope_type': 'default'}}")
    given = {name: value for name, value in rope_parameters.items() if value is not None}
    rope_type = given.pop("rope_type", "default")
    older_name = given.pop("type", rope_type)
    if older_name != rope_type:
        raise ValueError(f"type={older_name!r}: contradicts rope_type={rope_type!r}; say it in rope_type alone")
    if rope_type not in ROPE_RULES:
        raise ValueError(f"rope_type={rope_type!r}: no such rule; {_nearest(rope_type, ROPE_RULES)}")

    accepted = {name: needed for name, needed in _PARAMETERS[rope_type].items() if name not in _CONTEXT}
    accepted = {"rope_theta": False, "partial_rotary_factor": False, _STATED: False, **accepted}
    for name in given:
        if name not in accepted:
            hint = _nearest(name, accepted)
            raise ValueError(f"{name}={given[name]!r}: not a parameter of rope_type={rope_type!r}; {hint}")
    for name, needed in accepted.items():
        if needed and name not in given:
            raise ValueError(f"{name} is missing: rope_type={rope_type!r} needs it; add it to rope_parameters")

    for name, value in given.items():
        _check_value(name, value)
    partial_rotary_factor = given.get("partial_rotary_factor", 1.0)
    if partial_rotary_factor > 1:
        raise ValueError(f"partial_rotary_factor={partial_rotary_factor}: must be a share of the head, 0 < share <= 1")

    rotary_dim = head_dim if rope_type == "proportional" else int(head_dim * partial_rotary_factor)
    if rotary_dim % 2 or rotary_dim < 2:
        raise ValueError(
            f"rotary dim {rotary_dim} (of head_dim={head_dim}): must be even and at least 2, dims turn in pairs; "
            "change head_dim or partial_rotary_factor"
        )
    if rope_type == "dynamic" and rotary_dim == 2:
        raise ValueError("rotary dim 2: rope_type='dynamic' divides by dim - 2; take a larger head or another rule")
    _check_rule(rope_type, given, rotary_dim, max_position_embeddings)


def _check_value(name: str, value) -> None:
    """One value by itself: kind, and sign."""
    if name == "truncate":
        if not isinstance(value, bool):
            raise ValueError(f"truncate={value!r}: must be true or false")
    elif name in ("short_factor", "long_factor"):
        if not isinstance(value, list | tuple) or not all(_is_number(v) and v > 0 for v in value):
            raise ValueError(f"{name}={value!r}: must be a list of positive numbers, one for each pair of dims")
    elif not _is_number(value):
        raise ValueError(f"{name}={value!r}: must be a finite number, not {type(value).__name__}")
    elif name == "original_max_position_embeddings" and (value != int(value) or value < 2):
        raise ValueError(f"{name}={value}: must be a whole number of tokens, at least 2")
    elif value <= 0:
        raise ValueError(f"{name}={value}: must be positive")
    elif name == "factor" and value < 1:
        raise ValueError(f"factor={value}: must be at least 1, it is new length / trained length; invert it?")


def _check_rule(rope_type: str, given: dict, rotary_dim: int, max_position_embeddings: int) -> None:
    """What a rule demands of its values together."""
    if rope_type == "longrope":
        for name in ("short_factor", "long_factor"):
            if len(given[name]) != rotary_dim // 2:
                raise ValueError(
                    f"{name}: {len(given[name])} numbers, but rotary dim {rotary_dim} has {rotary_dim // 2} pairs; "
                    "give one number for each pair"
                )
    if rope_type == "llama3" and given["high_freq_factor"] <= given["low_freq_factor"]:
        high, low = given["high_freq_factor"], given["low_freq_factor"]
        raise ValueError(f"high_freq_factor={high}: must be above low_freq_factor={low}; swap them?")
    if rope_type == "yarn":
        fast, slow = given.get("beta_fast", 32.0), given.get("beta_slow", 1.0)
        if fast < slow:
            raise ValueError(f"beta_fast={fast}: must not be below beta_slow={slow}; swap them?")
        if given.get("rope_theta", 10_000.0) == 1:
            raise ValueError("rope_theta=1: rope_type='yarn' divides by its logarithm; 10000 is usual")
        trained = given["original_max_position_embeddings"]
        if "factor" not in given and max_position_embeddings < trained:
            raise ValueError(
                f"max_position_embeddings={max_position_embeddings}: below original_max_position_embeddings={trained}, "
                "so that rope_type='yarn' would get a factor below 1; raise it or give factor"
            )


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _nearest(name: str, known) -> str:
    close = get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(sorted(known))}"


def _exponents(dim: int, device: torch.device | None = None) -> torch.Tensor:
    """2i / dim, fp32, (dim/2,)."""
    return torch.arange(0, dim, 2, dtype=torch.int64, device=device).to(torch.float32) / dim
