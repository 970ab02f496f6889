"""`use_liger_kernel=True`: Liger's own kernels in our models give our numbers, and what they don't compute stays ours.

Without a CUDA device they run under Triton's interpreter.
"""

import logging
import subprocess
import sys

import pytest
import torch
from models.grid import ALL_FAMILIES, LOGITS, assert_same, gradients, padded


pytest.importorskip("triton", reason="triton is not installed")
from models.liger_interpreted import DEVICE, liger  # noqa: F401  a fixture
from transformers import Trainer, TrainingArguments
from transformers.integrations.liger import apply_liger_kernel

from hf_ext.models.liger_kernels import apply_liger_kernels, liger_linear_cross_entropy
from hf_ext.ops.cross_entropy import linear_cross_entropy
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.trainer import HfxTrainer


LOSS_OPTIONS = {"label_smoothing": 0.1, "z_loss_weight": 1e-3}
# what Liger's gradient of the loss is summed in, and rounded to, is fp32 in both
FP32 = {"atol": 1e-5, "rtol": 1e-4}
# family, options -> what is Liger's, what stays ours
CASES = {
    "SwiGLU": (
        "decoder",
        {"num_key_value_heads": 2},
        "2 GatedActivation(silu), 5 RMSNorm, 2 Rotation, 1 linear cross-entropy",
        "none",
    ),
    # the norm's output is added to the stream: a gradient that is written over that of the output would be wrong
    "GeGLU, unit offsets, sandwich, softcap": (
        "decoder",
        {
            "block_type": "sandwich",
            "norm_type": "rmsnorm_unit_offset",
            "hidden_act": "gelu_pytorch_tanh",
            "final_logit_softcapping": 3.0,
        },
        "2 GatedActivation(gelu_pytorch_tanh), 2 Rotation, 9 UnitOffsetRMSNorm, 1 linear cross-entropy",
        "none",
    ),
    "exact GELU, interleaved": (
        "decoder",
        {"hidden_act": "gelu", "rope_interleave": True},
        "5 RMSNorm, 1 linear cross-entropy",
        "2 GatedActivation(gelu), 2 Rotation",
    ),
    "encoder, layer norms without bias": (
        "encoder",
        {"norm_type": "layernorm", "norm_bias": False},
        "2 GatedActivation(silu), 2 Rotation, 1 linear cross-entropy",
        "LayerNorm",
    ),
    "encoder-decoder, layer norms": (
        "encoder-decoder",
        {"encoder_layers": 2, "norm_type": "layernorm", "norm_bias": True},
        "LayerNorm",
        "none",
    ),
}


@pytest.mark.parametrize(("family", "options", "taken", "kept"), CASES.values(), ids=CASES)
def test_the_number_is_ours(family, options, taken, kept, liger, caplog):  # noqa: F811
    entry = ALL_FAMILIES[family]
    model = entry.make("text", "eager", **{"mlp_type": "gated", "hidden_act": "silu", **options}).to(DEVICE).train()
    batch = {name: value.to(DEVICE) for name, value in padded(entry.documents(lengths=(7, 5))).items()}
    losses, found = [], []
    for prepare in (lambda: None, lambda: apply_liger_kernel(model, None)):
        with caplog.at_level(logging.INFO, logger="hf_ext.models.liger_kernels"):
            prepare()
        losses.append(model(**batch, **LOSS_OPTIONS).loss)
        losses[-1].backward()
        found.append(gradients(model))
    torch.testing.assert_close(*losses, **FP32)
    assert_same(found[1], found[0])
    (told,) = [record.message for record in caplog.records if "Liger computes" in record.message]
    computed, ours = told.partition("Liger computes ")[2].split("; ours stay ")
    assert taken in computed
    assert kept in ours


def test_dropout_and_parts_of_heads_stay(liger):  # noqa: F811
    """Neither Liger's feed-forward nor its rotation on the Hub has them."""
    model = ALL_FAMILIES["decoder"].make(
        "text", "eager", activation_dropout=0.5, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}
    )
    ids = torch.arange(3, 10, device=DEVICE)[None]
    outputs = []
    for prepare in (lambda: None, lambda: apply_liger_kernels(model=model)):
        prepare()
        torch.manual_seed(0)
        outputs.append(model.to(DEVICE).train()(ids).logits)
    torch.testing.assert_close(*outputs, **LOGITS)


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "num_items_in_batch": 5, **LOSS_OPTIONS}], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_loss(options, with_bias, liger):  # noqa: F811
    generator = torch.Generator().manual_seed(0)
    shapes = [(11, 12), (37, 12), (37,)][: 3 if with_bias else 2]
    tensors = [torch.randn(shape, generator=generator).to(DEVICE).requires_grad_() for shape in shapes]
    labels = torch.randint(37, (11,), generator=generator).to(DEVICE)
    labels[2] = -100
    results = []
    for loss in (linear_cross_entropy, liger_linear_cross_entropy):
        value = loss(*tensors[:2], labels, bias=tensors[2] if with_bias else None, **options)
        results.append((value, *torch.autograd.grad(3 * value, tensors)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **FP32)


def rows():
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 97, (4, 6)).tolist()]


@pytest.mark.parametrize(
    ("trainer_class", "arguments_class"), [(Trainer, TrainingArguments), (HfxTrainer, HfxTrainingArguments)]
)
def test_trainers(trainer_class, arguments_class, liger, tmp_path):  # noqa: F811
    """The same training with and without, and evaluation after it; the stock Trainer and ours."""
    torch.manual_seed(0)
    data, losses = rows(), []
    for use_liger_kernel in (False, True):
        trainer = trainer_class(
            model=ALL_FAMILIES["decoder"].make("text"),
            args=arguments_class(
                output_dir=tmp_path,
                max_steps=2,
                use_cpu=DEVICE == "cpu",
                use_liger_kernel=use_liger_kernel,
                save_strategy="no",
                prediction_loss_only=True,
                disable_tqdm=True,
                report_to="none",
            ),
            train_dataset=data,
            eval_dataset=data,
        )
        losses.append((trainer.train().training_loss, trainer.evaluate()["eval_loss"]))
        model = trainer.model
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] > losses[0][1]
    assert model.linear_cross_entropy is liger_linear_cross_entropy


@pytest.mark.parametrize("family", ["decoder", "encoder"])
@torch.no_grad()
def test_a_head_without_a_vocabulary_takes_what_the_trainer_adds(family):
    """With use_liger_kernel it asks every model for a loss without logits."""
    model = ALL_FAMILIES[family].make("sequence")
    batch = padded(ALL_FAMILIES[family].documents("sequence"))
    assert torch.equal(model(**batch, skip_logits=True).loss, model(**batch).loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "our models take its kernels once they are made"),
        ({"model": torch.nn.Identity(), "cross_entropy": True}, "cross_entropy=True is a loss of whole logits"),
    ],
    ids=str,
)
def test_what_can_not_be(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        apply_liger_kernels(**options)
    assert "\n" not in str(caught.value)


def test_without_a_device_it_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="use_liger_kernel=True: no CUDA device here"):
        apply_liger_kernels(model=torch.nn.Identity())


def test_import_leaves_liger_alone():
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    script = """
import sys, hf_ext
assert not [name for name in sys.modules if name.startswith("liger_kernel")]
from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as table
assert {"hfx_decoder", "hfx_encoder", "hfx_encoder_decoder", "llama"} <= set(table)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
