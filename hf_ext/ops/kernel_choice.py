"""Which of two twins computes a hot path: torch's operations, or one Triton kernel. Chosen by name, told once.

HF_EXT_KERNELS is "torch" (the default) or "triton" (for the tensors that the kernels take, on a CPU by Triton's
interpreter); `kernels` overrides it for a while.

There is no "auto": the kernels pass their tests under the interpreter and compile for sm_90, but they have not run on a GPU
yet. What nobody has run there is taken by name only; a choice by itself needs a measurement first.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from hf_ext.ops.fake_tensors import has_values


logger = logging.getLogger(__name__)
CHOICES = ("torch", "triton")
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
    here = Path(__file__)
    # a copy of this file, as a model's own code, has no kernels beside it; in a repository of kernels it has
    if not (here.with_name("triton").is_dir() or here.with_name("triton_norms.py").is_file()):
        return "the kernels come with hf_ext, which is not installed"
    if not find_spec("triton"):
        return "triton is not installed"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET", "0") != "1":
        return "no CUDA device here"
    return None


def takes_triton(*tensors: torch.Tensor | None) -> bool:
    """Whether a Triton kernel computes what these tensors go into: it was chosen, and they are all of one dtype that it
    knows, where it can reach them.

    Never where a compiler or a transform looks on, which want to see the operations: `torch.compile` fuses them itself.

    Raises:
        ValueError: Triton was chosen and can't run here at all.
    """
    if _is_watched():
        return False
    choice = _overridden[-1] if _overridden else _checked(os.environ.get("HF_EXT_KERNELS", "torch"))
    if choice == "torch":
        return False
    if not _are_real(tensors):
        return False
    missing = triton_missing()
    if missing is not None:
        raise ValueError(f"HF_EXT_KERNELS='triton': {missing}; choose torch")
    if not kernels_reach(*tensors):
        return False
    _tell()
    return True


def kernels_reach(*tensors: torch.Tensor | None) -> bool:
    """Whether a kernel can compute what these tensors go into: they have values, of one dtype that kernels know, on the
    device where kernels run, and neither a compiler nor a transform looks on."""
    if _is_watched() or not _are_real(tensors):
        return False
    present = [tensor for tensor in tensors if tensor is not None]
    interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
    if not (interpreted or all(tensor.is_cuda for tensor in present)):
        return False
    dtypes = {tensor.dtype for tensor in present}
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.float16, torch.bfloat16}


def _is_watched() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def _are_real(tensors: tuple[torch.Tensor | None, ...]) -> bool:
    return not torch._C._len_torch_dispatch_stack() and all(has_values(x) for x in tensors if x is not None)


def _checked(choice: str) -> str:
    if choice not in CHOICES:
        raise ValueError(f"HF_EXT_KERNELS={choice!r}: must be one of {', '.join(CHOICES)}")
    return choice


@cache
def _tell() -> None:
    logger.info("norms, rotary, gated activations, experts, cross-entropy: kernels by Triton, as chosen by name")
