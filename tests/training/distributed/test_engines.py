"""Every engine trains as one process does: the same losses, gradient norms and weights, step by step.

python -m pytest -s tests/training/distributed/test_engines.py      prints the tables
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training.distributed import engines
from training.distributed.ranks import run_ranks


# fp32 sums in another order, carried through a few steps of Adam
FP32_LOSS, FP32_WEIGHT = 1e-5, 1e-4
# bf16 has 8 bits: products, and what DeepSpeed keeps of weights, are rounded to 1 in 256
BF16_LOSS = 1e-2

ENGINES = ["ddp", "fsdp2", "tp"]
SHORT = [*ENGINES, "fsdp2 resume", "tp resume"]
LONG = [f"{engine} {option}" for engine in ENGINES for option in ("bf16", "checkpointing", "best")] + [
    "ddp",
    "ddp resume",
]
FOUR = ["ddp", "fsdp2", *(f"tp_fsdp2{option}" for option in ("", " bf16", " checkpointing", " resume", " best"))]


def compare(folder: Path, names: list[str], ranks: int) -> None:
    """One process against each engine on `ranks` of them; prints the losses."""
    start = folder / "start"
    engines.make_start(start)
    found = run_ranks("engines.py", {"folder": str(folder), "start": str(start), "engines": names}, ranks=ranks)
    steps = "".join(f"  loss {i + 1}" for i in range(engines.STEPS))
    print(f"\n{ranks} ranks{'':21}{steps}   by at most      weights")
    whole = {}
    for name in names:
        option = name.partition(" ")[2]
        model = option if option in ("tied", "resize", "best") else ""
        if model not in whole:
            alone = engines.train("one", model, folder / f"one_{model}", start, 1)
            whole[model] = alone, load_file(folder / f"one_{model}" / "model.safetensors")
            print(f"{f'one process {model}':28}" + "".join(f"{loss:8.4f}" for loss in alone["losses"]))
        alone, weights = whole[model]
        here = found[0][name]
        saved = load_file(folder / name.replace(" ", "_") / "model.safetensors")
        assert saved.keys() == weights.keys(), name
        loss = max(abs(a - b) for a, b in zip(here["losses"], alone["losses"], strict=True))
        weight = max(float((saved[k].float() - weights[k]).abs().max()) for k in weights)
        print(f"{name:28}" + "".join(f"{value:8.4f}" for value in here["losses"]) + f"{loss:13.1e}{weight:13.1e}")
        is_bf16 = name.endswith("bf16")
        assert all(rank[name]["losses"] == here["losses"] for rank in found), name
        assert loss < (BF16_LOSS if is_bf16 else FP32_LOSS), name
        assert loss > FP32_LOSS or not is_bf16, name  # else it is fp32
        assert here["checkpointing"] == name.endswith("checkpointing"), name
        assert here["eval_loss"] == pytest.approx(alone["eval_loss"], abs=BF16_LOSS if is_bf16 else FP32_LOSS), name
        if not is_bf16:
            assert here["norms"] == pytest.approx(alone["norms"], rel=1e-4), name
            assert weight < FP32_WEIGHT, name
        undisturbed = folder / name.removesuffix(" resume") / "model.safetensors"
        if name.endswith(" resume") and undisturbed.exists():
            assert_same_bits(saved, load_file(undisturbed), name)
        assert here["split"] == name.startswith(("fsdp2", "tp", "zero3", "autotp")), name


def assert_same_bits(saved: dict, expected: dict, name: str) -> None:
    differ = [key for key, weight in expected.items() if not torch.equal(saved[key], weight)]
    assert not differ, f"{name}: {differ}"


@pytest.mark.heavy
def test_two_ranks_train_as_one_process(tmp_path):
    compare(tmp_path, SHORT, ranks=2)


@pytest.mark.heavy
@pytest.mark.full
def test_mixed_precision_checkpointing_and_resume(tmp_path):
    compare(tmp_path, LONG, ranks=2)


@pytest.mark.heavy
@pytest.mark.full
def test_two_by_two_ranks(tmp_path):
    compare(tmp_path, FOUR, ranks=4)
