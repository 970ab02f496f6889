"""What a process took: CPU time that was spent, energy by the formula, a GPU's own counter by NVIDIA's interface."""

import time

import pytest
import torch

from hf_ext.training.run_cost import CostMeter, GpuCounter, RunCost


def test_cpu_time_is_what_was_computed_and_not_what_was_waited():
    meter = CostMeter()
    time.sleep(0.2)
    waited = meter.read()
    assert waited.seconds >= 0.2
    assert waited.cpu_seconds < 0.15
    begun = time.process_time()
    while time.process_time() < begun + 0.3:
        pass
    computed = meter.read()
    assert computed.cpu_seconds - waited.cpu_seconds == pytest.approx(0.3, abs=0.1)  # the system counts in hundredths
    assert computed.memory_bytes > 50e6  # torch alone is more
    assert (computed.gpu_joules is None) == (not torch.cuda.is_available())


def test_energy_is_the_formula():
    cost = RunCost(seconds=100.0, cpu_seconds=150.0, memory_bytes=2_000_000_000)
    assert cost.processor_joules == 150 * 12
    assert cost.memory_joules == pytest.approx(2 * 0.3725 * 100)
    assert cost.watt_hours == pytest.approx((1800 + 74.5) / 3600)
    assert RunCost(0.0, 0.0, 0, gpu_joules=7200.0).watt_hours == 2.0


class FakeLibrary:
    """NVIDIA's calls as C has them: 0 for success, results through pointers."""

    def __init__(self, known: bytes, millijoules: int | None):
        self.known, self.millijoules = known, millijoules

    def nvmlDeviceGetHandleByUUID(self, uuid, pointer):  # noqa: N802
        if uuid != self.known:
            return 6
        pointer._obj.value = 77
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, pointer):  # noqa: N802
        if self.millijoules is None:
            return 3
        assert handle.value == 77
        pointer._obj.value = self.millijoules
        return 0


def test_a_gpus_counter_is_read_in_joules():
    assert GpuCounter(FakeLibrary(b"GPU-1", 12_345), "GPU-1").joules() == 12.345
    assert GpuCounter(FakeLibrary(b"GPU-1", 12_345), "GPU-2").joules() is None
    assert GpuCounter(FakeLibrary(b"GPU-1", None), "GPU-1").joules() is None


@pytest.mark.gpu
def test_a_real_gpu_counts_more_while_it_computes():
    meter = CostMeter()
    matrix = torch.rand(4096, 4096, device="cuda")
    begun = time.monotonic()
    while time.monotonic() < begun + 1:
        matrix @ matrix
        torch.cuda.synchronize()
    assert meter.read().gpu_joules > 10
