"""DeepSpeed's ZeRO 1, 2, 3 and offload train as one process does; what it saves is whole again.

python -m pytest -s tests/training/distributed/test_zero.py      prints the tables
"""

from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from training.distributed.test_engines import FP32_WEIGHT, compare

from hf_ext.training.deepspeed_ops import is_built


STAGES = ["zero1", "zero2", "zero3", "zero3_offload"]
SHORT = ["zero2", "zero3 resize"]
LONG = [f"{stage}{option}" for stage in STAGES for option in ("", " bf16", " checkpointing", " resume")]
AUTOTP = [f"autotp{option}" for option in ("", " bf16", " checkpointing", " resume")]

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed; `make setup` does it"),
    pytest.mark.skipif(
        not is_built("deepspeed_shm_comm"),
        reason="DeepSpeed's operator is not built; python -m hf_ext.training.deepspeed_ops",
    ),
]


def test_two_ranks_train_as_one_process(tmp_path):
    compare(tmp_path, SHORT, ranks=2)
    check_checkpoint(tmp_path / "zero3_resize")


@pytest.mark.full
def test_every_stage_with_every_option(tmp_path):
    compare(tmp_path, [*LONG, "zero3 tied", *AUTOTP], ranks=2)
    check_checkpoint(tmp_path / "zero3")


def check_checkpoint(folder) -> None:
    """Its parts, put together by DeepSpeed's own script, are the weights that were gathered and saved after it."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    whole = load_file(folder / "model.safetensors")
    again = get_fp32_state_dict_from_zero_checkpoint(str(folder / "checkpoint-4"))
    for name, weight in whole.items():
        torch.testing.assert_close(again[name], weight, atol=FP32_WEIGHT, rtol=0)
