"""A model of any configuration without its memory, and a batch for it: every tensor has a shape and no values.

torch's fake tensors are tensors of the meta device that behave as if they lay on a CPU: the same kernels are chosen,
autocast casts, and what a step would allocate is known from the shapes alone.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
    masking_utils,
)
from transformers.utils import logging

from hf_ext.models import attention_masks


# head -> Auto class, in the order in which a configuration that names none is taken for one
HEADS = {
    "sequence_to_sequence": AutoModelForSeq2SeqLM,
    "masked": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
}


def find_head(config: PretrainedConfig, head: str | None = None) -> str:
    """The name in `HEADS` of the head that a model of `config` has.

    Args:
        head: the name, where it is known; default: that of `config.architectures`, else the language model of the family.

    Raises:
        ValueError: unknown name, or no such model of this configuration.
    """
    name = type(config).__name__
    there = [h for h, auto_class in HEADS.items() if type(config) in auto_class._model_mapping]
    if head is not None:
        if head not in HEADS:
            raise ValueError(f"head={head!r}: must be one of {', '.join(HEADS)}")
        if head not in there:
            raise ValueError(
                f"head={head!r}: {name} has {', '.join(there) or 'none that reads tokens'}; choose of these"
            )
        return head
    for saved in config.architectures or ():
        for candidate in there:
            if model_class_of(config, candidate).__name__ == saved:
                return candidate
    if config.is_encoder_decoder:
        there = [h for h in there if h != "masked"] or there  # BART's, which is no training from scratch
    if not there:
        raise ValueError(f"config: {name} has no model here that reads tokens; known heads are {', '.join(HEADS)}")
    return there[0]


def model_class_of(config: PretrainedConfig, head: str) -> type[PreTrainedModel]:
    """The class of `config`'s models with a head of `HEADS`."""
    found = HEADS[head]._model_mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


@contextmanager
def fake_tensors() -> Iterator[None]:
    """All that is made within is fake, and each row of a batch holds one document.

    Raises:
        ValueError: what ran within asked for a value.
    """
    # nobody can look whether positions restart, so transformers and we would write a mask down for the case that they do
    asked = [(masking_utils, "find_packed_sequence_indices"), (attention_masks, "documents_by_token")]
    before = [getattr(module, name) for module, name in asked]
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is said of a real model's way has been said, or isn't asked for
    try:
        for module, name in asked:
            setattr(module, name, lambda *args: None)
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(
            f"config: its model looks at values ({error.func}), which a model without memory doesn't have; "
            "choose another attn_implementation or head"
        ) from error
    except RuntimeError as error:
        if "BF16" not in str(error):
            raise
        raise ValueError(
            "precision: this model's experts call grouped products, whose shapes torch knows in bf16 only; set bf16 or "
            "bf16_master"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        for (module, name), function in zip(asked, before, strict=True):
            setattr(module, name, function)


def fake_model(
    config: PretrainedConfig,
    *,
    head: str | None = None,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    adapter=None,
) -> PreTrainedModel:
    """A model of `config`, which is left as it is; call it within `fake_tensors`.

    Args:
        head: see `find_head`. dtype: of the weights.
        attn_implementation: default: what the model would choose.
        adapter: a configuration of peft's, LoRA's for one; the rest of the model is then frozen.
    """
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    config = copy.deepcopy(config)
    auto_class = HEADS[find_head(config, head)]
    # on the meta device first, which transformers and peft know to have nothing to initialise or to move
    with unset_fake_temporarily(), torch.device("meta"):
        model = auto_class.from_config(config, dtype=dtype, **options)
        if adapter is not None:
            from peft import get_peft_model

            model = get_peft_model(model, adapter, low_cpu_mem_usage=True)
    fakes = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers, vars(module)):
            for name, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor):
                    tensors[name] = fakes.setdefault(tensor, _fake(tensor))  # tied ones stay so
        if hasattr(module, "layerdrop"):
            module.layerdrop = _NeverDropped()
    return model


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


class _NeverDropped(float):
    """A probability that no draw is below, without a look at the draw: BART and its kin ask whether to skip a layer."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return False


def fake_batch(
    model: PreTrainedModel, head: str, batch_size: int, length: int, source_length: int | None = None, *, labels: bool
) -> dict[str, torch.Tensor]:
    """What `model` is called with, tokens without padding; call it within `fake_tensors`.

    Args:
        batch_size: B rows. length: T tokens a row; of an encoder-decoder, the decoder's.
        source_length: of an encoder-decoder, the encoder's; default `length`.
        labels: whether it is to give a loss.
    """
    ids = torch.zeros(batch_size, length, dtype=torch.long)
    batch = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        source = torch.zeros(batch_size, length if source_length is None else source_length, dtype=torch.long)
        batch = {"input_ids": source, "decoder_input_ids": ids}
    if hasattr(model.config, "use_cache"):
        batch["use_cache"] = False
    if not labels:
        return batch
    if head == "question_answering":
        row = torch.zeros(batch_size, dtype=torch.long)
        return batch | {"start_positions": row, "end_positions": row}
    by_row = head == "sequence_classification"
    return batch | {"labels": torch.zeros(batch_size, dtype=torch.long) if by_row else ids}


def check_sizes(config: PretrainedConfig, **sizes: int | None) -> None:
    """Raises ValueError, one line, for counts below 1 and rows that are longer than the model's positions."""
    for name, size in sizes.items():
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ValueError(f"{name}={size!r}: must be a whole number of at least 1")
    longest = getattr(config, "max_position_embeddings", None)
    for name in ("length", "source_length"):
        size = sizes.get(name)
        if size is not None and isinstance(longest, int) and size > longest:
            raise ValueError(
                f"{name}={size}: longer than max_position_embeddings={longest}; lower the one or raise the other"
            )
