"""The estimate of a step's memory against what torch's allocator gave for the step, part by part, in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, Qwen3MoeConfig

from hf_ext import HfxDecoderConfig
from hf_ext.training.scaling import estimate_memory
from hf_ext.training.scaling.fake_model import fake_tensors
from hf_ext.training.scaling.memory import PRECISIONS, optimizer_state_bytes


STEP = Path(__file__).with_name("scaling_step.py")
# what operators take and give back is seen for our cross-entropy only, and by estimate
TOLERANCE = 0.10
# saved for the backward pass: the same tensors, but for a mask's scalar or so
ACTIVATIONS = 1e-3
# the state of the random generator, which checkpointing keeps of each block and no fake has: 5,056 bytes, 8 blocks
RANDOM_STATES = 8 * 5056

SIZES = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
DECODER = {"model_type": "hfx_decoder", **SIZES}
ROWS = {"batch_size": 4, "length": 128}
STEPS = {
    "decoder": (DECODER, {}),
    "decoder, checkpointing, muon": (DECODER, {"checkpointing": True, "optimizer": "muon"}),
    "encoder, bf16": ({"model_type": "hfx_encoder", **SIZES}, {"precision": "bf16"}),
    "encoder-decoder": ({"model_type": "hfx_encoder_decoder", **SIZES}, {"source_length": 96}),
}
MORE_STEPS = {
    "decoder, LoRA": (DECODER, {"lora": {"r": 4}}),
    "decoder, LoRA, checkpointing": (DECODER, {"lora": {"r": 4}, "checkpointing": True}),
    "decoder, bf16 autocast": (DECODER, {"precision": "bf16_autocast"}),
    "decoder, tiled": (DECODER | {"attn_logit_softcapping": 30.0}, {}),
    "decoder, window, grouped heads": (
        DECODER | {"sliding_window": 32, "num_key_value_heads": 2, "qk_norm": "head"},
        {},
    ),
    "decoder, latent": (DECODER | {"attention_type": "latent"}, {}),
    "decoder, experts": (DECODER | {"num_experts": 4, "num_nextn_predict_layers": 1}, {"optimizer": "muon"}),
    "decoder, dropout": (DECODER | {"attention_dropout": 0.1, "hidden_dropout": 0.1}, {}),
    "encoder, checkpointing": ({"model_type": "hfx_encoder", **SIZES}, {"checkpointing": True}),
    "encoder-decoder, relative, bf16": (
        {"model_type": "hfx_encoder_decoder", **SIZES, "position_embedding_type": "relative"},
        {"precision": "bf16"},
    ),
    "encoder-decoder, checkpointing, muon": (
        {"model_type": "hfx_encoder_decoder", **SIZES},
        {"checkpointing": True, "optimizer": "muon"},
    ),
    "transformers' Llama": (
        {"model_type": "llama", "intermediate_size": 256, **SIZES},
        {"checkpointing": True},
    ),
    "transformers' GPT-2": ({"model_type": "gpt2", "vocab_size": 4096, "n_embd": 128, "n_layer": 4, "n_head": 4}, {}),
    "transformers' T5": (
        {
            "model_type": "t5",
            "vocab_size": 4096,
            "d_model": 128,
            "d_kv": 32,
            "d_ff": 512,
            "num_layers": 4,
            "num_heads": 4,
        }
        | {"decoder_start_token_id": 0},
        {},
    ),
}


def check_steps(cases: dict) -> None:
    steps = [(fields, ROWS | options) for fields, options in cases.values()]
    done = subprocess.run([sys.executable, str(STEP), json.dumps(steps)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, (fields, options), real in zip(
        cases, steps, json.loads(done.stdout.strip().splitlines()[-1]), strict=True
    ):
        config = AutoConfig.for_model(fields["model_type"], **{k: v for k, v in fields.items() if k != "model_type"})
        if "lora" in options:
            options = options | {"adapter": pytest.importorskip("peft").LoraConfig(**options["lora"])}
        guess = estimate_memory(config, **{k: v for k, v in options.items() if k != "lora"})
        print(f"\n{name:40} {'estimated':>12} {'allocated':>12}")
        for part in ("weights", "gradients", "optimizer", "activations", "peak"):
            print(f"{part:40} {getattr(guess, part):12,} {real[part]:12,} {getattr(guess, part) / real[part] - 1:+.2%}")
        print(f"{'resident, with libraries':40} {'':12} {real['resident']:12,}")
        for part in ("weights", "gradients", "optimizer"):
            assert getattr(guess, part) == real[part], (name, part)
        states = RANDOM_STATES if options.get("checkpointing") else 0
        assert guess.activations == pytest.approx(real["activations"], rel=ACTIVATIONS, abs=states), name
        assert guess.peak == pytest.approx(real["peak"], rel=TOLERANCE), name


@pytest.mark.heavy
def test_a_step_takes_what_was_estimated():
    check_steps(STEPS)


@pytest.mark.heavy
@pytest.mark.full
def test_further_steps_take_what_was_estimated():
    check_steps(MORE_STEPS)


def decoder(**options) -> HfxDecoderConfig:
    return HfxDecoderConfig(**SIZES | options)


def estimate(config=None, **options):
    return estimate_memory(config or decoder(), **ROWS | options)


def test_stages_of_sharding():
    whole, N = estimate(), 8
    by_stage = [estimate(zero_stage=stage, ranks=N) for stage in range(4)]
    assert by_stage[0] == whole
    for stage, guess in enumerate(by_stage):
        for part, from_stage in (("optimizer", 1), ("gradients", 2), ("weights", 3)):
            expected = getattr(whole, part) / (N if stage >= from_stage else 1)
            assert getattr(guess, part) == pytest.approx(expected, abs=1), (stage, part)
        assert guess.activations == whole.activations
    peaks = [guess.peak for guess in by_stage]
    assert peaks[0] > peaks[1] >= peaks[2] - by_stage[2].gathered
    # a block of this model is small beside its embeddings, of which two are gathered
    assert by_stage[3].gathered == 3 * 4 * SIZES["vocab_size"] * SIZES["hidden_size"]
    assert estimate(zero_stage=3, ranks=1).peak == whole.peak


def test_precisions():
    parts = {name: estimate(precision=name) for name in PRECISIONS}
    fp32 = parts["fp32"]
    assert 2 * parts["bf16"].optimizer == pytest.approx(fp32.optimizer, rel=1e-3)  # the steps stay fp32
    assert 2 * parts["bf16"].gradients == fp32.gradients
    for name in ("bf16_autocast", "fp16_autocast"):
        assert parts[name].weights == fp32.weights
        assert parts[name].activations < fp32.activations
    for name in ("bf16_master", "fp16_master"):
        assert parts[name].optimizer == fp32.optimizer
        assert parts[name].master == fp32.gradients
        assert parts[name].weights < 0.6 * fp32.weights


def test_optimizers_keep_what_they_say():
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 8))
    N, float32 = sum(p.numel() for p in model.parameters()), torch.float32
    assert optimizer_state_bytes(model, "sgd", float32) == 0
    assert optimizer_state_bytes(model, "sgd_momentum", float32) == 4 * N
    assert optimizer_state_bytes(model, "adamw", float32) == 8 * N + 4 * 4
    small, big = 512 + 8, 256 * 512 + 512 * 8  # the 512 * 8 is as large as the smallest that is quantized
    assert optimizer_state_bytes(model, "adamw_8bit", float32) == 2 * (4 * small + big + 4 * big // 256)
    assert optimizer_state_bytes(model, "adafactor", float32) == 4 * (4 + 256 + 512 + 512 + 512 + 8 + 8)


def test_accumulation_keeps_gradients_beside_the_activations():
    once, twice = estimate(), estimate(accumulation_steps=2)
    assert twice.peak >= once.weights + once.optimizer + once.gradients + once.activations
    assert twice.peak > once.peak


def test_adapters_train_little():
    peft = pytest.importorskip("peft")
    whole = estimate()
    lora = estimate(adapter=peft.LoraConfig(r=4, task_type="CAUSAL_LM"))
    of_lora = 4 * 4 * 4 * (2 * 128 + 2 * 128)  # bytes, layers, rank, two matrices: q_proj and v_proj
    assert lora.gradients == of_lora
    assert lora.weights == whole.weights + of_lora
    assert lora.peak < whole.peak
    assert estimate(adapter=peft.LoraConfig(r=4), checkpointing=True).activations < lora.activations


def test_large_models_take_no_memory():
    config = LlamaConfig(num_hidden_layers=4, hidden_size=8192, intermediate_size=28672, num_attention_heads=64)
    guess = estimate_memory(config, batch_size=4, length=1024, precision="bf16", checkpointing=True)
    assert guess.weights > 6e9


def test_the_mode_leaves_nothing_behind():
    from transformers import masking_utils

    before = masking_utils.find_packed_sequence_indices
    with pytest.raises(ValueError, match="looks at values"), fake_tensors():
        torch.zeros(3).sum().item()
    assert masking_utils.find_packed_sequence_indices is before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be a whole number of at least 1"),
        ({"length": 513}, "length=513: longer than max_position_embeddings=512"),
        ({"ranks": 1.5}, "ranks=1.5: must be a whole number"),
        ({"optimizer": "adam"}, "optimizer='adam': must be one of adamw"),
        ({"precision": "fp8"}, "precision='fp8': must be one of fp32"),
        ({"zero_stage": 4}, "zero_stage=4: must be 0, 1, 2 or 3"),
        ({"zero_stage": 1, "optimizer": "muon"}, "zero_stage=1: splits matrices, which muon needs whole"),
        ({"head": "masked"}, "head='masked': HfxDecoderConfig has causal, "),
        (
            {"config": Qwen3MoeConfig(num_hidden_layers=1)},
            "precision: this model's experts call grouped products",
        ),
        ({"head": "clm"}, "head='clm': must be one of sequence_to_sequence"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        estimate(**options)
    assert "\n" not in str(error.value)
