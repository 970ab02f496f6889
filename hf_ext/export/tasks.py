"""What a saved model is exported as: Optimum's names of tasks, and our classes by them."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from hf_ext.hub.model_folder import check_holds_model
from hf_ext.models.configuration_choices import check_choice
from hf_ext.models.pretrained_model import asked_options
from hf_ext.ops.attention_support import refusal
from hf_ext.registry import FAMILIES


TASKS = {
    "feature-extraction": AutoModel,
    "text-generation": AutoModelForCausalLM,
    "text2text-generation": AutoModelForSeq2SeqLM,
    "fill-mask": AutoModelForMaskedLM,
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "multiple-choice": AutoModelForMultipleChoice,
}
WITH_PAST = "-with-past"  # Optimum's word for a cache, which ours always have


def tasks_of(config_class: type[PretrainedConfig]) -> dict[str, type[PreTrainedModel]]:
    """Task -> class, of one family."""
    classes = dict(FAMILIES[config_class])
    return {task: classes[auto_class] for task, auto_class in TASKS.items() if auto_class in classes}


def task_of(model: PreTrainedModel) -> str:
    """The task of a model of ours.

    Raises:
        ValueError: it isn't ours.
    """
    classes = tasks_of(type(model.config)) if type(model.config) in FAMILIES else {}
    for task, model_class in classes.items():
        if type(model) is model_class:
            return task
    raise ValueError(f"model: a {type(model).__name__} is none of hf_ext's; give one of its models, or a folder of one")


def check_exportable(model: PreTrainedModel) -> None:
    """Raises ValueError, one line, for a model that drops out, computes in fewer bits, or has adapters."""
    if model.training:
        raise ValueError("model: is in training mode; call model.eval() first")
    if model.dtype != torch.float32:
        raise ValueError(f"model: its weights are {str(model.dtype).removeprefix('torch.')}; export model.float()")
    if hasattr(model, "quantized_with") or getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("model: is quantized already; export the whole one, and quantize it on the way")
    if getattr(model, "peft_config", None):
        raise ValueError("model: has adapters; merge them into it first")


def load_for_export(path: str | Path, task: str | None = None, **hub) -> tuple[PreTrainedModel, str]:
    """A saved model of ours in 32 bits and eval mode, and the task that it is exported as.

    Args:
        path: folder, or a name on the Hub. task: the one that it was saved for, or "feature-extraction" for its body;
            None for the former. hub: what `from_pretrained` takes, such as revision.

    Raises:
        ValueError: no model, none of ours, a quantized one, or a task that it has no head for.
    """
    path = Path(path) if Path(path).is_dir() else str(path)
    if isinstance(path, Path):
        check_holds_model(path, f"model={str(path)!r}")
    config = AutoConfig.from_pretrained(path, **hub)
    if type(config) not in FAMILIES:
        raise ValueError(
            f"model={str(path)!r}: its model_type {config.model_type!r} is none of hf_ext's; use optimum's own"
        )
    quantized = getattr(config, "quantization_config", None) is not None
    if quantized or (isinstance(path, Path) and (path / "quantization.json").is_file()):
        raise ValueError(f"model={str(path)!r}: is quantized already; export the whole one, and quantize it on the way")
    classes = tasks_of(type(config))
    saved = {model_class.__name__: name for name, model_class in classes.items()}
    name = (config.architectures or [None])[0]
    check_choice("architectures", name, saved)
    task = saved[name] if task is None else task.removesuffix(WITH_PAST)
    check_choice("task", task, classes)
    if task not in (saved[name], "feature-extraction"):
        raise ValueError(f"task={task!r}: the model was saved as a {name}, whose task is {saved[name]!r}; leave it out")
    model = classes[task].from_pretrained(
        path, dtype=torch.float32, attn_implementation=exported_attention(config), **hub
    )
    return model.eval(), task


def exported_attention(config: PretrainedConfig) -> str:
    """The implementation that is traced: sdpa where it computes what the config asks for, else eager."""
    return "eager" if refusal("sdpa", asked_options(config)) else "sdpa"
