"""Cross-entropy against torch's and the equation, and the chunked one against both."""

import importlib.util
import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.loss.loss_utils import ForCausalLMLoss

from hf_ext.ops.cross_entropy import CHUNK_BYTES, cross_entropy, default_chunk_size, linear_cross_entropy


# fp32 sums in another order: a few units in the last place of a loss of about 5, and of gradients below 1
FP32 = {"rtol": 2e-5, "atol": 2e-6}
# fp64 likewise
FP64 = {"rtol": 1e-10, "atol": 1e-12}
# logits rounded to 8 bits, by the same product on both sides: what differs is where the gradients are rounded, 2^-8 each
BF16 = {"rtol": 2**-6, "atol": 2**-9}
# logits rounded to 11 bits, likewise
FP16 = {"rtol": 2**-9, "atol": 2**-12}

N, D, V = 37, 16, 53
OPTIONS = [
    {"label_smoothing": smoothing, "z_loss_weight": z_loss_weight, "softcap": softcap, "num_items_in_batch": num_items}
    for smoothing, z_loss_weight, softcap, num_items in itertools.product(
        (0.0, 0.1), (0.0, 0.01), (None, 2.0), (None, 11)
    )
]


def tokens(n=N, d=D, v=V, *, dtype=torch.float32, bias=True, ignored=True, seed=0):
    """Leaves hidden_states (n, d), weight (v, d), bias (v,) or None; labels (n,), every fourth ignored."""
    generator = torch.Generator().manual_seed(seed)
    hidden_states, weight, offset = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((n, d), (v, d), (v,))
    )
    labels = torch.randint(0, v, (n,), generator=generator)
    if ignored:
        labels[1::4] = -100
    return hidden_states, weight, offset if bias else None, labels


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, [t for t in tensors if t is not None])


def by_the_equation(logits, labels, *, label_smoothing, z_loss_weight, softcap, num_items_in_batch, ignore_index=-100):
    """Token by token, in Python."""
    total, count = logits.new_zeros(()), 0
    for z, label in zip(logits, labels.tolist(), strict=True):
        if label == ignore_index:
            continue
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        log_p = z - z.exp().sum().log()
        smoothed = (1 - label_smoothing) * log_p[label] + label_smoothing * log_p.mean()
        total = total - smoothed + z_loss_weight * z.exp().sum().log() ** 2
        count += 1
    return total / (num_items_in_batch or count)


@pytest.mark.parametrize("options", OPTIONS)
def test_both_equal_the_equation(options):
    hidden_states, weight, bias, labels = tokens(dtype=torch.float64)
    expected = by_the_equation(F.linear(hidden_states, weight, bias), labels, **options)
    expected_gradients = gradients(expected, hidden_states, weight, bias)

    plain = cross_entropy(F.linear(hidden_states, weight, bias), labels, **options)
    chunked = linear_cross_entropy(hidden_states, weight, labels, bias=bias, chunk_size=7, **options)
    for loss in (plain, chunked):
        assert loss.dtype == torch.float64
        torch.testing.assert_close(loss, expected, **FP64)
        torch.testing.assert_close(gradients(loss, hidden_states, weight, bias), expected_gradients, **FP64)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, -1, 5])
def test_both_equal_torch(label_smoothing, ignore_index):
    hidden_states, weight, bias, labels = tokens()
    labels[labels == -100] = ignore_index
    options = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    expected = F.cross_entropy(F.linear(hidden_states, weight, bias), labels, **options)
    expected_gradients = gradients(expected, hidden_states, weight, bias)
    plain = cross_entropy(F.linear(hidden_states, weight, bias), labels, **options)
    chunked = linear_cross_entropy(hidden_states, weight, labels, bias=bias, **options)
    for loss in (plain, chunked):
        torch.testing.assert_close(loss, expected, **FP32)
        torch.testing.assert_close(gradients(loss, hidden_states, weight, bias), expected_gradients, **FP32)


