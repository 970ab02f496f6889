"""Triton's attention against the eager reference in fp64, forward and backward."""

import pytest
import torch
from ops.triton.attention_cases import DEVICE, Case, compare, inputs_of

from hf_ext.ops.flash_attention import flash_attention
from hf_ext.ops.key_intervals import KeyIntervals, document_intervals, window_intervals
from hf_ext.ops.mask_rule import MaskRule
from hf_ext.ops.score_bias import ScoreBias
from hf_ext.ops.triton.attention_descriptors import describe
from hf_ext.ops.triton.attention_tiles import Tiles
from hf_ext.ops.triton.triton_attention import AttentionTiles, triton_attention


# fp32 sums in another order, and on a GPU products of three tf32 parts: some ulp of numbers of order 1, over 100 keys
FP32 = {"atol": 3e-5, "rtol": 3e-5}
# 8 bits: inputs are exact here, but weights, scores' gradients and outputs are rounded to 2^-9 before they are multiplied
BF16 = {"atol": 2e-2, "rtol": 2e-2}
# 11 bits: the same, 2^-12
FP16 = {"atol": 3e-3, "rtol": 3e-3}

# tiles so small that a few tokens fill many, unequal in both directions
WIDE = AttentionTiles(Tiles(16, 32), Tiles(16, 32), Tiles(16, 32))
HIGH = AttentionTiles(Tiles(32, 16), Tiles(32, 16), Tiles(32, 16))
COPIED = AttentionTiles(*(Tiles(16, 16, descriptors=True) for _ in range(3)))

CASES = {
    "plain": Case((2, 2, 2, 37, 37, 16, 16)),
    "causal": Case((1, 2, 2, 70, 70, 16, 16), is_causal=True),
    "causal, whole tiles": Case((1, 1, 1, 64, 64, 16, 16), is_causal=True),
    "causal, more keys": Case((1, 2, 1, 19, 53, 16, 16), is_causal=True),
    "causal, more queries": Case((1, 2, 1, 53, 19, 16, 16), is_causal=True),
    "cross, grouped": Case((2, 4, 2, 21, 45, 16, 16)),
    "one head of keys": Case((1, 5, 1, 33, 33, 24, 24), is_causal=True),
    "one of everything": Case((1, 1, 1, 1, 1, 16, 16)),
    "odd head dims": Case((1, 2, 2, 20, 23, 20, 12)),
    "wider values": Case((1, 2, 1, 20, 20, 16, 40), is_causal=True),
    "window": Case((2, 2, 1, 50, 50, 16, 16), "window"),
    "window of both sides": Case((1, 2, 2, 50, 50, 16, 16), "window of both sides"),
    "documents": Case((1, 2, 1, 61, 61, 16, 16), "documents"),
    "documents, both ways": Case((1, 2, 2, 61, 61, 16, 16), "documents, both ways"),
    "documents with a window": Case((1, 1, 1, 61, 61, 16, 16), "documents with a window"),
    "documents, cross": Case((1, 2, 2, 40, 25, 16, 16), "documents, both ways"),
    "padding": Case((3, 2, 1, 30, 47, 16, 16), "padding"),
    "random intervals": Case((2, 2, 1, 45, 70, 16, 16), "random"),
    "random intervals and causal": Case((2, 2, 2, 45, 45, 16, 16), "random", is_causal=True),
    "softcap": Case((1, 2, 1, 35, 35, 16, 16), is_causal=True, softcap=3.0),
    "sinks": Case((2, 4, 2, 35, 35, 16, 16), is_causal=True, sinks=True),
    "sinks and unseen rows": Case((2, 2, 2, 35, 35, 16, 16), "random", sinks=True),
    "alibi": Case((2, 4, 2, 35, 35, 16, 16), is_causal=True, bias="past"),
    "alibi of both sides": Case((1, 6, 2, 35, 35, 16, 16), bias="both"),
    "alibi, cross": Case((1, 2, 2, 14, 35, 16, 16), bias="both"),
    "everything": Case(
        (1, 4, 2, 41, 41, 24, 40), "documents", softcap=4.0, bias="past", sinks=True, scaling=0.3, layout="tokens first"
    ),
    "tokens first": Case((2, 3, 3, 33, 33, 16, 16), is_causal=True, layout="tokens first"),
    "one matrix": Case((2, 4, 2, 33, 33, 16, 16), is_causal=True, layout="one matrix"),
    "dims first": Case((1, 2, 2, 33, 33, 16, 16), is_causal=True, layout="dims first"),
    "heads of 64": Case((1, 2, 1, 40, 40, 64, 64), is_causal=True),
    "heads of 128": Case((1, 2, 1, 40, 40, 128, 128), is_causal=True),
    "heads of 100": Case((1, 1, 1, 33, 33, 100, 100), is_causal=True),
}
# the short form: every feature once, in tiles of either shape
SHORT = {
    "causal": "high",
    "causal, more queries": "wide",
    "cross, grouped": "high",
    "one of everything": "wide",
    "odd head dims": "wide",
    "window": "wide",
    "documents": "wide",
    "documents, cross": "high",
    "padding": "high",
    "random intervals and causal": "wide",
    "softcap": "high",
    "sinks and unseen rows": "wide",
    "alibi": "high",
    "alibi, cross": "wide",
    "everything": "high",
    "one matrix": "wide",
    "dims first": "high",
    "heads of 64": "wide",
    "heads of 128": "high",
}


