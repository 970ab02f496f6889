"""What can be asked only of a loaded attention implementation, or of a whole model: refused by name, never ignored.

What is known of each implementation beforehand stands in `ops/attention_support.py`.
"""

from inspect import signature

from torch import nn
from transformers.integrations.hub_kernels import is_kernel
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from hf_ext.layers.rope import RotaryEmbedding
from hf_ext.ops.attention_support import SCORE_BIAS, UNSUPPORTED


# transformers 5.5 leaves a bias out of flex attention's scores without a word
if "position_bias" not in signature(ALL_ATTENTION_FUNCTIONS["flex_attention"]).parameters:
    UNSUPPORTED["flex_attention"] |= {SCORE_BIAS}

POSITION_BIASES = ("alibi", "relative")
# by which keyword argument of a flash attention function an option reaches it; one of them is enough
FLASH_ARGUMENTS = {
    "attn_logit_softcapping": ("softcap",),
    "attention_sinks": ("s_aux", "learnable_sink"),
    "sliding_window": ("window_size",),
    "attention_dropout": ("dropout_p",),
}


def check_loaded_attention(config, attention: str) -> None:
    """The same for an implementation that has been loaded, and so can be asked for its arguments.

    Raises:
        ValueError: it isn't there (a failed download is not tried again), it would ignore an option of `config`, or it
            would be given masks that it doesn't take.
    """
    if attention != "eager" and attention not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        raise ValueError(
            f"attn_implementation={attention!r}: could not be loaded; install its package or, with a network, "
            "its kernel in a fresh process, or choose eager, sdpa or hfx_tiled"
        )
    if not (is_flash_attention_requested(requested_attention_implementation=attention) or is_kernel(attention)):
        return
    (_, varlen, *_), _ = lazy_import_flash_attention(attention)
    if varlen is None:  # a kernel with an entry of its own
        return
    if "flash" not in attention:  # masks and packed rows are prepared by the name, transformers' and ours
        raise ValueError(
            f"attn_implementation={attention!r}: has the functions of flash attention, which is known by the word flash in "
            "a name; load it under one that has it"
        )
    arguments = signature(varlen).parameters
    for name, known_as in FLASH_ARGUMENTS.items():
        value = getattr(config, name, None)
        if value and not set(known_as) & set(arguments):
            raise ValueError(
                f"attn_implementation={attention!r} does not support {name}={value!r}, its function takes no "
                f"{' or '.join(known_as)}; choose eager or hfx_tiled"
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
    if getattr(model.config, "attention_type", None) == "differential":
        raise ValueError(
            f"{refusal} attention_type='differential', whose values are of two heads and wider than its keys; use generate"
        )
    for module in model.modules():
        if isinstance(module, RotaryEmbedding) and module.depends_on_length:
            rule = module.rope_parameters["rope_type"]
            raise ValueError(f"{refusal} rope_type={rule!r}, whose frequencies change with the length; use generate")
