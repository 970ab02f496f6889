"""What a run ran on, by what the system says of it: models and sizes, no names."""

import os
import platform
from pathlib import Path

import torch


def describe_hardware(num_processes: int = 1) -> dict[str, str]:
    """Name -> value, for a card.

    Args:
        num_processes: that trained together, each on a device of its own where there are GPUs.
    """
    found = {
        "processor": f"{_processor()}, {_usable_cores()} of {os.cpu_count()} hardware threads usable, "
        f"{torch.get_num_threads()} used by torch",
        "memory": f"{_memory_bytes() / 1e9:.1f} GB",
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        found["GPU"] = f"{num_processes} x {device.name}, {device.total_memory / 1e9:.1f} GB each"
    if num_processes > 1:
        found["processes"] = str(num_processes)
    return found


def _processor() -> str:
    """Its maker's name for it, else the instruction set."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