@pytest.mark.parametrize(
    ("name", "tiles"),
    [
        pytest.param(name, tiles, id=f"{name}, {side}", marks=[] if SHORT.get(name) == side else [pytest.mark.full])
        for name in CASES
        for side, tiles in {"wide": WIDE, "high": HIGH}.items()
    ],
)
def test_forward_and_backward_are_the_reference(name, tiles):
    compare(lambda *a, **k: triton_attention(*a, **k, tiles=tiles), CASES[name], FP32)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        pytest.param("everything", torch.bfloat16, BF16, id="everything, bf16"),
        pytest.param("causal", torch.float16, FP16, id="causal, fp16"),
        pytest.param("heads of 128", torch.bfloat16, BF16, id="heads of 128, bf16"),
        *(
            pytest.param(name, dtype, tolerance, id=f"{name}, {dtype}", marks=pytest.mark.full)
            for name, dtype, tolerance in (
                ("causal", torch.bfloat16, BF16),
                ("everything", torch.float16, FP16),
                ("random intervals", torch.bfloat16, BF16),
                ("random intervals", torch.float16, FP16),
            )
        ),
    ],
)
def test_two_byte_dtypes(name, dtype, tolerance):
    case = Case(**{**vars(CASES[name]), "dtype": dtype})
    compare(lambda *a, **k: triton_attention(*a, **k, tiles=WIDE), case, tolerance)


@pytest.mark.parametrize(
    ("layout", "mask"),
    [
        ("heads first", None),
        pytest.param("tokens first", "random", marks=pytest.mark.full),
        pytest.param("one matrix", None, marks=pytest.mark.full),
    ],
)
def test_tiles_that_the_copy_engine_loads(layout, mask):
    """Whole tiles of 16-bit numbers: elsewhere pointers take their place."""
    case = Case((1, 4, 2, 48, 48, 16, 16), mask, is_causal=mask is None, dtype=torch.float16, layout=layout)
    compare(lambda *a, **k: triton_attention(*a, **k, tiles=COPIED), case, FP16)


def test_what_the_copy_engine_can_load():
    x = torch.zeros(2, 4, 48, 16, dtype=torch.float16, device=DEVICE)
    assert describe(x, 16)[1] == (4 * 48, 48, 0)
    assert describe(x.transpose(1, 2).contiguous().transpose(1, 2), 16)[1] == (48, 0, 16)
    assert describe(x, 32) is None  # the last tile would hold rows of the next head
    assert describe(x.float(), 16) is None
    assert describe(x[..., :8], 16) is None
    assert describe(x[:, ::2], 16) is None


