"""Two processes decide as one: the same batches by tokens, the same average, and the same steps left out."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch


# fp32: gradients added up by the processes or by accumulation
FP32 = {"atol": 1e-6, "rtol": 1e-5}
TESTS = Path(__file__).parents[1]

RUN = """
import json, sys, torch
from training.test_length_grouped_batches import make_trainer, rows_of_tokens
from hf_ext.training.non_finite import NonFiniteError

folder, arguments, poisoned = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
trainer = make_trainer(folder, data=rows_of_tokens(48), optim="sgd", ema_decay=0.9, **arguments)
compute_loss = trainer.compute_loss
def poison(*args, **kwargs):  # on one process alone
    bad = trainer.args.process_index == 1 and trainer.state.global_step in poisoned
    return compute_loss(*args, **kwargs) * (float("nan") if bad else 1.0)
trainer.compute_loss = poison
try:
    trainer.train()
    error = None
except NonFiniteError as caught:
    error = str(caught)
index = trainer.args.process_index
torch.save({"weights": trainer.model.state_dict(), "error": error, "step": trainer.state.global_step,
            "batches": len(trainer._token_sampler), "skipped": trainer._guard.num_skipped}, f"{folder}/found{index}.pt")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(folder: Path, num_processes: int, poisoned=(), **arguments) -> list[dict]:
    """What each process found."""
    folder.mkdir()
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    shared = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_processes)}
    if num_processes > 1:
        arguments["ddp_backend"] = "gloo"
    command = [sys.executable, "-c", RUN, str(folder), json.dumps(arguments), json.dumps(list(poisoned))]
    processes = []
    for rank in range(num_processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {}
        env = {**shared, **ranks}
        if num_processes == 1:
            env.pop("WORLD_SIZE")
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
    return [torch.load(folder / f"found{rank}.pt", weights_only=True) for rank in range(num_processes)]


def assert_same(a: dict, b: dict, **tolerances) -> None:
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, **tolerances)


@pytest.mark.heavy
def test_two_processes_are_one_that_accumulates(tmp_path):
    (whole,) = run(tmp_path / "one", 1, max_steps=8, gradient_accumulation_steps=2, tokens_per_batch=48)
    assert whole["batches"] % 2 == 0  # else two processes halve a batch more
    first, second = run(tmp_path / "two", 2, max_steps=8, tokens_per_batch=48)
    assert first["batches"] == second["batches"] == whole["batches"] // 2 < 8  # into the second epoch
    assert_same(first["weights"], second["weights"], atol=0, rtol=0)
    assert_same(whole["weights"], first["weights"], **FP32)


@pytest.mark.heavy
def test_a_loss_that_is_not_finite_on_one_process_counts_on_all(tmp_path):
    first, second = run(tmp_path / "skipped", 2, poisoned=(1, 2, 4), max_steps=6)
    assert first["error"] is second["error"] is None
    assert (first["skipped"], second["skipped"]) == (3, 3)
    assert_same(first["weights"], second["weights"], atol=0, rtol=0)
    assert all(value.isfinite().all() for value in first["weights"].values())
    first, second = run(tmp_path / "stopped", 2, poisoned=(1, 2, 3), max_steps=6)
    assert first["error"] == second["error"]
    assert first["error"].startswith("step 4: the loss was not finite, 3 times in a row")
