"""The states that the head is asked about are those that transformers' own function takes."""

import pytest
import torch
from transformers.modeling_utils import slice_logits_to_keep

from hf_ext.models.kept_tokens import keep_tokens


KEPT = {
    "all": 0,
    "the last": 1,
    "the last three": 3,
    "positions": torch.tensor([0, 4, 2]),
    "one position": torch.tensor([1]),
    "positions of each row": torch.tensor([[0, 4], [3, 1]]),
    "a mask": torch.tensor([[True, False, True, False, False], [False, True, True, True, False]]),
}


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_as_transformers_keeps_them(kept):
    states = torch.randn(2, 5, 3)
    assert torch.equal(keep_tokens(states, kept), slice_logits_to_keep(states, kept))