@pytest.mark.parametrize("splits", [1, 3, None])
@pytest.mark.parametrize(
    "case",
    [
        Case((2, 4, 2, 1, 200, 16, 16)),
        Case((1, 4, 1, 3, 150, 24, 40), "padding", softcap=3.0),
        Case((2, 2, 2, 1, 130, 16, 16), "random", sinks=True),
        Case((1, 4, 2, 5, 140, 16, 16), "window of both sides", bias="both"),
        Case((1, 2, 2, 4, 70, 16, 16), is_causal=True),
        Case((2, 4, 2, 1, 65, 16, 16), sinks=True, dtype=torch.bfloat16),
    ],
    ids=lambda case: f"{case.shape} {case.mask}",
)
def test_keys_split_among_programs(case, splits):
    tolerance = BF16 if case.dtype == torch.bfloat16 else FP32
    with torch.no_grad():
        compare(lambda *a, **k: triton_attention(*a, **k, splits=splits), case, tolerance, backward=False)


def test_more_splits_than_tiles_of_keys():
    case = Case((1, 2, 2, 1, 5, 16, 16))
    with torch.no_grad():
        compare(lambda *a, **k: triton_attention(*a, **k, splits=50), case, FP32, backward=False)


def test_numbers_of_other_rows_are_not_read():
    """A row whose values are NaN spoils nothing but itself."""
    query, key, value = inputs_of(Case((2, 1, 1, 21, 21, 16, 16)))
    with torch.no_grad():
        for x in (query, key, value):
            x[1] = float("nan")
    output = triton_attention(query, key, value, is_causal=True, tiles=WIDE)
    assert output[0].isfinite().all()
    assert output[1].isnan().all()


def test_unseen_queries_give_zeros_and_no_gradient():
    query, key, value = inputs_of(Case((1, 2, 2, 20, 20, 16, 16)))
    starts = torch.zeros(1, 20, dtype=torch.int32, device=DEVICE)
    stops = starts + 20
    stops[:, 3] = 0
    output = triton_attention(query, key, value, mask=KeyIntervals(starts, stops), tiles=WIDE)
    grad = torch.autograd.grad(output.sum(), query)[0]
    assert output[:, :, 3].abs().max() == 0
    assert grad[:, :, 3].abs().max() == 0
    assert output[:, :, 2].abs().min() > 0


