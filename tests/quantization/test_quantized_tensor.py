"""Integers and scales against the equations by hand, against optimum-quanto, and against torch's own fake quantization."""

import math

import pytest
import torch

from hf_ext.quantization import Quantization, quantization_error, quantize_tensor
from hf_ext.quantization.grouping import in_groups
from hf_ext.quantization.packed_bits import pack_bits, unpack_bits


EVERY = [
    Quantization(bits, scheme, granularity, 8 if granularity == "group" else None)
    for bits in (8, 4, 2)
    for scheme in ("absmax", "zero_point")
    for granularity in ("tensor", "channel", "group")
]


def weights(rows: int = 12, columns: int = 24, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) + shift


def test_absmax_by_hand():
    made = quantize_tensor(torch.tensor([[0.0, -1.27, 0.635, 0.004], [0.0, 0.0, 0.0, 0.0]]), Quantization())
    torch.testing.assert_close(made.scale, torch.tensor([[0.01], [1.0]]))
    assert made.integers.tolist() == [[0, -127, 64, 0], [0, 0, 0, 0]]  # 63.5 to the even one
    torch.testing.assert_close(made.dequantize()[0], torch.tensor([0.0, -1.27, 0.64, 0.0]))


def test_zero_point_by_hand():
    # from -1 to 2 in 3 steps of 1: zero is the integer 1
    made = quantize_tensor(torch.tensor([[-1.0, 0.4, 0.6, 2.0]]), Quantization(2, "zero_point"))
    assert (made.scale.item(), made.zero_point.item()) == (1.0, 1)
    assert made.unpacked().tolist() == [[0, 1, 2, 3]]
    assert made.dequantize().tolist() == [[-1.0, 0.0, 1.0, 2.0]]
    # 0b11100100: the first in the lowest bits
    assert made.integers.tolist() == [[0b11100100]]


@pytest.mark.parametrize("how", EVERY, ids=str)
def test_the_error_is_at_most_half_a_step(how):
    x = weights(shift=0.3)
    made = quantize_tensor(x, how)
    steps = in_groups(made.dequantize() - x, how.granularity, how.group_size).abs() / made.scale
    # of a zero point half a step more: it is rounded too, and what then falls off the end is cut
    assert 0.3 < steps.max() <= (0.5 if how.scheme == "absmax" else 1.0) + 1e-5
    assert made.shape == x.shape == made.dequantize().shape
    levels = made.unpacked()
    assert levels.max() - levels.min() <= 2**how.bits - 1
    twice = quantize_tensor(made.dequantize(), how)
    torch.testing.assert_close(twice.dequantize(), made.dequantize())


def test_zero_is_exact_whatever_the_range():
    x = weights(shift=5.0)  # far from zero
    x[:, 0] = 0
    for how in EVERY:
        assert (quantize_tensor(x, how).dequantize()[:, 0] == 0).all(), how


def test_finer_groups_and_more_bits_are_closer():
    x = weights()
    x[:, 3] *= 30  # an outlier in each row
    by_granularity = [
        quantization_error(x, quantize_tensor(x, Quantization(4, "absmax", g, s)).dequantize())["mse"]
        for g, s in (("tensor", None), ("channel", None), ("group", 8))
    ]
    assert by_granularity == sorted(by_granularity, reverse=True)
    by_bits = [quantization_error(x, quantize_tensor(x, Quantization(b)).dequantize())["sqnr"] for b in (2, 4, 8)]
    assert by_bits == sorted(by_bits)


