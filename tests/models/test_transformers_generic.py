"""The generic test classes that transformers runs on its own models, run on ours.

They aren't part of its package. With a source checkout (of the installed version, or near) and `pip install parameterized`:

    TRANSFORMERS_TESTS=path/to/transformers python -m pytest tests/models/test_transformers_generic.py

`TRANSFORMERS_TESTS` names the folder that holds `tests/` and `src/`. Without it this file is skipped. What is skipped with
it: what the classes skip themselves (other devices, other modalities, `RUN_SLOW`), the pipelines (they take their models
from the Hub by name; ours are tested in `test_decoder_heads.py`), and what `WITHOUT_MEANING` says.
"""

import os
import sys
import unittest
from pathlib import Path

import pytest
import torch

from hf_ext.models import (
    HfxDecoderConfig,
    HfxDecoderForCausalLM,
    HfxDecoderForQuestionAnswering,
    HfxDecoderForSequenceClassification,
    HfxDecoderForTokenClassification,
    HfxDecoderModel,
    HfxEncoderConfig,
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderDecoderForQuestionAnswering,
    HfxEncoderDecoderForSequenceClassification,
    HfxEncoderDecoderModel,
    HfxEncoderForMaskedLM,
    HfxEncoderForMultipleChoice,
    HfxEncoderForQuestionAnswering,
    HfxEncoderForSequenceClassification,
    HfxEncoderForTokenClassification,
    HfxEncoderModel,
)


CHECKOUT = os.environ.get("TRANSFORMERS_TESTS")
if not CHECKOUT:
    pytest.skip("TRANSFORMERS_TESTS doesn't name a source checkout of transformers", allow_module_level=True)
if not Path(CHECKOUT, "tests", "test_modeling_common.py").is_file():
    raise ValueError(
        f"TRANSFORMERS_TESTS={CHECKOUT}: has no tests/test_modeling_common.py; name the folder of a source checkout"
    )
import tests  # noqa: E402  this folder; theirs is a package of the same name


tests.__path__ = [*tests.__path__, str(Path(CHECKOUT, "tests"))]
installed = sys.modules["transformers"]
from tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from tests.test_pipeline_mixin import PipelineTesterMixin  # noqa: E402
from tests.test_training_mixin import TrainingTesterMixin  # noqa: E402


sys.modules["transformers"] = installed  # one of them puts the checkout's in its place