def test_an_empty_batch():
    tensors = [torch.zeros(0, 2, 5, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
    triton_attention(*tensors).sum().backward()
    assert tensors[0].grad.shape == (0, 2, 5, 16)


def test_same_bits_in_every_run():
    case = Case((1, 2, 1, 40, 40, 16, 16), is_causal=True, dtype=torch.float16)
    runs = []
    for _ in range(2):
        inputs = inputs_of(case)
        output = triton_attention(*inputs, is_causal=True, tiles=WIDE)
        runs.append([output, *torch.autograd.grad(output.float().square().sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_under_autocast_inputs_are_cast():
    inputs = inputs_of(Case((1, 2, 2, 20, 20, 16, 16)))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        output = triton_attention(*inputs, is_causal=True, tiles=WIDE)
    assert output.dtype == torch.bfloat16
    grads = torch.autograd.grad(output.float().sum(), inputs)
    assert all(grad.dtype == torch.float32 for grad in grads)


def refused(match, *, tensors=None, **options):
    query, key, value = tensors or inputs_of(Case((1, 2, 2, 5, 5, 16, 16)))
    with pytest.raises(ValueError, match=match) as caught:
        triton_attention(query, key, value, **options)
    assert "\n" not in str(caught.value)


def test_shapes_that_do_not_go_together_are_refused():
    """A kernel follows addresses: it would read what lies beside."""
    query, key, value = inputs_of(Case((2, 4, 2, 5, 7, 16, 16)))
    index = torch.zeros(2, 5, dtype=torch.int32, device=DEVICE)
    refused("query, key, value: shapes", tensors=(query, key, value[:, :, :6]))
    refused("query, key, value: shapes", tensors=(query[:, :3], key, value))
    refused("query, key, value: shapes", tensors=(query[:1], key, value))
    refused("mask.starts: shape", tensors=(query, key, value), mask=KeyIntervals(index[:, :4], index[:, :4]))
    refused("attention_mask: made for 6 keys", tensors=(query, key, value), mask=torch.ones(1, 1, 5, 6).bool())
    refused("sinks: shape", tensors=(query, key, value), sinks=torch.zeros(2, device=DEVICE))
    bias = ScoreBias(torch.zeros(4, device=DEVICE), index, index)
    refused("key_positions: shape", tensors=(query, key, value), bias=bias)


def test_intervals_end_where_the_keys_end():
    """Nobody looks at their numbers before the kernels do; what lies beside the keys is not read."""
    inputs = inputs_of(Case((1, 2, 1, 20, 20, 16, 16)))
    starts, stops = (torch.full((1, 20), n, dtype=torch.int32, device=DEVICE) for n in (-7, 99))
    got = triton_attention(*inputs, mask=KeyIntervals(starts, stops), tiles=WIDE)
    expected = triton_attention(*inputs, tiles=WIDE)
    torch.testing.assert_close(got, expected, **FP32)
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), inputs) for x in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, **FP32)
    with torch.no_grad():
        few = KeyIntervals(starts[:, :2], stops[:, :2])
        got = triton_attention(inputs[0][:, :, :2], *inputs[1:], mask=few)
    torch.testing.assert_close(got, expected[:, :, :2], **FP32)


def test_a_mask_of_one_row_is_that_of_all_queries():
    inputs = inputs_of(Case((2, 2, 1, 20, 23, 16, 16)))
    seen = (torch.arange(23, device=DEVICE) < torch.tensor([[9], [23]], device=DEVICE))[:, None, None]
    got, expected = (triton_attention(*inputs, mask=mask, tiles=WIDE) for mask in (seen, seen.expand(-1, -1, 20, -1)))
    torch.testing.assert_close(got, expected, **FP32)


def test_no_keys_at_all():
    inputs = inputs_of(Case((1, 2, 1, 20, 0, 16, 16)))
    output = triton_attention(*inputs, tiles=WIDE)
    assert output.abs().max() == 0
    grads = torch.autograd.grad(output.sum(), inputs)
    assert [g.shape for g in grads] == [x.shape for x in inputs]
    assert grads[0].abs().max() == 0


def test_what_it_does_not_compute_is_refused():
    double = [torch.zeros(1, 1, 3, 16, dtype=torch.float64, device=DEVICE)] * 3
    wide = [torch.zeros(1, 1, 3, 300, device=DEVICE)] * 3
    index = torch.arange(5, device=DEVICE)[None]
    relative = ScoreBias(torch.zeros(2, 8, device=DEVICE), index, index, max_distance=20)
    holes = torch.eye(5, dtype=torch.bool, device=DEVICE)[None, None] | torch.eye(5, device=DEVICE).bool().flip(0)
    refused("does not support dropout=0.1", dropout=0.1)
    refused("takes float32, float16 or bfloat16, all of one; got float64", tensors=double)
    refused("up to 256 dims, got 300", tensors=wide)
    refused("scaling=-1.0 must be above 0", scaling=-1.0)
    refused("does not support position_embedding_type='relative'", bias=relative)
    refused("takes no additive masks", mask=torch.zeros(1, 1, 5, 5, device=DEVICE))
    refused("without holes", mask=holes)
    refused("bias is a Tensor", bias=torch.zeros(1, 2, 5, 5, device=DEVICE))


def test_intervals_of_masks():
    from hf_ext.ops.key_intervals import intervals_of

    window = window_intervals(9, 9, 3)
    rule = MaskRule(lambda b, h, q, k: (k <= q) & (q - k < 3), 2, 9, 9)
    assert torch.equal(intervals_of(rule).dense(9), window.dense(9))
    assert torch.equal(intervals_of(window.dense(9)).dense(9), window.dense(9))
    both = window_intervals(9, 9, 3, is_causal=False)
    assert both.dense(9)[0, 0, 4].tolist() == [False, False, True, True, True, True, True, False, False]
    assert torch.equal(both.causal().dense(9), window.dense(9))
    starts = torch.tensor([0, 4, 4, 7])  # the second document is empty, and two queries belong to none
    documents = document_intervals(starts, starts, 9, is_causal=True)
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[:4, :4], expected[4:7, 4:7] = torch.ones(4, 4).tril().bool(), torch.ones(3, 3).tril().bool()
    assert torch.equal(documents.dense(9)[0, 0], expected)


# compiled, at sizes where the tiles of the tables are used
GPU_CASES = [
    *(Case((1, 4, 2, 517, 517, d, d), is_causal=True) for d in (32, 64, 96, 128, 256)),
    Case((2, 4, 2, 1024, 1024, 64, 64), is_causal=True, layout="tokens first"),
    Case((2, 4, 4, 1024, 1024, 128, 128), is_causal=True, layout="tokens first"),
    Case((2, 4, 4, 1024, 1024, 128, 128), layout="one matrix"),
    Case((1, 2, 2, 512, 512, 256, 256), is_causal=True),
    Case((1, 4, 2, 700, 700, 128, 128), "documents"),
    Case((1, 4, 2, 700, 700, 64, 64), "window"),
    Case((2, 4, 2, 300, 700, 128, 128), "random", sinks=True),
    Case((1, 4, 1, 300, 700, 192, 128), "padding"),
    Case((1, 4, 4, 700, 700, 128, 128), is_causal=True, softcap=5.0),
    Case((1, 4, 4, 700, 700, 128, 128), is_causal=True, bias="past"),
    Case((1, 4, 4, 333, 700, 128, 128)),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, BF16), (torch.float16, FP16)], ids=str)
