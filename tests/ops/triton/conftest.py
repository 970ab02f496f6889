"""Triton's tests run the kernels themselves: compiled where there is a CUDA device, else as Python (TRITON_INTERPRET=1)."""

import pytest


pytest.importorskip("triton", reason="triton is not installed")