@pytest.mark.parametrize("num_items_in_batch", [None, 100, torch.tensor(100)])
def test_both_equal_transformers(num_items_in_batch):
    hidden_states, weight, _, labels = tokens(n=36)
    hidden_states, labels = hidden_states.detach().reshape(2, 18, D).requires_grad_(), labels.reshape(2, 18)
    logits = F.linear(hidden_states, weight)
    expected = ForCausalLMLoss(logits, labels, V, num_items_in_batch)
    expected_gradients = gradients(expected, hidden_states, weight)

    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
    plain = cross_entropy(F.linear(hidden_states, weight), shifted, num_items_in_batch=num_items_in_batch)
    chunked = linear_cross_entropy(hidden_states, weight, shifted, num_items_in_batch=num_items_in_batch)
    for loss in (plain, chunked):
        torch.testing.assert_close(loss, expected, **FP32)
        torch.testing.assert_close(gradients(loss, hidden_states, weight), expected_gradients, **FP32)


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 8, 53), (37, 3, 101), (64, 16, 53), (65, 17, 2)])
@pytest.mark.parametrize("chunk_size", [1, 8, 37, 1000, None])
def test_any_size_and_any_chunk(shape, chunk_size):
    hidden_states, weight, bias, labels = tokens(*shape)
    expected = F.cross_entropy(F.linear(hidden_states, weight, bias), labels)
    expected_gradients = gradients(expected, hidden_states, weight, bias)
    loss = linear_cross_entropy(hidden_states, weight, labels, bias=bias, chunk_size=chunk_size)
    torch.testing.assert_close(loss, expected, **FP32)
    torch.testing.assert_close(gradients(loss, hidden_states, weight, bias), expected_gradients, **FP32)


def test_gradient_is_the_numerical_one():
    hidden_states, weight, bias, labels = tokens(5, 3, 7, dtype=torch.float64)

    def loss(hidden_states, weight, bias):
        options = {"label_smoothing": 0.1, "z_loss_weight": 0.05, "softcap": 3.0, "chunk_size": 2}
        return linear_cross_entropy(hidden_states, weight, labels, bias=bias, **options) * 1.7

    assert torch.autograd.gradcheck(loss, (hidden_states, weight, bias))


def test_large_logits_stay_finite():
    hidden_states, weight, _, labels = tokens()
    for loss in (
        cross_entropy(1000 * F.linear(hidden_states, weight), labels),
        linear_cross_entropy(1000 * hidden_states, weight, labels),
    ):
        assert torch.isfinite(loss)
        assert all(torch.isfinite(g).all() for g in gradients(loss, hidden_states, weight))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, BF16), (torch.float16, FP16)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss_weight": 0.01, "softcap": 5.0}])
def test_half_precision(dtype, tolerance, options):
    hidden_states, weight, bias, labels = tokens(dtype=dtype)
    with torch.no_grad():
        weight *= 0.25
    # as transformers: product in the inputs' dtype, softmax in fp32
    expected = cross_entropy(F.linear(hidden_states, weight, bias).float(), labels, **options)
    expected_gradients = gradients(expected, hidden_states, weight, bias)
    loss = linear_cross_entropy(hidden_states, weight, labels, bias=bias, chunk_size=10, **options)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, **FP32)
    actual = gradients(loss, hidden_states, weight, bias)
    assert {g.dtype for g in actual} == {dtype}
    torch.testing.assert_close(actual, expected_gradients, **tolerance)


