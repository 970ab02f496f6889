"""The machine by its parts, never by its name."""

import socket

from hf_ext.training.hardware import describe_hardware


def test_parts_and_sizes_without_a_name():
    found = describe_hardware(num_processes=3)
    assert found["processes"] == "3"
    assert "hardware threads usable" in found["processor"]
    assert float(found["memory"].removesuffix(" GB")) > 0.5
    assert socket.gethostname() not in str(found)
    assert "processes" not in describe_hardware()
