"""What a process took: wall-clock and CPU seconds, memory, and its energy, of which CPUs' is an estimate.

    E = CPU seconds · 12 W  +  peak memory · 0.3725 W/GB · seconds  +  what the GPU has counted

The form is that of Lannelongue et al. 2021, "Green Algorithms", doi 10.1002/advs.202100707: cores in use, times the power of
a core, plus memory by its size, here without the factor for a data centre's cooling. 12 W a busy core is an assumption:
processors are sold with 4 W (large servers') to 16 W a core. A GPU's energy is measured, by the counter that NVIDIA's driver
keeps; what else computes on that GPU is in it.
"""

import ctypes
import os
import resource
import sys
import time
from dataclasses import dataclass

import torch


WATTS_A_CORE = 12.0
WATTS_A_GIGABYTE = 0.3725  # of memory
JOULES_A_WATT_HOUR = 3600.0


@dataclass(frozen=True)
class RunCost:
    """What was taken since a `CostMeter` began.

    Attributes:
        seconds: of wall clock. cpu_seconds: of this process, all threads and both user and system time, and of its processes
            that have ended.
        memory_bytes: the most that was resident in this process, since it began.
        gpu_joules: what its GPU has counted; None without a GPU, or where it doesn't count.
    """

    seconds: float
    cpu_seconds: float
    memory_bytes: int
    gpu_joules: float | None = None

    @property
    def processor_joules(self) -> float:
        """Estimated."""
        return self.cpu_seconds * WATTS_A_CORE

    @property
    def memory_joules(self) -> float:
        """Estimated."""
        return self.memory_bytes / 1e9 * WATTS_A_GIGABYTE * self.seconds

    @property
    def watt_hours(self) -> float:
        """All three."""
        return (self.processor_joules + self.memory_joules + (self.gpu_joules or 0.0)) / JOULES_A_WATT_HOUR


class CostMeter:
    """Counts from when it is made."""

    def __init__(self):
        self._gpu = GpuCounter.of_current_device()
        self._seconds, self._cpu_seconds = time.monotonic(), _cpu_seconds()
        self._joules = None if self._gpu is None else self._gpu.joules()

    def read(self) -> RunCost:
        return RunCost(
            seconds=time.monotonic() - self._seconds,
            cpu_seconds=_cpu_seconds() - self._cpu_seconds,
            memory_bytes=_peak_memory(),
            gpu_joules=None if self._joules is None else self._gpu.joules() - self._joules,
        )


class GpuCounter:
    """The energy counter of one NVIDIA GPU, Volta or newer.

    Args:
        library: NVIDIA's management library, initialized. uuid: of the GPU, as CUDA and the library agree on it.
    """

    def __init__(self, library, uuid: str):
        self.library = library
        self.handle = ctypes.c_void_p()
        self.is_there = library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(self.handle)) == 0

    @classmethod
    def of_current_device(cls) -> "GpuCounter | None":
        """None without CUDA, or without NVIDIA's library, which comes with its driver."""
        if not torch.cuda.is_available():
            return None
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return None
        if library.nvmlInit_v2() != 0:
            return None
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        return cls(library, f"GPU-{uuid}")

    def joules(self) -> float | None:
        """Since the driver was loaded; None where this GPU doesn't count."""
        counted = ctypes.c_ulonglong()  # millijoules
        if not self.is_there or self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(counted)):
            return None
        return counted.value / 1000


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kilobytes elsewhere
