"""Ulysses: rows in parts on two and four processes give what they give whole, forward and backward."""

import pytest
from training.distributed.ranks import run_ranks

from hf_ext import HfxDecoderConfig, HfxDecoderForCausalLM
from hf_ext.ops.all_to_all import rows_group


# fp32 sums in another order
FP32 = 3e-6

CASES = [
    ("decoder", {}),
    ("decoder", {"num_key_value_heads": 1}),
    ("decoder", {"sliding_window": 5, "qk_norm": "head"}),
    ("decoder", {"attn_logit_softcapping": 5.0, "num_key_value_heads": 4}),
    ("decoder", {"attention_type": "latent", "num_key_value_heads": 4}),
    ("encoder", {"padding_free": False}),
]


def check(folder, ranks: int) -> None:
    for found in run_ranks("sequence_parts.py", {"folder": str(folder), "cases": CASES}, ranks=ranks):
        for case, figures in zip(CASES, found, strict=True):
            assert figures["logits"] < FP32, case
            assert figures["loss"] < FP32, case
            assert figures["gradients"] < FP32, case
            positions, padding = figures["refused"]
            assert positions.startswith("position_ids: part "), case
            assert padding == "attention_mask: hfx_ulysses takes rows without padding; pack them", case


@pytest.mark.heavy
def test_rows_in_two_parts(tmp_path):
    check(tmp_path, 2)


@pytest.mark.heavy
@pytest.mark.full
def test_rows_in_four_parts(tmp_path):
    check(tmp_path, 4)


def test_without_processes_it_is_refused():
    config = HfxDecoderConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=11)
    model = HfxDecoderForCausalLM(config)
    with pytest.raises(
        ValueError, match=r"^attn_implementation='hfx_ulysses': needs several processes; choose sdpa or"
    ):
        model.set_attn_implementation("hfx_ulysses")
    with pytest.raises(ValueError, match=r"no processes share rows; call the model in sharing_rows\(\)"):
        rows_group()
