"""Which of two twins computes a hot path: torch's operations, or one Triton kernel. Chosen by name, told once.

HF_EXT_KERNELS is "auto" (Triton on CUDA devices), "torch" (never) or "triton" (wherever it runs, on a CPU by its
interpreter); `kernels` overrides it for a while.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch

from hf_ext.ops.fake_tensors import has_values


logger = logging.getLogger(__name__)
CHOICES = ("auto", "torch", "triton")
_overridden: list[str] = []


@contextmanager
def kernels(choice: str) -> Iterator[None]:
    """Within it `choice` holds, whatever the environment says.

    Raises:
        ValueError: no such choice.
    """
    _overridden.append(_checked(choice))
    try:
        yield
    finally:
        _overridden.pop()


def triton_missing() -> str | None:
    """Why Triton's kernels can't run here, in a few words; None where they can."""
    if not find_spec("triton"):
        return "triton is not installed"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET", "0") != "1":
        return "no CUDA device here"
    return None


def takes_triton(*tensors: torch.Tensor | None) -> bool:
    """Whether a Triton kernel computes what these tensors go into, all of one dtype that it knows.

    Never where a compiler or a transform looks on, which want to see the operations: `torch.compile` fuses them itself.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    choice = _overridden[-1] if _overridden else _checked(os.environ.get("HF_EXT_KERNELS", "auto"))
    present = [tensor for tensor in tensors if tensor is not None]
    if choice == "torch" or (choice == "auto" and present[0].device.type != "cuda"):
        return False
    if torch._C._len_torch_dispatch_stack() or not all(map(has_values, present)):
        return False
    dtypes = {tensor.dtype for tensor in present}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float16, torch.bfloat16}:
        return False
    missing = triton_missing()
    _tell(choice, missing)
    return missing is None


def _checked(choice: str) -> str:
    if choice not in CHOICES:
        raise ValueError(f"HF_EXT_KERNELS={choice!r}: must be one of {', '.join(CHOICES)}")
    return choice


@cache
def _tell(choice: str, missing: str | None) -> None:
    runs = "Triton" if missing is None else f"torch, for {missing}"
    logger.info("norms, rotary, gated activations, cross-entropy: kernels by %s (HF_EXT_KERNELS=%s)", runs, choice)
