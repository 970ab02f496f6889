"""A part under torch.export: which of its dims may have any size, and what transformers says meanwhile."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO

import torch
import transformers.integrations.moe  # noqa: F401  registers its grouped product

from hf_ext.export.parts import Part
from hf_ext.layers import mixture_of_experts


def dynamic_shapes(free: Mapping, sizes: Mapping[str, torch.export.Dim] | None = None) -> dict:
    """What torch.export calls it: nested as the part's inputs, dim -> any size.

    Args:
        free: see `Part`. sizes: by what they count, where they have bounds; torch.export tells then which are equal.
    """
    return {
        key: dynamic_shapes(inner, sizes)
        if isinstance(inner, Mapping)
        else (torch.export.Dim.DYNAMIC if sizes is None else sizes[inner])
        for key, inner in free.items()
    }


def exporter_arguments(part: Part, inputs: dict) -> tuple:
    """Module and inputs as transformers' exporters take them; they change what they are given."""
    return part.module, copy.deepcopy(inputs)


@contextmanager
def traceable_experts() -> Iterator[None]:
    """Our grouped product is an operator of our own, which no engine knows; for transformers' the exporters have one.

    Rows are sorted by their experts, and within one the order is nothing to the result: a stable sort, which the ONNX
    exporter fails on, becomes a plain one.
    """
    product, argsort = mixture_of_experts.grouped_matmul, torch.Tensor.argsort
    mixture_of_experts.grouped_matmul = _grouped_matmul
    torch.Tensor.argsort = lambda tensor, *dims, stable=False, **options: argsort(tensor, *dims, **options)
    try:
        yield
    finally:
        mixture_of_experts.grouped_matmul, torch.Tensor.argsort = product, argsort


def _grouped_matmul(x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """As `hf_ext.ops.grouped_matmul.grouped_matmul`."""
    return torch.ops.transformers.grouped_mm_fallback(x, weight.mT, offsets)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the progress and warnings that exporters print of how they work inside; errors are raised as ever."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