DECODERS = {
    "Defaults": {},
    "LearnedPositions": {
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "mlp_type": "plain",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "WindowsAndSinks": {
        "attention_sinks": True,
        "num_key_value_heads": 1,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Alibi": {"position_embedding_type": "alibi", "embedding_norm": True},
    "RelativeBias": {"position_embedding_type": "relative", "block_type": "post_norm"},
    "Softcaps": {
        "attn_logit_softcapping": 30.0,
        "final_logit_softcapping": 20.0,
        "block_type": "sandwich",
        "qk_norm": "head",
    },
    "RotaryByLayerType": {
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
    "Mixture": {"num_experts": 4, "num_shared_experts": 1, "mlp_layer_types": ["dense", "sparse"]},
    "LatentAttention": {"attention_type": "latent", "q_lora_rank": 16},
    "DifferentialAttention": {"attention_type": "differential", "num_key_value_heads": 2},
    "GateAndValueResidual": {"attention_output_gate": "headwise", "value_residual": True},
    "FurtherTokens": {"num_nextn_predict_layers": 1},
}

ENCODERS = {
    "EncoderDefaults": {},
    "EncoderBert": {
        "type_vocab_size": 2,
        "position_embedding_type": "learned",
        "block_type": "post_norm",
        "norm_bias": True,
        "mlp_type": "plain",
        "mlp_bias": True,
        "attention_bias": True,
    },
    "EncoderModernBert": {
        "sliding_window": 3,
        "layer_types": ["full_attention", "sliding_attention"],
        "norm_before_first_layer": False,
        "classifier_pooling": "mean",
        "classifier_norm": True,
        "classifier_on_tokens": True,
    },
    "EncoderAlibi": {"position_embedding_type": "alibi"},
    "EncoderRelativeBias": {"position_embedding_type": "relative", "tie_word_embeddings": False},
    "EncoderSoftcapsAndSinks": {
        "attn_logit_softcapping": 30.0,
        "attention_sinks": True,
        "final_logit_softcapping": 20.0,
    },
    "EncoderLatentAttention": {"attention_type": "latent"},
    "EncoderDifferentialAttention": {"attention_type": "differential", "value_residual": True},
}

ENCODER_DECODERS = {
    "EncoderDecoderDefaults": {},
    "EncoderDecoderT5": {
        "position_embedding_type": "relative",
        "mlp_type": "plain",
        "hidden_act": "relu",
        "query_pre_attn_scalar": 1,
        "output_multiplier": 32**-0.5,
    },
    "EncoderDecoderBart": {
        "position_embedding_type": "learned",
        "block_type": "post_norm",
        "norm_type": "layernorm",
        "embedding_norm": True,
        "mlp_type": "plain",
        "hidden_act": "gelu",
        "mlp_bias": True,
        "attention_bias": True,
        "lm_head_bias": True,
    },
    "EncoderDecoderWindows": {
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_key_value_heads": 2,
    },
}

HEADS_IN_THE_CACHE = (
    lambda config: config.attention_type == "latent",
    "it expects the keys and values of every head in the cache, which here holds their latent: test_latent_attention.py",
)

# beginning of the test's name -> (for which configurations, why)
WITHOUT_MEANING = {
    "test_generate_dict_outputs": HEADS_IN_THE_CACHE,
    "test_past_key_values_format": HEADS_IN_THE_CACHE,
    "test_generate_from_inputs_embeds_with_static_cache": HEADS_IN_THE_CACHE,
    "test_model_rope_": (
        lambda config: config.position_embedding_type != "rope",
        "it takes a rope_parameters field for rotary positions; this configuration's are others and the field is None",
    ),
    "test_can_set_attention_dynamically": (
        lambda config: config.attention_sinks or config.attn_logit_softcapping,
        "it sets sdpa, which can't compute this configuration and is refused",
    ),
    "test_sdpa_can_dispatch_non_composite_models": (
        lambda config: config.attention_sinks or config.attn_logit_softcapping,
        "it expects sdpa by default, which can't compute this configuration: the default is hfx_tiled",
    ),
}


class Tester:
    """What the generic tests ask about the model at hand: sizes, a small configuration, a batch padded on the right."""

    batch_size = 5
    seq_length = 7
    is_training = True
    num_labels = 3
    num_choices = 3
    type_sequence_label_size = 2
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    max_position_embeddings = 64
    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, config_class: type, options: dict, causal_lm_class: type | None = None):
        self.config_class, self.options, self.causal_lm_class = config_class, options, causal_lm_class

    def get_config(self):
        sizes = (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "num_labels",
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
        )
        return self.config_class(**{name: getattr(self, name) for name in sizes}, intermediate_size=48, **self.options)

    def prepare_config_and_inputs_for_common(self) -> tuple:
        ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        lengths = torch.arange(self.batch_size)[:, None] + self.seq_length - self.batch_size + 1
        return self.get_config(), {"input_ids": ids, "attention_mask": (torch.arange(self.seq_length) < lengths).long()}


class PairTester(Tester):
    """The same of a source and a target."""

    def prepare_config_and_inputs_for_common(self) -> tuple:
        config, source = super().prepare_config_and_inputs_for_common()
        _, target = super().prepare_config_and_inputs_for_common()
        return config, source | {f"decoder_{name}": value for name, value in target.items()}


# beginning of the test's name -> configuration to ask it of. These compare traced outputs with others, padding's too, for
# which an encoder computes nothing unless it is traced
ASKED_WITH = {"test_torch_export": {"padding_free": False}}


class GenericTests:
    """A subclass sets `config_class` and `options`."""

    config_class: type
    options: dict
    causal_lm_class: type | None = None
    makes_inputs = Tester

    def setUp(self):
        torch.manual_seed(0)
        asked_with = {
            name: value
            for beginning, further in ASKED_WITH.items()
            if self._testMethodName.startswith(beginning)
            for name, value in further.items()
            if name in self.config_class.__dataclass_fields__
        }
        self.model_tester = self.makes_inputs(self.config_class, self.options | asked_with, self.causal_lm_class)
        config = self.model_tester.get_config()
        for beginning, (concerns, why) in WITHOUT_MEANING.items():
            if self._testMethodName.startswith(beginning) and concerns(config):
                self.skipTest(why)

    def test_config(self):
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
        ConfigTester(self, config_class=self.config_class, **{**sizes, **self.options}).run_common_tests()


class DecoderTests(GenericTests, ModelTesterMixin, GenerationTesterMixin, PipelineTesterMixin, TrainingTesterMixin):
    """All of them over all heads of the decoder."""

    config_class, causal_lm_class = HfxDecoderConfig, HfxDecoderForCausalLM
    all_model_classes = (
        HfxDecoderModel,
        HfxDecoderForCausalLM,
        HfxDecoderForSequenceClassification,
        HfxDecoderForTokenClassification,
        HfxDecoderForQuestionAnswering,
    )
    pipeline_model_mapping = {
        "feature-extraction": HfxDecoderModel,
        "text-generation": HfxDecoderForCausalLM,
        "text-classification": HfxDecoderForSequenceClassification,
        "token-classification": HfxDecoderForTokenClassification,
        "zero-shot": HfxDecoderForSequenceClassification,
    }


class EncoderDecoderTests(GenericTests, ModelTesterMixin, GenerationTesterMixin, PipelineTesterMixin):
    """All over all heads of the encoder-decoder."""

    config_class = HfxEncoderDecoderConfig
    makes_inputs = PairTester
    is_encoder_decoder = True
    all_model_classes = (
        HfxEncoderDecoderModel,
        HfxEncoderDecoderForConditionalGeneration,
        HfxEncoderDecoderForSequenceClassification,
        HfxEncoderDecoderForQuestionAnswering,
    )
    pipeline_model_mapping = {"text-classification": HfxEncoderDecoderForSequenceClassification}

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if model_class in self.all_model_classes[2:]:  # whose decoder reads the source
            inputs = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
        return inputs


class EncoderTests(GenericTests, ModelTesterMixin, PipelineTesterMixin, TrainingTesterMixin):
    """All but generation's over all heads of the encoder."""

    config_class = HfxEncoderConfig
    causal_lm_class = HfxEncoderForMaskedLM  # so is called what the training tests train
    all_model_classes = (
        HfxEncoderModel,
        HfxEncoderForMaskedLM,
        HfxEncoderForSequenceClassification,
        HfxEncoderForTokenClassification,
        HfxEncoderForQuestionAnswering,
        HfxEncoderForMultipleChoice,
    )
    pipeline_model_mapping = {
        "feature-extraction": HfxEncoderModel,
        "fill-mask": HfxEncoderForMaskedLM,
        "text-classification": HfxEncoderForSequenceClassification,
        "token-classification": HfxEncoderForTokenClassification,
        "zero-shot": HfxEncoderForSequenceClassification,
    }


for tests_of_family, configurations in (
    (DecoderTests, DECODERS),
    (EncoderTests, ENCODERS),
    (EncoderDecoderTests, ENCODER_DECODERS),
):
    for name, options in configurations.items():
        globals()[name] = type(name, (tests_of_family, unittest.TestCase), {"options": options})
del tests_of_family
