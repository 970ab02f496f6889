"""Save and reload: same checksum, same logits, buffers recomputed; another architecture's weights are refused."""

import hashlib

import pytest
import torch
from models.decoder_grid import VARIANTS, make_model, tokens
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import hf_ext  # noqa: F401  registers the Auto classes
from hf_ext.models import HfxDecoderForCausalLM, HfxDecoderModel


def checksum(model) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_reload_is_the_same_model(options, dtype, tmp_path):
    for tied in (False, True):
        for max_shard_size in ("5GB", "20KB"):
            folder = tmp_path / f"{tied}-{max_shard_size}"
            model = make_model(**{**options, "tie_word_embeddings": tied}).to(dtype)
            model.save_pretrained(folder, max_shard_size=max_shard_size)
            assert (folder / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")
            reloaded = AutoModelForCausalLM.from_pretrained(folder)
            assert type(reloaded) is HfxDecoderForCausalLM
            assert reloaded.dtype == dtype
            assert checksum(reloaded) == checksum(model)
            assert torch.equal(reloaded(tokens()).logits, model.eval()(tokens()).logits)
            shared = reloaded.lm_head.weight.data_ptr() == reloaded.model.embed_tokens.weight.data_ptr()
            assert shared == tied
            for (name, buffer), (_, other) in zip(model.named_buffers(), reloaded.named_buffers(), strict=True):
                assert buffer.dtype == other.dtype == torch.float32, name
                assert torch.equal(buffer, other), name


@torch.no_grad()
def test_body_and_config_through_the_auto_classes(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path)
    assert type(body) is HfxDecoderModel
    assert torch.equal(body(tokens()).last_hidden_state, model.model(tokens()).last_hidden_state)
    reread = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert reread.pop("_name_or_path") == str(tmp_path)
    assert reread == {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}
    # and a body alone becomes a language model only where that is asked for: its head would be new
    body.save_pretrained(tmp_path / "body")
    with_new_head = HfxDecoderForCausalLM.from_pretrained(tmp_path / "body")
    assert torch.equal(with_new_head.model.embed_tokens.weight, body.embed_tokens.weight)


def test_another_model_type_is_refused(tmp_path):
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48)).save_pretrained(tmp_path)
    for model_class in (HfxDecoderForCausalLM, HfxDecoderModel):
        with pytest.raises(ValueError, match=r"model_type 'llama'.*'hfx_decoder'"):
            model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("saved", "asked", "message"),
    [
        (
            {},
            {"qk_norm": "head"},
            r"4 of its weights are not there \(first: (model\.)?layers.0.self_attn.k_norm.weight\)",
        ),
        ({"qk_norm": "head"}, {}, r"4 weights there are not its own \(first: model.layers.0.self_attn.k_norm.weight\)"),
        ({}, {"num_hidden_layers": 3}, "9 of its weights are not there"),
        ({"num_hidden_layers": 3}, {}, "9 weights there are not its own"),
        ({}, {"mlp_type": "plain"}, "2 weights there are not its own"),
    ],
    ids=str,
)
def test_weights_that_don_t_match_the_config_are_refused(saved, asked, message, tmp_path):
    make_model(**saved).save_pretrained(tmp_path)
    config = make_model(**asked).config
    for model_class in (HfxDecoderForCausalLM, HfxDecoderModel):
        with pytest.raises(ValueError, match=message):
            model_class.from_pretrained(tmp_path, config=config)


def test_weights_of_another_size_are_refused(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match=r"size|mismatch"):
        HfxDecoderForCausalLM.from_pretrained(tmp_path, config=make_model(hidden_size=16).config)


def test_loading_info_is_still_given(tmp_path):
    make_model().save_pretrained(tmp_path)
    _, info = HfxDecoderForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_whoever_asks_for_the_loading_info_is_not_refused(tmp_path):
    make_model().save_pretrained(tmp_path)
    config = make_model(num_hidden_layers=3).config
    _, info = HfxDecoderForCausalLM.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert len(info["missing_keys"]) == 9


@torch.no_grad()
def test_other_sizes_start_anew_where_asked_for(tmp_path):
    saved = make_model(tie_word_embeddings=True)
    saved.save_pretrained(tmp_path)
    config = make_model(vocab_size=50, tie_word_embeddings=True).config
    for model_class in (HfxDecoderForCausalLM, HfxDecoderModel):
        model = model_class.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
        assert model.get_input_embeddings().weight.shape[0] == 50
        assert torch.equal(model.base_model.layers[0].mlp.up_proj.weight, saved.model.layers[0].mlp.up_proj.weight)
