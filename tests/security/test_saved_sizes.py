"""What a config.json may ask for: absurd sizes are refused before anything of them is made; the cap can be raised."""

import json
import time

import pytest
from transformers import AutoConfig

from hf_ext import HfxDecoderConfig
from hf_ext.models.configuration_limits import MAX_PARAMETERS, check_saved_sizes, least_parameters
from hf_ext.training.scaling.parameters import count_parameters


ABSURD = {
    "negative layers": ({"num_hidden_layers": -3}, "num_hidden_layers=-3: must be from 0"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: must be from 0 to 10,000 layers"),
    "wide": ({"hidden_size": 10**15}, "hidden_size="),
    "a vocabulary of all words": ({"vocab_size": 10**12}, "vocab_size="),
    "a million labels and more": ({"num_labels": 10**8}, "num_labels="),
    "infinite": ({"intermediate_size": float("inf")}, "intermediate_size=inf"),
    "no number": ({"intermediate_size": float("nan")}, "intermediate_size=nan"),
    "each size passes, their product doesn't": (
        {"hidden_size": 2**20, "intermediate_size": 2**22, "num_hidden_layers": 200, "num_attention_heads": 1024},
        "asks for at least .* parameters",
    ),
    "experts": (
        {"hidden_size": 2**14, "num_experts": 60_000, "num_hidden_layers": 100, "num_attention_heads": 128},
        "asks for at least .* parameters",
    ),
    "positions that are learned": (
        {"position_embedding_type": "learned", "max_position_embeddings": 10**9, "hidden_size": 2048},
        "asks for at least .* parameters",
    ),
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_config_json_is_refused_in_one_line(name, tmp_path):
    fields, said = ABSURD[name]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hfx_decoder", **fields}))
    begun = time.process_time()
    with pytest.raises(ValueError, match=said) as caught:
        AutoConfig.from_pretrained(tmp_path)
    assert time.process_time() - begun < 1  # nothing of that size was made
    assert "\n" not in str(caught.value)


def test_the_cap_can_be_raised(monkeypatch):
    large = {"num_hidden_layers": 20_000, "hidden_size": 64, "num_attention_heads": 2}
    with pytest.raises(ValueError, match="set HF_EXT_CONFIG_LIMITS to a factor"):
        HfxDecoderConfig.from_dict(dict(large))
    monkeypatch.setenv("HF_EXT_CONFIG_LIMITS", "2")
    assert HfxDecoderConfig.from_dict(dict(large)).num_hidden_layers == 20_000
    monkeypatch.setenv("HF_EXT_CONFIG_LIMITS", "many")
    with pytest.raises(ValueError, match="HF_EXT_CONFIG_LIMITS='many': must be a number from 1"):
        HfxDecoderConfig.from_dict(dict(large))


def test_a_program_is_its_authors_word():
    assert HfxDecoderConfig(num_hidden_layers=20_000, hidden_size=64, num_attention_heads=2).num_hidden_layers == 20_000


def test_a_tower_in_another_configuration_counts_too():
    with pytest.raises(ValueError, match="num_hidden_layers"):
        check_saved_sizes({"model_type": "llava", "text_config": {"num_hidden_layers": 10**7}})
    deep = {}
    for _ in range(50):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="deep"):
        check_saved_sizes(deep)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2},
        {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_experts": 8,
            "moe_intermediate_size": 128,
        },
        {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "mlp_type": "plain",
            "hidden_act": "gelu",
        },
        {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "position_embedding_type": "learned"},
    ],
)
def test_the_bound_is_one(sizes):
    """At most what a model of these sizes has, and not far below."""
    config = HfxDecoderConfig(vocab_size=1000, tie_word_embeddings=True, **sizes)
    total = count_parameters(config).total
    assert 0.5 * total < least_parameters(config.to_dict()) <= total


@pytest.mark.parametrize(
    ("billions", "fields"),
    [
        (405, {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128}),
        (
            671,
            {
                "hidden_size": 7168,
                "intermediate_size": 18432,
                "moe_intermediate_size": 2048,
                "n_routed_experts": 256,
                "num_hidden_layers": 61,
                "num_attention_heads": 128,
                "v_head_dim": 128,
            },
        ),
    ],
)
def test_the_largest_that_have_been_published_pass(billions, fields):
    check_saved_sizes({"vocab_size": 128_256, **fields})
    assert least_parameters({"vocab_size": 128_256, **fields}) < billions * 1e9 < MAX_PARAMETERS
