"""Lets Liger's kernels run under Triton's interpreter, which hands floats over as Python's and has no libdevice.

Where there is a CUDA device nothing is changed.
"""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def rsqrt(x):
    return 1.0 / tl.sqrt(x)


@triton.jit
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@pytest.fixture
def liger(monkeypatch):
    """The package, able to run here."""
    package = pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    if DEVICE == "cpu":
        from liger_kernel.ops import cross_entropy, geglu, layer_norm, rms_norm
        from triton.runtime import interpreter

        converted = interpreter._implicit_cvt

        def with_floats(argument):
            if not isinstance(argument, float):
                return converted(argument)
            handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)

        monkeypatch.setattr(interpreter, "_implicit_cvt", with_floats)
        for module in (rms_norm, layer_norm):
            monkeypatch.setattr(module, "rsqrt", rsqrt)
        for module in (geglu, cross_entropy):
            monkeypatch.setattr(module, "tanh", tanh)
    return package
