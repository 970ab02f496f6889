"""A decoder's layers on two processes, one after the other: the logits and the text of the whole model."""

import pytest
from training.distributed.ranks import run_ranks


CASES = [{}, {"num_hidden_layers": 4, "qk_norm": "head", "num_experts": 4, "moe_intermediate_size": 16}]
LAYERS = [([0], [1, 2]), ([0, 1], [2, 3])]


@pytest.mark.heavy
@pytest.mark.full
def test_two_stages(tmp_path):
    by_rank = run_ranks("pipeline_stages.py", {"folder": str(tmp_path), "cases": CASES}, ranks=2)
    for rank, found in enumerate(by_rank):
        for case, layers in zip(found, LAYERS, strict=True):
            assert case["layers"] == layers[rank]
            assert case["logits"] == 0.0  # the same products in the same order
            assert case["text"] is True
            assert case["text uncached"] is True
