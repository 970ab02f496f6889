"""optimum-intel on our models, in its own environment (`make test-intel`): torch's logits, torch's text, fewer bits."""

import subprocess
import sys
from pathlib import Path

import optimum.intel
import pytest
import torch
from models.grid import ALL_FAMILIES, padded, scores, tokens
from optimum.exporters.tasks import TasksManager
from optimum.intel import OVModelForCausalLM, OVModelForSeq2SeqLM, OVWeightQuantizationConfig

from hf_ext.export.tasks import tasks_of
from hf_ext.models import HfxEncoderForMultipleChoice
from hf_ext.registry import FAMILIES


# fp32 by other kernels: sums of some hundred numbers of order 10, in another order
CLOSE = {"atol": 5e-5, "rtol": 1e-5}
# what rounding the weights of these models, ten times as large as usual, may move their logits by, over their spread
MOVED = {8: 0.15, 4: 1.0}
EXACT = {"EXECUTION_MODE_HINT": "ACCURACY"}
LENGTHS = (17, 9, 11)  # the graphs are traced with two rows of sixteen

DECODERS = (
    "llama",
    "local and global, softcaps, unit offset norms, scaled embeddings",
    "attention sinks, sliding window",
    "learned positions",
    "latent, queries too, interleaved",
    "shared experts, sigmoid scores, balance bias, first layer dense",
)
ENCODER_DECODERS = ("BART: learned positions", "T5: relative, scaled output, untied")
BERT = "BERT: segments, learned positions, post-norm, biases"
MODERN_BERT = "ModernBERT: local and global, no first norm, mean, head on tokens"
HEADS = (
    ("encoder", "body", MODERN_BERT, "FeatureExtraction"),
    ("encoder", "text", BERT, "MaskedLM"),
    ("encoder", "sequence", BERT, "SequenceClassification"),
    ("encoder", "token", MODERN_BERT, "TokenClassification"),
    ("encoder", "question", BERT, "QuestionAnswering"),
    ("decoder", "sequence", "llama", "SequenceClassification"),
    ("encoder-decoder", "sequence", "rope", "SequenceClassification"),
    ("encoder-decoder", "question", "rope", "QuestionAnswering"),
)


def made(family: str, head: str, name: str, folder: Path):
    """A model, saved."""
    model = ALL_FAMILIES[family].make(head, **ALL_FAMILIES[family].variants[name])
    model.save_pretrained(folder)
    return model


def rows(side: str) -> dict[str, torch.Tensor]:
    return padded([{"input_ids": tokens(B=1, T=n, seed=n)[0]} for n in LENGTHS], side)


def assert_same_text(exported, model, **batch) -> None:
    for options in ({}, {"num_beams": 3}):
        asked = {"max_new_tokens": 8, "do_sample": False, **batch, **options}
        assert torch.equal(exported.generate(**asked), model.generate(**asked)), options


def test_every_head_has_its_task():
    for config_class in FAMILIES:
        known = TasksManager.get_supported_tasks_for_model_type(
            config_class.model_type, "openvino", library_name="transformers"
        )
        assert {task.removesuffix("-with-past") for task in known} == set(tasks_of(config_class))


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_decoders_write_the_same(name, tmp_path):
    model = made("decoder", "text", name, tmp_path)
    exported = OVModelForCausalLM.from_pretrained(tmp_path, export=True, ov_config=EXACT)
    batch = rows("left")
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(exported(**batch).logits[real], model(**batch).logits[real], **CLOSE)
    assert_same_text(exported, model, **batch)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@torch.no_grad()
def test_encoder_decoders_write_the_same(name, tmp_path):
    model = made("encoder-decoder", "text", name, tmp_path)
    exported = OVModelForSeq2SeqLM.from_pretrained(tmp_path, export=True, ov_config=EXACT)
    batch, target = rows("right"), tokens(B=len(LENGTHS), T=7)
    got = exported(**batch, decoder_input_ids=target).logits
    torch.testing.assert_close(got, model(**batch, decoder_input_ids=target).logits, **CLOSE)
    assert_same_text(exported, model, **batch)


@pytest.mark.parametrize(("family", "head", "name", "class_name"), HEADS)
@torch.no_grad()
def test_heads_say_the_same(family, head, name, class_name, tmp_path):
    model = made(family, head, name, tmp_path)
    exported_class = getattr(optimum.intel, f"OVModelFor{class_name}")
    exported = exported_class.from_pretrained(tmp_path, export=True, ov_config=EXACT)
    batch = rows("right")
    if getattr(model.config, "type_vocab_size", 0):
        batch["token_type_ids"] = batch["input_ids"] % 2
    got, expected = scores(exported(**batch)), scores(model(**batch))
    if got.shape[:2] == batch["input_ids"].shape:
        got, expected = (said[batch["attention_mask"].bool()] for said in (got, expected))
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_fewer_bits(bits, tmp_path):
    model = made("decoder", "text", "llama", tmp_path)
    options = {"sym": False} if bits == 8 else {"sym": False, "group_size": 16, "ratio": 1.0}
    exported = OVModelForCausalLM.from_pretrained(
        tmp_path, export=True, ov_config=EXACT, quantization_config=OVWeightQuantizationConfig(bits=bits, **options)
    )
    batch = rows("left")
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits[real]
    error = (exported(**batch).logits[real] - expected).std() / expected.std()
    assert 1e-3 < error < MOVED[bits]
    kinds = {str(op.get_element_type()) for op in exported.model.get_ops() if op.get_type_name() == "Constant"}
    assert any(f"int{bits}" in kind for kind in kinds), kinds


@torch.no_grad()
def test_on_the_command_line(tmp_path):
    """Nobody imports hf_ext there."""
    ids = torch.stack([tokens(B=2, T=9, seed=seed) for seed in range(3)])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": ids % 2}
    model = made("encoder", "choice", BERT, tmp_path / "model")
    assert isinstance(model, HfxEncoderForMultipleChoice)
    command = [Path(sys.executable).parent / "optimum-cli", "export", "openvino", "--model", tmp_path / "model"]
    command += ["--task", "multiple-choice", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    exported = optimum.intel.OVModelForCustomTasks.from_pretrained(tmp_path / "out", ov_config=EXACT)
    torch.testing.assert_close(exported(**batch).logits, model(**batch).logits, **CLOSE)


def test_a_cache_that_would_be_wrong_is_refused(tmp_path):
    made("decoder", "text", "dynamic", tmp_path)
    with pytest.raises(ValueError, match=r"rope_type='dynamic' turns all keys anew .*use_cache=False"):
        OVModelForCausalLM.from_pretrained(tmp_path, export=True)


@torch.no_grad()
def test_models_are_left_as_they_were(tmp_path):
    """Tracing changes attention, experts and signatures, and puts them back."""
    constructor = TasksManager.get_exporter_config_constructor(
        "openvino", task="text-classification", model_type="hfx_encoder", library_name="transformers"
    )
    model = ALL_FAMILIES["encoder"].make("sequence", "hfx_tiled", **ALL_FAMILIES["encoder"].variants[BERT])
    batch = rows("right")
    before = model(**batch).logits
    with constructor(model.config).patch_model_for_export(model):
        assert model.config._attn_implementation == "sdpa"
        assert not model.config.padding_free
    assert model.config._attn_implementation == "hfx_tiled"
    assert model.config.padding_free
    assert "forward" not in vars(model)
    torch.testing.assert_close(model(**batch).logits, before, rtol=0, atol=0)
