"""Several processes for a test: started at once on gloo, waited for, and ended together where one fails."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(**more: str) -> dict[str, str]:
    """This process's, without what a launcher of it may have left; threads enough for one rank."""
    left = ("ACCELERATE_", "PARALLELISM_CONFIG_", "FSDP_", "TORCHELASTIC_", "DEEPSPEED_")
    ours = {k: v for k, v in os.environ.items() if not k.startswith(left)}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        ours.pop(name, None)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), ours.get("PYTHONPATH", "")])
    return ours | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


def run_ranks(script: str, arguments: dict, *, ranks: int, timeout: float = 400) -> list[dict]:
    """What each of `ranks` processes of a script beside this file found: the JSON it writes to the path that it is given.

    Args:
        script: called as `script ARGUMENTS FOLDER`. arguments: a mapping that JSON can hold, with the key "folder".
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    shared["LOCAL_WORLD_SIZE"] = str(ranks)
    command = [sys.executable, str(HERE / script), json.dumps(arguments)]
    logs = [Path(arguments["folder"]) / f"rank{rank}.log" for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            environment = clean_environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank))
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
                )
            )
    wait_for(processes, logs, timeout)
    return [json.loads((Path(arguments["folder"]) / f"found{rank}.json").read_text()) for rank in range(ranks)]


def wait_for(processes: list[subprocess.Popen], logs: list[Path], timeout: float) -> None:
    """Until all are done; one that fails, or the time, ends all of them and the test."""
    deadline = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in processes):
            failed = [i for i, process in enumerate(processes) if process.poll() not in (None, 0)]
            assert not failed, f"rank {failed[0]} failed: {logs[failed[0]].read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"after {timeout} s: {logs[0].read_text()[-3000:]}"
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    failed = [i for i, process in enumerate(processes) if process.returncode]
    assert not failed, f"rank {failed[0]} failed: {logs[failed[0]].read_text()[-3000:]}"


def write_found(folder: str, found: dict) -> None:
    """What this rank found, for `run_ranks`."""
    (Path(folder) / f"found{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