def test_weight_gradient_is_summed_in_fp32_over_chunks():
    """1,024 equal rows in 1,024 chunks: a bf16 sum stops growing at 256 equal terms."""
    hidden_states = torch.ones(1024, 4, dtype=torch.bfloat16)
    weight = torch.zeros(8, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = linear_cross_entropy(hidden_states, weight, torch.zeros(1024, dtype=torch.long), chunk_size=1)
    torch.testing.assert_close(gradients(loss, weight)[0][0].float(), torch.full((4,), -0.875), **BF16)


def test_fp16_gradients_may_exceed_its_range_before_they_are_divided():
    """The sum over 1,024 rows is 89,600, fp16 ends at 65,504; the mean is 87.5."""
    hidden_states = torch.full((1024, 4), 100.0, dtype=torch.float16)
    weight = torch.zeros(8, 4, dtype=torch.float16, requires_grad=True)
    loss = linear_cross_entropy(hidden_states, weight, torch.zeros(1024, dtype=torch.long), chunk_size=128)
    torch.testing.assert_close(gradients(loss, weight)[0][0].float(), torch.full((4,), -87.5), **FP16)


def test_fp16_keeps_gradients_that_only_the_loss_scale_saves():
    """1e-9 is 0 in fp16, 65,536 times that is not."""
    hidden_states, weight, _, labels = (t.detach() if t is not None else None for t in tokens(dtype=torch.float16))
    weight.requires_grad_()
    hidden_states.requires_grad_()
    loss = linear_cross_entropy(hidden_states, weight, labels, num_items_in_batch=10**8)
    for gradient in gradients(loss * 65_536, hidden_states, weight):
        assert (gradient != 0).float().mean() > 0.5


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss_weight": 0.01, "softcap": 5.0}])
def test_autocast_is_that_of_linear(options):
    hidden_states, weight, bias, labels = tokens()
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(hidden_states, weight, bias)
        assert logits.dtype == torch.bfloat16
        expected = cross_entropy(logits, labels, **options)
        loss = linear_cross_entropy(hidden_states, weight, labels, bias=bias, **options)
    torch.testing.assert_close(loss, expected, **FP32)
    assert abs(loss - cross_entropy(F.linear(hidden_states, weight, bias), labels, **options)) > 1e-5
    actual = gradients(loss, hidden_states, weight, bias)
    assert {g.dtype for g in actual} == {torch.float32}
    torch.testing.assert_close(actual, gradients(expected, hidden_states, weight, bias), **BF16)


def test_micro_batches_add_up_to_the_batch():
    """Unevenly labelled pieces, one of them without a label."""
    hidden_states, weight, bias, labels = tokens(n=40)
    labels[30:] = -100
    count = int((labels != -100).sum())
    for num_items in (count, torch.tensor(count)):
        for loss_of in (
            lambda h, y, n=None: linear_cross_entropy(
                h, weight, y, bias=bias, num_items_in_batch=n, z_loss_weight=0.01
            ),
            lambda h, y, n=None: cross_entropy(F.linear(h, weight, bias), y, num_items_in_batch=n, z_loss_weight=0.01),
        ):
            whole = loss_of(hidden_states, labels)
            whole_gradients = gradients(whole, hidden_states, weight, bias)
            pieces = [loss_of(hidden_states[i:j], labels[i:j], num_items) for i, j in ((0, 5), (5, 30), (30, 40))]
            assert pieces[-1] == 0
            torch.testing.assert_close(sum(pieces), whole, **FP32)
            torch.testing.assert_close(gradients(sum(pieces), hidden_states, weight, bias), whole_gradients, **FP32)


def test_micro_batch_without_labels_has_zero_gradients():
    hidden_states, weight, bias, labels = tokens()
    nothing = torch.full_like(labels, -100)
    loss = linear_cross_entropy(hidden_states, weight, nothing, bias=bias, num_items_in_batch=5)
    assert loss == 0
    for gradient, tensor in zip(
        gradients(loss, hidden_states, weight, bias), (hidden_states, weight, bias), strict=True
    ):
        assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.parametrize("wanted", [w for w in itertools.product((False, True), repeat=3) if any(w)])
def test_only_what_requires_a_gradient_gets_one(wanted):
    hidden_states, weight, bias, labels = tokens()
    leaves = [t.requires_grad_(w) for t, w in zip((hidden_states, weight, bias), wanted, strict=True)]
    linear_cross_entropy(hidden_states, weight, labels, bias=bias).backward()
    actual = [t.grad for t in leaves]
    assert [g is not None for g in actual] == list(wanted)
    for leaf in leaves:
        leaf.grad = None
    F.cross_entropy(F.linear(hidden_states, weight, bias), labels).backward()
    torch.testing.assert_close(
        [g for g in actual if g is not None], [t.grad for t in leaves if t.grad is not None], **FP32
    )


def test_without_gradients_none_is_computed():
    hidden_states, weight, bias, labels = tokens(500, 8, 101)
    expected = F.cross_entropy(F.linear(hidden_states, weight, bias), labels)
    with torch.no_grad(), Recorded() as seen:
        loss = linear_cross_entropy(hidden_states, weight, labels, bias=bias, chunk_size=4)
    assert not loss.requires_grad
    assert seen.num_products == 94  # 375 labelled rows, one product for each chunk of 4 or fewer
    torch.testing.assert_close(loss, expected.detach(), **FP32)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    hidden_states, weight, bias, labels = tokens()

    def head(hidden_states, weight, bias):
        return linear_cross_entropy(hidden_states.sin(), weight, labels, bias=bias, chunk_size=10)

    head(hidden_states, weight, bias).backward()
    expected = [t.grad for t in (hidden_states, weight, bias)]
    for tensor in (hidden_states, weight, bias):
        tensor.grad = None
    checkpoint(head, hidden_states, weight, bias, use_reentrant=reentrant).backward()
    torch.testing.assert_close([t.grad for t in (hidden_states, weight, bias)], expected, rtol=0.0, atol=0.0)


def test_weight_tied_with_the_embedding():
    _, weight, _, labels = tokens(ignored=False)
    ids = labels.roll(1)
    expected = gradients(F.cross_entropy(F.linear(F.embedding(ids, weight), weight), labels), weight)
    actual = gradients(linear_cross_entropy(F.embedding(ids, weight), weight, labels), weight)
    torch.testing.assert_close(actual, expected, **FP32)


def test_backward_twice_through_a_retained_graph():
    hidden_states, weight, _, labels = tokens()
    loss = linear_cross_entropy(hidden_states, weight, labels) * 3
    first = torch.autograd.grad(loss, (hidden_states, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden_states, weight))
    torch.testing.assert_close(first, second, rtol=0.0, atol=0.0)


def test_gradients_that_are_kept_are_not_those_that_were_given_out():
    hidden_states, weight, _, labels = tokens()
    loss = linear_cross_entropy(hidden_states, weight, labels)  # nothing multiplies it: they are given out as they are
    loss.backward(retain_graph=True)
    once = weight.grad.clone(), hidden_states.grad.clone()
    loss.backward()
    torch.testing.assert_close((weight.grad, hidden_states.grad), (2 * once[0], 2 * once[1]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    hidden_states, weight, bias, labels = tokens()
    options = {"label_smoothing": 0.1, "z_loss_weight": 0.01, "softcap": 5.0, "chunk_size": 10}

    def step(hidden_states, weight, bias, labels):
        return linear_cross_entropy(hidden_states * 2, weight, labels, bias=bias, **options) * 3

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (37, 21):
        arguments = (hidden_states[:n], weight, bias, labels[:n])
        expected, actual = step(*arguments), compiled(*arguments)
        torch.testing.assert_close(actual, expected, **FP32)
        leaves = (hidden_states, weight, bias)
        torch.testing.assert_close(gradients(actual, *leaves), gradients(expected, *leaves), **FP32)


def test_operator_obeys_torchs_rules():
    from hf_ext.ops import cross_entropy as module

    hidden_states, weight, bias, labels = tokens(6, 4, 9)
    wanted = [True, True, True]
    arguments = (hidden_states, weight, bias, labels, -100, 0.1, 0.01, 5.0, 4, torch.float32, wanted, torch.tensor(3))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(module._loss_and_gradients, arguments, test_utils=checks)


class Recorded:
    """What torch's profiler saw on the CPU, inside of operators too: bytes of the largest allocation, matrix products."""

    def __enter__(self):
        self.profiler = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        )
        self.profiler.__enter__()
        return self

    def __exit__(self, *error):
        self.profiler.__exit__(*error)
        events = self.profiler.events()
        self.largest = max(event.self_cpu_memory_usage for event in events)
        self.num_products = sum(event.name in ("aten::mm", "aten::addmm", "aten::addmm_") for event in events)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss_weight": 0.01, "softcap": 5.0}])
def test_nothing_of_size_rows_times_vocabulary_is_made(options):
    rows, hidden, vocabulary = 600, 16, 211
    hidden_states, weight, bias, labels = tokens(rows, hidden, vocabulary)
    with Recorded() as seen:
        linear_cross_entropy(hidden_states, weight, labels, bias=bias, chunk_size=30, **options).backward()
    assert seen.largest == 4 * max(rows * hidden, 30 * vocabulary)
    assert (
        seen.num_products == 3 * 15
    )  # 450 labelled rows in chunks of 30: logits once, and a product for each gradient
    with Recorded() as seen:
        cross_entropy(F.linear(hidden_states, weight, bias), labels, **options).backward()
    assert seen.largest >= 4 * rows * vocabulary


@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(7)])
def test_backward_holds_no_gradient_twice(num_items):
    hidden_states, weight, _, labels = tokens(30, 64, 500)
    loss = linear_cross_entropy(hidden_states, weight, labels, num_items_in_batch=num_items)
    with Recorded() as seen:
        loss.backward()
    assert seen.largest < 4 * weight.numel()


