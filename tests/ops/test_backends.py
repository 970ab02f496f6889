"""Masks as rules, and backends that refuse what they would otherwise ignore."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import hf_ext  # noqa: F401  registers the backends
from hf_ext.ops.backends import BACKENDS, eager_attention_forward, tiled_attention_forward, tiled_mask
from hf_ext.ops.mask_rule import MaskRule, mask_tile


def masks_of(attention_mask=None, position_ids=None, T=9, B=2):
    """The same mask for `hfx_tiled` and for `sdpa`, as transformers makes them."""
    found = []
    for name in ("hfx_tiled", "sdpa"):
        config = LlamaConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
        config._attn_implementation = name
        embeds = torch.zeros(B, T, 8)
        found.append(create_causal_mask(config, embeds, attention_mask, None, position_ids=position_ids))
    return found


def test_every_backend_is_registered_with_its_mask():
    for name, backend in BACKENDS.items():
        assert "flash" not in name  # transformers would take it for the flash-attn package
        assert ALL_ATTENTION_FUNCTIONS[name] is backend.attend
        assert ALL_MASK_ATTENTION_FUNCTIONS[name] is backend.mask


def test_rules_are_transformers_masks():
    left = torch.ones(2, 9, dtype=torch.long)
    left[0, :4] = 0
    packed = torch.cat([torch.arange(5), torch.arange(4)]).expand(2, 9)
    for arguments in ({"attention_mask": left}, {"position_ids": packed}):
        rule, dense = masks_of(**arguments)
        assert isinstance(rule, MaskRule)
        assert torch.equal(rule.dense(), dense)
        for tile in ((0, 4, 0, 9), (3, 9, 2, 5), (8, 9, 8, 9)):
            assert torch.equal(mask_tile(rule, *tile).expand(2, 1, -1, -1), mask_tile(dense, *tile))


def test_plain_causal_needs_no_mask():
    assert masks_of() == [None, None]
    assert masks_of(attention_mask=torch.ones(2, 9)) == [None, None]


def test_keys_beyond_the_padding_mask_are_not_visible():
    """A static cache of 6 slots, 3 of them filled, one query."""
    rule = tiled_mask(
        1, 1, 6, q_offset=3, mask_function=lambda b, h, q, k: k <= q, attention_mask=torch.ones(1, 4).bool()
    )
    assert rule.dense().flatten().tolist() == [True, True, True, True, False, False]


def test_offset_is_taken_when_the_mask_is_made():
    """A static cache counts on in place before attention asks the rule."""
    offset = torch.tensor(2)
    rule = tiled_mask(1, 1, 5, q_offset=offset, mask_function=lambda b, h, q, k: k <= q)
    offset += 1
    assert rule.dense().sum() == 3


@pytest.mark.parametrize("option", ["head_mask"])
@pytest.mark.parametrize("attend", [eager_attention_forward, tiled_attention_forward])
def test_options_are_not_ignored(option, attend):
    states = torch.zeros(1, 1, 3, 4)
    with pytest.raises(ValueError, match=f"does not support {option}"):
        attend(torch.nn.Module(), states, states, states, None, **{option: torch.zeros(1)})
