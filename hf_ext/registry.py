"""Makes transformers know our models and attention backends. The only file that touches its registries."""

from importlib.util import find_spec
from pathlib import Path

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
)
from transformers.integrations import register_kernel_mapping, use_kernel_forward_from_hub
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from transformers.utils import is_kernels_available

from hf_ext.layers.kernel_repositories import KERNEL_NAMES, hub_mapping, local_mapping
from hf_ext.models.after_import import after_import
from hf_ext.models.decoder import (
    HfxDecoderConfig,
    HfxDecoderForCausalLM,
    HfxDecoderForQuestionAnswering,
    HfxDecoderForSequenceClassification,
    HfxDecoderForTokenClassification,
    HfxDecoderModel,
)
from hf_ext.models.encoder import (
    HfxEncoderConfig,
    HfxEncoderForMaskedLM,
    HfxEncoderForMultipleChoice,
    HfxEncoderForQuestionAnswering,
    HfxEncoderForSequenceClassification,
    HfxEncoderForTokenClassification,
    HfxEncoderModel,
)
from hf_ext.models.encoder_decoder import (
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderDecoderForQuestionAnswering,
    HfxEncoderDecoderForSequenceClassification,
    HfxEncoderDecoderModel,
)
from hf_ext.models.liger_kernels import apply_liger_kernels
from hf_ext.ops.backends import BACKENDS


# configuration -> (auto class, model class)
FAMILIES = {
    HfxDecoderConfig: (
        (AutoModel, HfxDecoderModel),
        (AutoModelForCausalLM, HfxDecoderForCausalLM),
        (AutoModelForSequenceClassification, HfxDecoderForSequenceClassification),
        (AutoModelForTokenClassification, HfxDecoderForTokenClassification),
        (AutoModelForQuestionAnswering, HfxDecoderForQuestionAnswering),
    ),
    HfxEncoderConfig: (
        (AutoModel, HfxEncoderModel),
        (AutoModelForMaskedLM, HfxEncoderForMaskedLM),
        (AutoModelForSequenceClassification, HfxEncoderForSequenceClassification),
        (AutoModelForTokenClassification, HfxEncoderForTokenClassification),
        (AutoModelForQuestionAnswering, HfxEncoderForQuestionAnswering),
        (AutoModelForMultipleChoice, HfxEncoderForMultipleChoice),
    ),
    HfxEncoderDecoderConfig: (
        (AutoModel, HfxEncoderDecoderModel),
        (AutoModelForSeq2SeqLM, HfxEncoderDecoderForConditionalGeneration),
        (AutoModelForSequenceClassification, HfxEncoderDecoderForSequenceClassification),
        (AutoModelForQuestionAnswering, HfxEncoderDecoderForQuestionAnswering),
    ),
}


# classes of `hf_ext/export`, which stands above: pipelines warn of a model whose class is in none of transformers' tables
EXPORTED = {
    AutoModel: "HfxExportedModelForFeatureExtraction",
    AutoModelForCausalLM: "HfxExportedModelForCausalLM",
    AutoModelForSeq2SeqLM: "HfxExportedModelForSeq2SeqLM",
    AutoModelForMaskedLM: "HfxExportedModelForMaskedLM",
    AutoModelForSequenceClassification: "HfxExportedModelForSequenceClassification",
    AutoModelForTokenClassification: "HfxExportedModelForTokenClassification",
    AutoModelForQuestionAnswering: "HfxExportedModelForQuestionAnswering",
    AutoModelForMultipleChoice: "HfxExportedModelForMultipleChoice",
}

# Llama's module -> ours, where they have other or further names; peft takes those of them that are there
MODULES_OF_LLAMA = {
    "q_proj": ["q_proj", "q_b_proj"],  # of latent attention
    "v_proj": ["v_proj", "kv_b_proj"],
    "post_attention_layernorm": [
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ],
    "norm": [],  # not there after post-norm blocks, and without a weight peft fails on it
}


def register_adapters(constants) -> None:
    """Where peft's adapters go unless told otherwise: our modules have the names of Llama's, and so its choices.

    Args:
        constants: peft.utils.constants, which has a table by model_type for each method.
    """
    for name, targets in vars(constants).items():
        if not name.startswith("TRANSFORMERS_MODELS_TO_") or not isinstance(targets, dict) or "llama" not in targets:
            continue
        modules = [own for module in targets["llama"] for own in MODULES_OF_LLAMA.get(module, [module])]
        for config_class in FAMILIES:
            targets.setdefault(config_class.model_type, modules)


def register_liger(monkey_patch) -> None:
    """Lets `use_liger_kernel=True` find our model types.

    Args:
        monkey_patch: liger_kernel.transformers.monkey_patch, which has a table of them.
    """
    for config_class in FAMILIES:
        monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.setdefault(config_class.model_type, apply_liger_kernels)


def register_kernels(repository: str | Path | None = None, device: str = "cuda") -> None:
    """Says which kernels `from_pretrained(..., use_kernels=True)` puts into our layers from now on, in every model.

    Args:
        repository: folder of our own kernels, from `python -m hf_ext.hub.kernel_repository`; None: those of the Hub, pinned,
            which are fetched when a model asks for them.
        device: that the folder's kernels are taken on; those of the Hub are for CUDA and ROCm.

    Raises:
        ValueError: the library `kernels` isn't installed, or the folder holds none.
    """
    if not is_kernels_available():
        raise ValueError("register_kernels: the library kernels is not installed; pip install 'hf-ext[kernels]'")
    register_kernel_mapping(hub_mapping() if repository is None else local_mapping(repository, device))


def register() -> None:
    """Idempotent; `import hf_ext` calls it."""
    for config_class, heads in FAMILIES.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto_class, model_class in heads:
            auto_class.register(config_class, model_class, exist_ok=True)
            # its table of names, which `register` leaves alone: by it the stock Trainer knows that a causal model's labels
            # are to be shifted when it smooths them, and transformers' generic tests which labels a head takes
            auto_class._model_mapping._model_mapping[config_class.model_type] = model_class.__name__
    for auto_class, name in EXPORTED.items():
        auto_class._model_mapping._model_mapping["hfx_exported"] = name
    if find_spec("peft"):
        from peft.utils import constants

        register_adapters(constants)
    if is_kernels_available():
        for layer, name in KERNEL_NAMES.items():
            use_kernel_forward_from_hub(name)(layer)
        register_kernels()
    after_import("liger_kernel.transformers.monkey_patch", register_liger)
    for name, backend in BACKENDS.items():
        # in both: a backend without a mask function would be given no mask at all, and padding would leak
        AttentionInterface.register(name, backend.attend)
        AttentionMaskInterface.register(name, backend.mask)
