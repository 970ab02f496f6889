"""What every test stands on: no network, few threads, real data where it is at hand."""

import os
from pathlib import Path

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch


ROOT = Path(__file__).parents[1]


def pytest_configure():
    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
        torch.set_num_threads(1)


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
