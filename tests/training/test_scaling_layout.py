"""Layouts over accelerators: formulas by hand, what must hold of any plan, and what is refused in one line."""

import pytest

from hf_ext import HfxDecoderConfig
from hf_ext.training.scaling import count_parameters
from hf_ext.training.scaling.communication import (
    data_parallel_bytes,
    ring_share,
    sequence_parallel_bytes,
    tensor_parallel_bytes,
)
from hf_ext.training.scaling.layout import CLUSTERS, USABLE, plan_layout, tensor_parallel_slice


CONFIG = HfxDecoderConfig(
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
)


def test_what_is_sent_by_hand():
    assert ring_share(4) == 0.75
    sent = [data_parallel_bytes(100, 200, zero_stage=stage, ranks=4, passes=3) for stage in range(4)]
    assert sent == [300, 225, 525, 900]  # 0.75 of 2 * 200; 200 + 100; 3 * 200 + 100; 3 * (2 * 100 + 200)
    output, logits = 2 * 16 * 64 * 2, 2 * 16 * 1000 * 2
    options = {"rows": 2, "length": 16, "ranks": 2, "itemsize": 2}
    assert tensor_parallel_bytes(CONFIG, **options) == 0.5 * (2 * output * (3 * 2 * 2 + 2) + logits)
    more = tensor_parallel_bytes(CONFIG, **options, checkpointing=True) - tensor_parallel_bytes(CONFIG, **options)
    assert more == 0.5 * 2 * output * 3 * 2  # each block's two outputs once more
    assert sequence_parallel_bytes(CONFIG, **options) == 2 * 0.5 * (2 * 8 * 2) * (2 * 8 + 2 * 4) * 8 * 3


def test_a_rank_s_slice():
    parts = count_parameters(tensor_parallel_slice(CONFIG, 2))
    norms = (2 * 3 + 1) * 64
    assert 2 * (parts.total - norms) + norms == count_parameters(CONFIG).total
    with pytest.raises(ValueError, match="num_key_value_heads=4: can't be split over 8 ranks; choose a divisor of it"):
        tensor_parallel_slice(CONFIG, 8)


def test_more_accelerators_are_no_slower_and_hold_no_more():
    config = HfxDecoderConfig(num_hidden_layers=4, hidden_size=1024, num_attention_heads=8, num_key_value_heads=2)
    seconds = []
    for accelerators in (1, 8, 64):
        found = plan_layout(config, accelerators=accelerators, length=1024, tokens_per_step=2**17)
        assert found
        assert [layout.seconds for layout in found] == sorted(layout.seconds for layout in found)
        for layout in found:
            asked = layout.arrangement
            assert asked.data * asked.tensor == accelerators
            assert layout.tokens == 2**17
            assert layout.held <= USABLE * CLUSTERS["h100"].memory
            assert 0 < layout.utilization <= 0.5
            assert (layout.sent_tensor > 0) == (asked.tensor > 1)
            assert (layout.sent_data > 0) == (asked.data > 1)
        seconds.append(found[0].seconds)
    assert seconds == sorted(seconds, reverse=True)


def test_what_is_too_large_has_no_layout():
    config = HfxDecoderConfig(num_hidden_layers=16, hidden_size=16_384, num_attention_heads=128)
    assert count_parameters(config).total > 40e9
    assert plan_layout(config, accelerators=1, length=1024, tokens_per_step=2**17) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "abacus"}, "accelerator='abacus': must be one of a100, h100"),
        ({"utilization": 2}, "utilization=2: must be above 0 and at most 1"),
        ({"accelerators": 0}, "accelerators=0: must be a number above 0"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan_layout(CONFIG, **{"accelerators": 1, **options})
