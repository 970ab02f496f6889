"""Makes transformers know our models and attention backends. The only file that touches its registries."""

from importlib.util import find_spec

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from hf_ext.models.decoder import (
    HfxDecoderConfig,
    HfxDecoderForCausalLM,
    HfxDecoderForQuestionAnswering,
    HfxDecoderForSequenceClassification,
    HfxDecoderForTokenClassification,
    HfxDecoderModel,
)
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
}


# model_type -> where low-rank adapters go unless told otherwise
LORA_TARGETS = {HfxDecoderConfig.model_type: ["q_proj", "v_proj"]}


def register() -> None:
    """Idempotent; `import hf_ext` calls it."""
    for config_class, heads in FAMILIES.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto_class, model_class in heads:
            auto_class.register(config_class, model_class, exist_ok=True)
            # its table of names, which `register` leaves alone: by it the stock Trainer knows that a causal model's labels
            # are to be shifted when it smooths them, and transformers' generic tests which labels a head takes
            auto_class._model_mapping._model_mapping[config_class.model_type] = model_class.__name__
    if find_spec("peft"):
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.update(LORA_TARGETS)
    for name, backend in BACKENDS.items():
        # in both: a backend without a mask function would be given no mask at all, and padding would leak
        AttentionInterface.register(name, backend.attend)
        AttentionMaskInterface.register(name, backend.mask)
