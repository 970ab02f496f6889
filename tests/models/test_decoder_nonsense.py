"""Nonsense is refused in one line that names field, value, rule and remedy."""

import pytest
import torch
from models.decoder_grid import make_config, make_model, tokens

from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 30}, "num_attention_heads=4: must divide hidden_size=30; change one of them or set head_dim"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3: must divide num_attention_heads=4; use 1 "),
        ({"hidden_size": 0}, "hidden_size=0: must be at least 1"),
        ({"vocab_size": -5}, "vocab_size=-5: must be at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0: must be at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads=0: must be at least 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0: must be at least 1"),
        ({"head_dim": -8}, "head_dim=-8: must be at least 1"),
        ({"intermediate_size": 0}, "intermediate_size=0: must be at least 1"),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0: must be at least 1"),
        ({"head_dim": 7}, "rotary"),
        ({"rope_parameters": {"rope_type": "linaer", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.4}}, "rotary"),
        ({"block_type": "prenorm"}, "block_type='prenorm': must be one of .*did you mean 'pre_norm'"),
        ({"norm_type": "rms"}, "norm_type='rms': must be one of rmsnorm, "),
        ({"mlp_type": "gate"}, "mlp_type='gate': must be one of .*did you mean 'gated'"),
        ({"hidden_act": "swish"}, "hidden_act='swish': must be one of"),
        ({"qk_norm": "heads"}, "qk_norm='heads': must be one of .*did you mean 'head'"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type='rotary': must be one of"),
        ({"attention_dropout": 1.0}, "attention_dropout=1.0: must be at least 0 and below 1"),
        ({"hidden_dropout": -0.1}, "hidden_dropout=-0.1"),
        ({"norm_eps": 0.0}, "norm_eps=0.0: must be above 0"),
        ({"norm_eps": float("nan")}, "norm_eps=nan: must be above 0"),
        ({"initializer_range": float("inf")}, "initializer_range=inf: must be at least 0, and finite"),
        ({"final_logit_softcapping": float("nan")}, "final_logit_softcapping=nan: must be above 0"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters=.*factor"),
        (
            {"position_embedding_type": "none", "rope_parameters": {"rope_theta": 5.0}},
            "rope_parameters=.*has no effect",
        ),
        ({"initializer_range": -1.0}, "initializer_range=-1.0"),
        ({"final_logit_softcapping": 0.0}, "final_logit_softcapping=0.0: must be above 0"),
        ({"pad_token_id": 97}, r"pad_token_id=97: must be None or a token of the vocabulary 0..96"),
        ({"eos_token_id": [1, 200]}, "eos_token_id=200"),
        ({"layer_types": ["full_attention"]}, "layer_types: 1 names for num_hidden_layers=2; give one a layer"),
        ({"layer_types": ["full", "full"]}, "layer_types='full': must be one of full_attention, sliding_attention"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding_window=None: must be given where layer_types has"),
        ({"layer_types": ["full_attention"] * 2, "sliding_window": 3}, "sliding_window=3: must be given where"),
        ({"sliding_window": 0}, "sliding_window=0: must be above 0"),
        ({"attn_logit_softcapping": -1.0}, "attn_logit_softcapping=-1.0: must be above 0"),
        (
            {"zero_init_residual": True, "block_type": "sandwich"},
            "zero_init_residual=True: block_type='sandwich' normalises each output",
        ),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0: must be above 0"),
    ],
    ids=str,
)
def test_config(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_config(**options)
    assert "\n" not in str(caught.value)


def test_wrong_type_names_the_field():
    from huggingface_hub.errors import StrictDataclassFieldValidationError

    with pytest.raises(StrictDataclassFieldValidationError, match="hidden_size"):
        make_config(hidden_size="wide")


def test_config_changed_afterwards_is_neither_saved_nor_built(tmp_path):
    config = make_config()
    config.num_key_value_heads = 3
    with pytest.raises(Exception, match="num_key_value_heads=3: must divide"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    mixed = make_config(sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    mixed.sliding_window = None
    with pytest.raises(ValueError, match="sliding_window=None: must be given where layer_types has") as caught:
        HfxDecoderForCausalLM(mixed)
    assert "\n" not in str(caught.value)


def test_window_and_layers_set_afterwards_are_not_without_effect(tmp_path):
    make_config().save_pretrained(tmp_path)
    for config in (make_config(), HfxDecoderConfig.from_pretrained(tmp_path, sliding_window=4)):
        config.sliding_window = 4
        config.num_hidden_layers = 3
        assert config.layer_types == ["sliding_attention"] * 3
        config.sliding_window = None
        assert config.layer_types == ["full_attention"] * 3
    model = HfxDecoderForCausalLM(HfxDecoderConfig.from_pretrained(tmp_path, sliding_window=4))
    assert [block.self_attn.sliding_window for block in model.model.layers] == [4, 4]
    mixed = ["sliding_attention", "full_attention"]
    config = make_config(sliding_window=4, layer_types=mixed)
    config.sliding_window = 5
    assert config.layer_types == mixed


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_ids": torch.tensor([[5, 97]])}, r"input_ids: token id 97 is outside the vocabulary 0..96"),
        ({"input_ids": torch.tensor([[5, -1]])}, "input_ids: token id -1 is outside"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, r"input_ids: shape \(2, 0\) holds no tokens"),
        ({}, "input_ids, inputs_embeds: exactly one"),
        ({"labels": torch.full((2, 13), 97)}, r"labels: 97 is outside the vocabulary 0..96"),
        ({"labels": torch.full((2, 13), -5)}, "labels: -5 is outside"),
        ({"labels": torch.full((2, 13), -100)}, "labels: .*-100"),
        ({"labels": torch.zeros(2, 12, dtype=torch.long)}, r"labels: shape \(2, 12\) must be that of the tokens"),
        ({"attention_mask": torch.tensor([[1] * 13, [0] * 13])}, "attention_mask: row 1 has no token"),
        ({"attention_mask": torch.ones(2, 9)}, "attention_mask: 9 columns for 13 tokens"),
        ({"attention_mask": torch.ones(2, 15)}, "attention_mask: 15 columns for 13 tokens"),
        ({"input_ids": torch.tensor([1, 2])}, r"input_ids: int64 of shape \(2,\), must be integers of shape"),
        ({"input_ids": torch.rand(2, 3)}, r"input_ids: float32 of shape \(2, 3\)"),
        ({"position_ids": torch.zeros(1, 4, dtype=torch.long)}, r"position_ids: shape \(1, 4\) for 13 tokens"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
@pytest.mark.parametrize("training", [True, False])
def test_forward(kwargs, message, training):
    model = make_model().train(training)
    if "input_ids" not in kwargs and kwargs:
        kwargs = {"input_ids": tokens(), **kwargs}
    with pytest.raises(ValueError, match=message) as caught:
        model(**kwargs)
    assert "\n" not in str(caught.value)


def test_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="hfx_tield"):
        make_model().set_attn_implementation("hfx_tield")


def test_attention_that_can_t_compute_the_config_is_refused_by_name():
    with pytest.raises(ValueError, match=r"attn_implementation='sdpa' does not support attn_logit_softcapping=2\.0"):
        make_model("sdpa", attn_logit_softcapping=2.0)
    model = make_model(None, attn_logit_softcapping=2.0)
    assert model.config._attn_implementation == "hfx_tiled"
    with pytest.raises(ValueError, match="attn_implementation='sdpa' does not support"):
        model.set_attn_implementation("sdpa")


def test_option_a_backend_would_ignore_is_refused():
    model = make_model("hfx_tiled")
    with pytest.raises(ValueError, match="attn_implementation='hfx_tiled' does not support head_mask"):
        model(tokens(), head_mask=torch.zeros(4))
    with pytest.raises(ValueError, match="attn_implementation='sdpa' does not support attention_sinks=True"):
        make_model("sdpa", attention_sinks=True)
