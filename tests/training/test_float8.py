"""Training with 8-bit products, emulated: what is kept are plain weights, and a fresh process computes the same."""

import math
from functools import partial

import pytest
import torch
from models.decoder_grid import make_model, tokens

from hf_ext.layers.linear import Linear
from hf_ext.models import HfxDecoderForCausalLM
from hf_ext.tasks.run import trained_model
from hf_ext.training import arguments, float8, trainer
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.trainer import HfxTrainer


pytest.importorskip("torchao", reason="torchao isn't installed: pip install 'hf-ext[torchao]'")

from torchao.float8.float8_linear import Float8Linear


ROWS = [{"input_ids": row, "labels": row} for row in tokens(B=8, T=16).tolist()]


def train(folder, monkeypatch, **options) -> HfxTrainer:
    """Four steps in fp8, on a processor without it."""
    monkeypatch.setattr(arguments, "_check_fp8", lambda args: None)
    monkeypatch.setattr(trainer, "float8_handlers", partial(float8.float8_handlers, emulate=True))
    args = HfxTrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=4, save_steps=2, report_to="none", learning_rate=1e-2, fp8=True
    )
    made = HfxTrainer(model=make_model(**options).train(), args=args, train_dataset=ROWS)
    made.train()
    return made


def eight_bit_layers(model) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, Float8Linear)]


@pytest.mark.parametrize(
    "options", [{}, {"attention_bias": True, "tie_word_embeddings": True}], ids=["", "biases, tied"]
)
def test_what_is_saved_computes_the_same(options, tmp_path, monkeypatch):
    done = train(tmp_path, monkeypatch, **options)
    assert eight_bit_layers(done.model)
    assert math.isfinite(done.state.log_history[-1]["train_loss"])
    done.save_model()
    kept = trained_model(done)
    assert not eight_bit_layers(kept)
    for folder in (tmp_path, tmp_path / "checkpoint-4"):
        loaded = HfxDecoderForCausalLM.from_pretrained(folder)
        assert torch.equal(loaded(tokens()).logits, kept(tokens()).logits)


def test_products_come_back_over_the_same_weights():
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    model = torch.nn.Sequential(Linear(16, 32), torch.nn.Sequential(Linear(32, 16, bias=False)))
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    convert_to_float8_training(model, config=Float8LinearConfig(emulate=True))
    x = torch.randn(16, 16)
    rounded = model(x)
    assert len(eight_bit_layers(model)) == 2
    float8.plain_products(model)
    assert not eight_bit_layers(model)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert not torch.equal(rounded, model(x))  # 3 bits of mantissa
    torch.testing.assert_close(rounded, model(x), atol=0.3, rtol=0.1)


def test_without_torchao_there_is_nothing_to_hand_over(monkeypatch):
    monkeypatch.setattr(float8, "find_spec", lambda name: None)
    assert float8.float8_handlers(gathers_float8=False) == []
