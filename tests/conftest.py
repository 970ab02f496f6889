"""What every test stands on: no network, few threads, real data where it is at hand."""

import os
import re
from pathlib import Path

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch


if (
    not torch.cuda.is_available()
):  # Triton's kernels then run as Python; it asks when it is imported, and others import it
    os.environ.setdefault("TRITON_INTERPRET", "1")

from transformers import testing_utils


ROOT = Path(__file__).parents[1]


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
        torch.set_num_threads(1)
    if "TRANSFORMERS_TESTS" in os.environ:  # test_transformers_generic.py: its marks are declared nowhere else
        checkout = Path(os.environ["TRANSFORMERS_TESTS"])
        sources = [*checkout.glob("tests/*.py"), *checkout.glob("tests/*/test_*.py"), Path(testing_utils.__file__)]
        marks = {name for source in sources for name in re.findall(r"\bmark\.(\w+)", source.read_text())}
        for mark in sorted(marks):
            config.addinivalue_line("markers", f"{mark}: transformers' own")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets: $HF_EXT_DATA, or shared/data beside the project."""
    folder = Path(os.environ.get("HF_EXT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at hand: {folder.name} is not there, set HF_EXT_DATA")
    return folder