def test_error_by_hand():
    error = quantization_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
    assert error["max"] == 1
    assert error["mse"] == 0.5
    assert error["sqnr"] == pytest.approx(10 * math.log10(12.5 / 0.5))
    assert quantization_error(torch.ones(2), torch.ones(2))["sqnr"] == math.inf


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("n", [1, 7, 8, 13])
def test_packed_bits_come_back(bits, n):
    q = torch.randint(0, 2**bits, (3, n), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    packed = pack_bits(q, bits)
    assert packed.shape == (3, math.ceil(n * bits / 8))
    assert torch.equal(unpack_bits(packed, bits, n), q)


def test_bytes():
    x = weights(64, 128)
    assert quantize_tensor(x, Quantization(8)).num_bytes == 64 * 128 + 64 * 4
    # two to a byte; a scale of 4 bytes and a zero point of one for each 32
    assert quantize_tensor(x, Quantization(4, "zero_point", "group", 32)).num_bytes == 64 * 128 // 2 + 64 * 4 * 5
    assert quantize_tensor(x, Quantization(2)).num_bytes == 64 * 128 // 4 + 64 * 4


@pytest.mark.parametrize("seed", range(3))
def test_int8_is_quantos(seed):
    from optimum.quanto import AbsmaxOptimizer, qint8
    from optimum.quanto.tensor import quantize_weight

    x = weights(32, 48, seed)
    scale = AbsmaxOptimizer()(x, qtype=qint8, axis=0)
    theirs = quantize_weight(x, qtype=qint8, axis=0, scale=scale)
    ours = quantize_tensor(x, Quantization())
    assert torch.equal(ours.scale, theirs._scale)
    assert torch.equal(ours.integers, theirs._data)
    assert torch.equal(ours.dequantize(), theirs.dequantize())


@pytest.mark.parametrize("bits", [2, 4])
def test_zero_point_by_group_is_quantos(bits):
    from optimum.quanto import MaxOptimizer, qint2, qint4
    from optimum.quanto.tensor import quantize_weight

    qtype, x = {2: qint2, 4: qint4}[bits], weights(8, 64)
    scale, shift = MaxOptimizer()(x, qtype=qtype, axis=0, group_size=16, zeropoint=True)
    theirs = quantize_weight(x, qtype=qtype, axis=0, scale=scale, shift=shift, group_size=16, optimized=False)
    ours = quantize_tensor(x, Quantization(bits, "zero_point", "group", 16))
    assert torch.equal(ours.scale.flatten(), scale.flatten())
    assert torch.equal(ours.zero_point.flatten(), shift.flatten())
    torch.testing.assert_close(ours.dequantize(), theirs.dequantize(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_torchs_fake_quantization(bits):
    x = weights(16, 40, shift=0.2)
    ours = quantize_tensor(x, Quantization(bits, "zero_point"))
    theirs = torch.fake_quantize_per_channel_affine(
        x, ours.scale.flatten(), ours.zero_point.flatten().int(), 0, 0, 2**bits - 1
    )
    torch.testing.assert_close(ours.dequantize(), theirs, atol=1e-6, rtol=1e-6)
    ours = quantize_tensor(x, Quantization(bits))
    theirs = torch.fake_quantize_per_channel_affine(
        x, ours.scale.flatten(), torch.zeros(16, dtype=torch.int32), 0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    )
    torch.testing.assert_close(ours.dequantize(), theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantization(3), r"^bits=3: must be one of 2, 4, 8"),
        (lambda: Quantization(8, "absmx"), r"^scheme='absmx': .* did you mean 'absmax'"),
        (lambda: Quantization(8, "absmax", "row"), r"^granularity='row': must be one of"),
        (
            lambda: quantize_tensor(weights(), Quantization(4, "absmax", "group", 7)),
            r"^group_size=7: must divide the 24",
        ),
        (lambda: quantize_tensor(weights(), Quantization(4, "absmax", "group")), r"^group_size=None: must divide"),
        (lambda: quantize_tensor(weights(), Quantization(4, "absmax", "channel", 8)), r"^group_size=8: has no effect"),
        (lambda: quantize_tensor(weights() / 0, Quantization()), r"^weight: \(12, 24\) holds NaN or infinity"),
    ],
)
def test_nonsense(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
