"""What each attention implementation can't compute, in one table: the refusals and the reports read the same facts.

Names are transformers' (`attn_implementation`); options are what a model may ask of its attention beyond a softmax of
scaled and masked scores. What is not in the table is computed, or refused by the implementation itself at the call.
"""

from collections.abc import Mapping


# what changes the scores, and would be left out silently (or refused in the middle of a run) where it is not supported
SOFTCAP = "softcap"  # scores bounded by c * tanh(scores / c)
SINKS = "sinks"  # a learnt score for each head that takes weight without giving a value
SCORE_BIAS = "score bias"  # ALiBi, relative positions
RELATIVE_BIAS = "relative bias"  # of them those that are looked up in a learnt table

# implementation -> options that it can't compute
UNSUPPORTED: dict[str, frozenset[str]] = {
    "eager": frozenset(),
    "hfx_tiled": frozenset(),
    "hfx_triton": frozenset({RELATIVE_BIAS}),
    "hfx_ulysses": frozenset({SINKS, SCORE_BIAS}),
    "sdpa": frozenset({SOFTCAP, SINKS}),
    "flex_attention": frozenset(),
    # transformers drops sinks where the kernel's signature has none, and a bias always
    "flash_attention_2": frozenset({SINKS, SCORE_BIAS}),
    "flash_attention_3": frozenset({SINKS, SCORE_BIAS}),
    "flash_attention_4": frozenset({SCORE_BIAS}),
    "kernels-community/flash-attn2": frozenset({SINKS, SCORE_BIAS}),
    "kernels-community/flash-attn3": frozenset({SINKS, SCORE_BIAS}),
    "kernels-community/vllm-flash-attn3": frozenset({SCORE_BIAS}),
    "kernels-community/flash-attn4": frozenset({SCORE_BIAS}),
    "kernels-community/metal-flash-sdpa": frozenset({SCORE_BIAS}),
    "kernels-community/aiter-flash-attn": frozenset({SCORE_BIAS}),
    # takes the sinks from the module, and nothing else that it is given
    "paged|eager": frozenset({SOFTCAP, SCORE_BIAS}),
}

# implementations that have no dropout of the weights; transformers' flash attention leaves it out with a warning
WITHOUT_DROPOUT = frozenset(
    {"hfx_triton", "flex_attention", "flash_attention_3", "flash_attention_4", "paged|eager"}
    | {name for name in UNSUPPORTED if name.endswith(("-attn3", "-attn4"))}
)

# where an unsupported configuration can turn to, best first
REMEDIES = ("sdpa", "hfx_tiled", "flex_attention", "eager")


def plain_name(implementation: str) -> str:
    """The table's name: without "paged|" (but for eager, another function then), revision and function of a Hub kernel."""
    name = implementation if implementation == "paged|eager" else implementation.removeprefix("paged|")
    if "/" in name:
        name = name.split("@")[0].split(":")[0]
    return name


def unsupported_options(implementation: str) -> frozenset[str]:
    """Options that the implementation can't compute. A flash kernel nobody has looked at is taken for the first one, and so
    is any kernel of the Hub, whatever its name: transformers calls them alike."""
    name = plain_name(implementation)
    if name in UNSUPPORTED:
        return UNSUPPORTED[name]
    return UNSUPPORTED["flash_attention_2"] if "flash" in name or "/" in name else frozenset()


def refusal(implementation: str, asked: Mapping[str, str]) -> str | None:
    """Why `implementation` can't compute what is asked for, in one line; None where it can.

    Args:
        asked: option -> how the user wrote it, "attn_logit_softcapping=2.0".
    """
    missing = [written for option, written in asked.items() if option in unsupported_options(implementation)]
    if not missing:
        return None
    able = [name for name in REMEDIES if not unsupported_options(name) & set(asked)]
    return (
        f"attn_implementation={implementation!r} does not support {', '.join(missing)}; choose "
        f"{', '.join(able[:-1])} or {able[-1]}"
    )
