"""Every engine trains as one process does: the same losses, gradient norms and weights, step by step.

python -m pytest -s tests/training/distributed/test_engines.py      prints the tables
"""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from training.distributed import engines
from training.distributed.ranks import run_ranks


# fp32 sums in another order, carried through a few steps of Adam
FP32_LOSS, FP32_WEIGHT = 1e-5, 1e-4
# bf16 has 8 bits: products, and what DeepSpeed keeps of weights, are rounded to 1 in 256
BF16_LOSS = 1e-2

SHORT = ["ddp", "fsdp2", "tp"]
LONG = [f"{engine} {option}" for engine in SHORT for option in ("bf16", "checkpointing")] + ["ddp resume"]


def compare(folder: Path, names: list[str], ranks: int) -> None:
    """One process against each engine on `ranks` of them; prints the losses."""
    start = folder / "start"
    engines.make_start(start)
    found = run_ranks("engines.py", {"folder": str(folder), "start": str(start), "engines": names}, ranks=ranks)
    print(
        f"\n{ranks} ranks{'':14}" + "".join(f"  loss {i + 1}" for i in range(engines.STEPS)) + "   by at most  weights"
    )
    whole = {}
    for name in names:
        option = name.partition(" ")[2]
        model = option if option in ("tied", "resize") else ""
        if model not in whole:
            alone = engines.train("one", model, folder / f"one_{model}", start, 1)
            whole[model] = alone, load_file(folder / f"one_{model}" / "model.safetensors")
            print(f"{f'one process {model}':20}" + "".join(f"{loss:8.4f}" for loss in alone["losses"]))
        alone, weights = whole[model]
        here = found[0][name]
        saved = load_file(folder / name.replace(" ", "_") / "model.safetensors")
        assert saved.keys() == weights.keys(), name
        loss = max(abs(a - b) for a, b in zip(here["losses"], alone["losses"], strict=True))
        weight = max(float((saved[k].float() - weights[k]).abs().max()) for k in weights)
        print(f"{name:20}" + "".join(f"{value:8.4f}" for value in here["losses"]) + f"{loss:13.1e}{weight:13.1e}")
        is_bf16 = name.endswith("bf16")
        assert all(rank[name]["losses"] == here["losses"] for rank in found), name
        assert loss < (BF16_LOSS if is_bf16 else FP32_LOSS), name
        assert here["eval_loss"] == pytest.approx(alone["eval_loss"], abs=BF16_LOSS if is_bf16 else FP32_LOSS), name
        if not is_bf16:
            assert here["norms"] == pytest.approx(alone["norms"], rel=1e-4), name
            assert weight < FP32_WEIGHT, name
        assert here["split"] == name.startswith(("fsdp2", "tp", "zero3", "autotp")), name


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
    compare(tmp_path, ["ddp", "fsdp2", "tp_fsdp2"], ranks=4)