def test_between_forward_and_backward_only_gradients_are_kept():
    hidden_states, weight, bias, labels = tokens(600, 16, 211)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        linear_cross_entropy(hidden_states, weight, labels, bias=bias, chunk_size=30)
    assert sum(kept) <= hidden_states.numel() + weight.numel() + bias.numel() + 1


def test_default_chunk_is_bounded():
    assert default_chunk_size(32_000, 256) * 32_000 * 4 <= CHUNK_BYTES
    assert default_chunk_size(32_000, 512) == 256  # not fewer rows than d / 2
    assert default_chunk_size(128_256, 4096) == 2048
    assert default_chunk_size(10**9, 1) == 1


def test_two_copies_of_the_file_live_side_by_side():
    """A repository on the Hub carries this file; importing it must leave ours working."""
    from hf_ext.ops import cross_entropy as ours

    spec = importlib.util.spec_from_file_location("copy-of.cross_entropy", ours.__file__)
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    assert copied.NAMESPACE != ours.NAMESPACE
    hidden_states, weight, _, labels = tokens()
    expected = F.cross_entropy(F.linear(hidden_states, weight), labels)
    for module in (ours, copied, ours):
        loss = module.linear_cross_entropy(hidden_states, weight, labels)
        torch.testing.assert_close(loss, expected, **FP32)
        assert all(g.abs().sum() > 0 for g in gradients(loss, hidden_states, weight))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([53, 0], {}, r"labels: 53 is outside the vocabulary 0\.\.52"),
        ([0, -1], {}, r"labels: -1 is outside the vocabulary"),
        ([-100, 0], {"ignore_index": -1}, r"labels: -100 is outside the vocabulary"),
        ([-100, -100], {}, "every one of the 2 labels is ignore_index=-100"),
        ([0, 1, 2], {}, r"labels: shape \(3,\) must be that of the rows to predict, \(2,\)"),
        ([0.0, 1.0], {}, "labels: dtype torch.float32"),
        ([0, 1], {"label_smoothing": 1.5}, "label_smoothing=1.5"),
        ([0, 1], {"label_smoothing": float("nan")}, "label_smoothing=nan"),
        ([0, 1], {"z_loss_weight": -1.0}, "z_loss_weight=-1.0"),
        ([0, 1], {"softcap": 0.0}, "softcap=0.0"),
        ([0, 1], {"num_items_in_batch": 0}, "num_items_in_batch=0"),
        ([0, 1], {"num_items_in_batch": torch.tensor(0)}, "num_items_in_batch=0"),
    ],
)
def test_wrong_input_is_refused_in_one_line(fused, labels, options, message):
    hidden_states, weight, _, _ = tokens(2)
    labels = torch.tensor(labels)

    def loss():
        if fused:
            return linear_cross_entropy(hidden_states, weight, labels, **options)
        return cross_entropy(F.linear(hidden_states, weight), labels, **options)

    with pytest.raises(ValueError, match=message) as error:
        loss()
    assert "\n" not in str(error.value)


