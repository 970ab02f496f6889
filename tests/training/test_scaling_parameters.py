"""Parameters by part, against models that exist and counts that were published."""

import pytest
import torch
from models import decoder_grid, encoder_decoder_grid
from models.variants import DECODER_VARIANTS, ENCODER_DECODER_VARIANTS, ENCODER_VARIANTS
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    DeepseekV3Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    T5Config,
)

from hf_ext import HfxDecoderConfig
from hf_ext.models import HfxEncoderConfig, HfxEncoderDecoderConfig
from hf_ext.training.scaling import count_parameters
from hf_ext.training.scaling.fake_model import HEADS, find_head


VARIANTS = {
    HfxDecoderConfig: (decoder_grid.SIZES, DECODER_VARIANTS),
    HfxEncoderConfig: (decoder_grid.SIZES, ENCODER_VARIANTS),
    HfxEncoderDecoderConfig: (encoder_decoder_grid.SIZES, ENCODER_DECODER_VARIANTS),
}


@pytest.mark.parametrize("config_class", VARIANTS, ids=lambda c: c.model_type)
def test_every_option_is_counted_as_it_is_built(config_class):
    sizes, variants = VARIANTS[config_class]
    for name, options in variants.items():
        config = config_class(**{**sizes, **options})
        counted = count_parameters(config)
        model = HEADS[find_head(config)].from_config(config)
        assert counted.total == sum(p.numel() for p in model.parameters()), name
        assert counted.is_tied == (model.lm_head.weight is model.get_input_embeddings().weight), name


def test_parts_are_the_equations():
    d, width, L, V, K = 64, 96, 3, 100, 2
    sizes = {"hidden_size": d, "intermediate_size": width, "num_hidden_layers": L, "vocab_size": V}
    config = HfxDecoderConfig(**sizes, num_attention_heads=4, num_key_value_heads=K)
    expected = {
        "embeddings": V * d,
        "attention": L * (2 * d * d + 2 * d * K * 16),
        "feed_forward": L * 3 * d * width,
        "norms": (2 * L + 1) * d,
        "head": V * d,
    }
    counted = count_parameters(config)
    assert counted.by_part == expected
    assert counted.total == counted.active == sum(expected.values())
    assert counted.multiplied == counted.total - V * d
    tied = count_parameters(HfxDecoderConfig(**sizes, num_attention_heads=4, tie_word_embeddings=True))
    assert tied.is_tied
    assert tied.multiplied == tied.total


def test_experts_total_and_active():
    d, width, L, E, k = 64, 32, 2, 8, 3
    sizes = {"hidden_size": d, "num_hidden_layers": L, "num_attention_heads": 4, "vocab_size": 100}
    experts = {"num_experts": E, "num_experts_per_tok": k, "moe_intermediate_size": width, "num_shared_experts": 1}
    config = HfxDecoderConfig(**sizes, **experts)
    counted = count_parameters(config)
    assert counted.by_part["experts"] == L * E * 3 * d * width
    assert counted.by_part["router"] == L * E * d
    assert counted.by_part["feed_forward"] == L * 3 * d * width  # the shared one, which every token meets
    assert counted.total - counted.active == L * (E - k) * 3 * d * width


# total, active: as their authors or model cards give them, in billions
PUBLISHED = {
    "Llama 7B": (LlamaConfig(), 6.74, 6.74),
    "Mixtral 8x7B": (MixtralConfig(), 46.7, 12.9),
    "DeepSeek-V3, without the layer for a further token": (DeepseekV3Config(), 671, 37.5),
    "GPT-2 small": (GPT2Config(), 0.124, 0.124),
    "T5 small": (T5Config(), 0.0605, 0.0605),
    "BERT base": (BertConfig(), 0.1095, 0.1095),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    config, total, active = PUBLISHED[name]
    counted = count_parameters(config)
    assert counted.total / 1e9 == pytest.approx(total, rel=5e-3)
    assert counted.active / 1e9 == pytest.approx(active, rel=5e-3)


def test_the_configuration_stays_as_it_was():
    config = HfxDecoderConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=64)
    before = config.to_dict()
    count_parameters(config)
    assert config.to_dict() == before
    model = AutoModelForCausalLM.from_config(config)  # and models made after it have values
    assert type(model.lm_head.weight) is torch.nn.Parameter
    assert 0 < model.lm_head.weight.std() < 0.03


def test_architectures_name_the_head():
    config = HfxEncoderConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=64)
    assert find_head(config) == "masked"
    config.architectures = ["HfxEncoderForTokenClassification"]
    assert find_head(config) == "token_classification"
    assert count_parameters(config).by_part["head"] < count_parameters(config, head="masked").by_part["head"] + 64 * 64
