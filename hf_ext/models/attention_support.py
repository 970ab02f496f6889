"""What an attention implementation would leave out of a configuration: refused by name, never silently ignored.

transformers' own implementations drop the keyword arguments that they don't know: `paged|eager` a softcap, flash attention
a score bias and, in most of its versions, sinks. Such a model would run and compute another function.
"""

from inspect import signature

from torch import nn
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from hf_ext.layers.rope import RotaryEmbedding


POSITION_BIASES = ("alibi", "relative")
# by which keyword argument of a flash attention function an option reaches it; one of them is enough
FLASH_ARGUMENTS = {
    "attn_logit_softcapping": ("softcap",),
    "attention_sinks": ("s_aux", "learnable_sink"),
    "sliding_window": ("window_size",),
    "attention_dropout": ("dropout_p",),
}


def check_attention(config, attention: str | None) -> None:
    """Whether `attention`, a name, computes all of `config`.

    Raises:
        ValueError: an option that it would ignore.
    """
    ignored = ()
    if attention is None:
        return
    if attention.endswith("sdpa"):
        ignored = ("attn_logit_softcapping", "attention_sinks")
    elif attention == "paged|eager":
        ignored = ("attn_logit_softcapping", "position_embedding_type")
    elif is_flash_attention_requested(requested_attention_implementation=attention):
        ignored = ("position_embedding_type",)
    for name in ignored:
        value = getattr(config, name, None)
        if value and (name != "position_embedding_type" or value in POSITION_BIASES):
            raise ValueError(
                f"attn_implementation={attention!r} does not support {name}={value!r}; choose {alternatives(name)}"
            )


def alternatives(option: str) -> str:
    """The implementations that compute an option which not all do."""
    sdpa = "" if option in ("attn_logit_softcapping", "attention_sinks") else "sdpa, "
    return f"eager, {sdpa}hfx_tiled or flex_attention"


def check_loaded_attention(config, attention: str) -> None:
    """The same for an implementation that has been loaded, and so can be asked for its arguments.

    Raises:
        ValueError: it isn't there (a failed download is not tried again), or it would ignore an option of `config`.
    """
    if attention != "eager" and attention not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        raise ValueError(
            f"attn_implementation={attention!r}: could not be loaded; install its package or, with a network, "
            "its kernel in a fresh process, or choose eager, sdpa or hfx_tiled"
        )
    if not is_flash_attention_requested(requested_attention_implementation=attention):
        return
    (_, varlen, *_), _ = lazy_import_flash_attention(attention)
    if varlen is None:  # a kernel with an entry of its own
        return
    arguments = signature(varlen).parameters
    for name, known_as in FLASH_ARGUMENTS.items():
        value = getattr(config, name, None)
        if value and not set(known_as) & set(arguments):
            raise ValueError(
                f"attn_implementation={attention!r} does not support {name}={value!r}, its function takes no "
                f"{' or '.join(known_as)}; choose {alternatives(name)}"
            )


def check_continuous_batching(model: nn.Module) -> None:
    """Whether a paged cache, shared by all requests, holds what `model` needs.

    Raises:
        ValueError: rotary frequencies that change while a document grows, or score biases: the paged attention calls get
            neither the lengths nor the positions of the cached keys.
    """
    refusal = "generate_batch: continuous batching does not support"
    positions = getattr(model.config, "position_embedding_type", None)
    if positions in POSITION_BIASES:
        raise ValueError(f"{refusal} position_embedding_type={positions!r}; use generate")
    for module in model.modules():
        if isinstance(module, RotaryEmbedding) and module.depends_on_length:
            rule = module.rope_parameters["rope_type"]
            raise ValueError(f"{refusal} rope_type={rule!r}, whose frequencies change with the length; use generate")