def test_wrong_input_of_the_chunked_one_is_refused():
    hidden_states, weight, _, labels = tokens()
    with pytest.raises(ValueError, match=r"weight: shape \(53, 15\) must be \(vocabulary, hidden size 16\)"):
        linear_cross_entropy(hidden_states, weight[:, 1:], labels)
    with pytest.raises(ValueError, match="chunk_size=0"):
        linear_cross_entropy(hidden_states, weight, labels, chunk_size=0)
    with pytest.raises(ValueError, match=r"hidden_states are torch.bfloat16, weight and bias torch.float32"):
        linear_cross_entropy(hidden_states.bfloat16(), weight, labels)


def test_int32_labels():
    hidden_states, weight, _, labels = tokens()
    expected = linear_cross_entropy(hidden_states, weight, labels)
    assert linear_cross_entropy(hidden_states, weight, labels.int()) == expected
    torch.testing.assert_close(cross_entropy(F.linear(hidden_states, weight), labels.int()), expected, **FP32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_cuda(dtype):
    tolerance = {torch.float32: FP32, torch.bfloat16: BF16, torch.float16: FP16}[dtype]
    hidden_states, weight, bias, labels = (t.detach().cuda() for t in tokens(dtype=dtype))
    weight *= 0.25
    leaves = [t.requires_grad_() for t in (hidden_states, weight, bias)]
    num_items = torch.tensor(28)  # on the CPU, as a data loader counts them
    expected = cross_entropy(F.linear(*leaves), labels, num_items_in_batch=num_items)
    loss = linear_cross_entropy(hidden_states, weight, labels, bias=bias, num_items_in_batch=num_items, chunk_size=10)
    torch.testing.assert_close(loss, expected, **FP32)
    torch.testing.assert_close(gradients(loss, *leaves), gradients(expected, *leaves), **tolerance)