@pytest.mark.parametrize("case", GPU_CASES, ids=lambda c: f"{c.shape} {c.mask} {c.layout}")
def test_compiled(case, dtype, tolerance):
    compare(triton_attention, Case(**{**vars(case), "dtype": dtype}), tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [GPU_CASES[1], GPU_CASES[3], GPU_CASES[4], GPU_CASES[11]], ids=lambda c: str(c.shape))
def test_compiled_in_fp32(case):
    compare(triton_attention, case, FP32)


@pytest.mark.gpu
@pytest.mark.parametrize("num_queries", [1, 5])
def test_compiled_decoding(num_queries):
    for mask in (None, "padding"):
        case = Case((3, 8, 2, num_queries, 3000, 128, 128), mask, dtype=torch.bfloat16)
        with torch.no_grad():
            compare(triton_attention, case, BF16, backward=False)


@pytest.mark.gpu
def test_compiled_twice_gives_the_same_bits():
    case = Case((2, 8, 2, 1000, 1000, 128, 128), is_causal=True, dtype=torch.bfloat16)
    runs = []
    for _ in range(2):
        inputs = inputs_of(case)
        output = triton_attention(*inputs, is_causal=True)
        runs.append([output, *torch.autograd.grad(output.float().square().sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_twin_in_torch_says_the_same():
    inputs = inputs_of(Case((2, 4, 2, 30, 30, 16, 16)))
    expected = flash_attention(*inputs, is_causal=True, softcap=2.0)
    torch.testing.assert_close(triton_attention(*inputs, is_causal=True, softcap=2.0, tiles=WIDE), expected, **FP32)
