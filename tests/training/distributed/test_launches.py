"""The recipes under the launchers that users have: accelerate's files, torchrun with a rank that dies, two nodes."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from training.distributed.ranks import ROOT, clean_environment, free_port

from hf_ext.training.deepspeed_ops import is_built


SCRIPT, RECIPE = "recipes/pretraining/train.py", "recipes/pretraining/debug.yaml"
FILES = sorted(path.stem for path in (ROOT / "recipes" / "accelerate").glob("*.yaml"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


def options(output: Path, **more) -> list[str]:
    given = {
        "output_dir": output,
        "use_cpu": "true",
        "max_steps": 6,
        "eval_steps": 3,
        "save_steps": 3,
        "warmup_steps": 0,
    }
    return [word for name, value in (given | more).items() for word in (f"--training.{name}", str(value))]


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        # else a new start finds the addresses of the processes that were (torch 2.13)
        env=clean_environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout: float = 400) -> str:
    """What it printed; its whole session ends with it."""
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        raise AssertionError(f"after {timeout} s: {printed[-3000:]}") from None
    return printed


def succeed(command: list[str], timeout: float = 400) -> str:
    process = start(command)
    printed = finish(process, timeout)
    assert process.returncode == 0, printed[-3000:]
    return printed


def check_run(output: Path, printed: str) -> None:
    assert f"everything is in {output.name}, the folder of training.output_dir" in printed
    assert json.loads((output / "all_results.json").read_text())["eval_loss"] < 6.3  # ln 512 = 6.24 at first
    assert (output / "model.safetensors").is_file()
    assert not list(output.glob(".whole*"))


def test_files_name_what_there_is():
    for path in (ROOT / "recipes" / "accelerate").glob("*.yaml"):
        launch = yaml.safe_load(path.read_text())
        if launch["distributed_type"] == "DEEPSPEED":
            assert (ROOT / launch["deepspeed_config"]["deepspeed_config_file"]).is_file()


@pytest.mark.heavy
@pytest.mark.full
@pytest.mark.parametrize("name", FILES)
def test_accelerate_runs_a_recipe(name, tmp_path):
    if name.startswith(("zero", "autotp")) and not (find_spec("deepspeed") and is_built("deepspeed_shm_comm")):
        pytest.skip("DeepSpeed or its operator is not there; python -m hf_ext.training.deepspeed_ops")
    command = [*ACCELERATE, "--config_file", f"recipes/accelerate/{name}.yaml", "--num_processes", "2", SCRIPT, RECIPE]
    check_run(tmp_path / "run", succeed([*command, *options(tmp_path / "run")]))


@pytest.mark.heavy
def test_accelerate_on_cpu_that_starts_one_process_is_refused(tmp_path):
    command = [*ACCELERATE, "--cpu", "--num_processes", "2", SCRIPT, RECIPE, *options(tmp_path / "run")]
    process = start(command)
    printed = finish(process)
    assert process.returncode != 0
    assert "error: MASTER_ADDR=127.0.0.1: accelerate was asked for several processes and has started one" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.heavy
@pytest.mark.full
def test_a_killed_rank_and_two_nodes(tmp_path):
    """torchrun starts all ranks again, which go on from the last checkpoint: the same weights, bit by bit. So have two
    launchers that find each other by a rendezvous."""
    succeed([*TORCHRUN, "--standalone", "--nproc-per-node=2", SCRIPT, RECIPE, *options(tmp_path / "whole")])
    whole = load_file(tmp_path / "whole" / "model.safetensors")

    killed = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    killed += [
        "tests/training/distributed/killed_once.py",
        tmp_path / "marker",
        "4",
        SCRIPT,
        RECIPE,
        "--resume",
        "auto",
    ]
    printed = succeed([*killed, *options(tmp_path / "killed")])
    assert (tmp_path / "marker").exists()
    assert "going on from checkpoint-3 (3 steps done)" in printed
    again = load_file(tmp_path / "killed" / "model.safetensors")
    assert all(bool((again[name] == weight).all()) for name, weight in whole.items())

    rendezvous = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    node = [*TORCHRUN, *rendezvous, "--rdzv-id=nodes", SCRIPT, RECIPE, *options(tmp_path / "nodes")]
    nodes = [start(node), start(node)]
    printed = [finish(process) for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], printed[0][-2000:] + printed[1][-2000:]
    apart = load_file(tmp_path / "nodes" / "model.safetensors")
    assert all(bool((apart[name] == weight).all()) for name, weight in whole.items())
