"""What is refused about how to train before anything else happens, and what the stock arguments don't have."""

import pytest
import torch

from hf_ext.training import arguments
from hf_ext.training.arguments import HfxTrainingArguments


def test_a_push_is_private_unless_told_otherwise(tmp_path):
    assert HfxTrainingArguments(output_dir=str(tmp_path), use_cpu=True).hub_private_repo is True
    assert (
        HfxTrainingArguments(output_dir=str(tmp_path), use_cpu=True, hub_private_repo=False).hub_private_repo is False
    )


def test_trackers_by_name(tmp_path):
    assert HfxTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="tensorboard").report_to == [
        "tensorboard"
    ]
    with pytest.raises(ValueError, match=r"report_to='tensorbord': unknown or not installed; .*tensorboard"):
        HfxTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="tensorbord")


@pytest.mark.parametrize(
    ("capability", "given", "message"),
    [
        (None, {}, "there is no CUDA device; set bf16 instead"),
        ((8, 0), {}, r"this GPU has 8\.0; set bf16 instead"),
        ((9, 0), {"bf16": True}, "with bf16 too; choose one"),
    ],
)
def test_eight_bits_only_where_there_are_eight_bits(capability, given, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with pytest.raises(ValueError, match=message):
        HfxTrainingArguments(output_dir=str(tmp_path), use_cpu=True, fp8=True, **given)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_a_recipe_in_bf16_runs_on_a_cpu_too(tmp_path):
    given = HfxTrainingArguments(output_dir=str(tmp_path), bf16=True)
    assert given.device.type == "cpu"
    assert given.mixed_precision == "bf16"


def test_eight_bits_reach_accelerate(tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "_check_fp8", lambda args: None)
    given = HfxTrainingArguments(output_dir=str(tmp_path), use_cpu=True, fp8=True)
    assert given.mixed_precision == "fp8"
