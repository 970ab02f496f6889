"""Attention calls to compare Triton's kernels with the reference on: shapes, masks, biases, tile sizes."""

from dataclasses import dataclass, field

import torch

from hf_ext.ops.eager_attention import eager_attention
from hf_ext.ops.key_intervals import KeyIntervals, document_intervals, window_intervals
from hf_ext.ops.mask_rule import MaskRule
from hf_ext.ops.score_bias import ScoreBias, alibi_slopes


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Case:
    """shape: B, H, K, T, S, D, Dv. mask: name, see `mask_of`. bias: None, "past" or "both". layout: of the tensors."""

    shape: tuple[int, ...]
    mask: str | None = None
    is_causal: bool = False
    softcap: float | None = None
    bias: str | None = None
    sinks: bool = False
    scaling: float | None = None
    dtype: torch.dtype = torch.float32
    layout: str = "heads first"
    options: dict = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return sum(self.shape)


def inputs_of(case: Case) -> list[torch.Tensor]:
    """Query, key, value on DEVICE, scores of a few units: the softmax is far from uniform."""
    B, H, K, T, S, D, Dv = case.shape
    generator = torch.Generator().manual_seed(case.seed)
    shapes = [(B, H, T, D), (B, K, S, D), (B, K, S, Dv)]
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[0] *= 2
    tensors = [x.to(case.dtype).to(DEVICE) for x in tensors]
    if case.layout == "tokens first":
        tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    elif case.layout == "one matrix":  # of all heads of queries, keys and values, a row a token
        assert T == S
        assert Dv == D
        together = torch.cat([x.transpose(1, 2).flatten(2) for x in tensors], dim=-1)
        tensors = [x.unflatten(2, (-1, D)).transpose(1, 2) for x in together.split([H * D, K * D, K * D], dim=-1)]
    elif case.layout == "dims first":  # last dim with a stride
        tensors = [x.mT.contiguous().mT for x in tensors]
    return [x.requires_grad_() for x in tensors]


def mask_of(case: Case):
    """The mask as the kernel takes it, and as the reference does."""
    B, _, _, T, S, _, _ = case.shape
    starts = torch.tensor([0, 5, 5 + T // 3, T - 2])
    key_starts = starts if T == S else torch.tensor([0, 3, S // 2, S - 1])
    if case.mask is None:
        return None, None
    if case.mask == "window":
        mask = window_intervals(T, S, 7, DEVICE)
    elif case.mask == "window of both sides":
        mask = window_intervals(T, S, 7, DEVICE, is_causal=False)
    elif case.mask == "documents":
        mask = document_intervals(starts.to(DEVICE), key_starts.to(DEVICE), T, is_causal=True)
    elif case.mask == "documents, both ways":
        mask = document_intervals(starts.to(DEVICE), key_starts.to(DEVICE), T, is_causal=False)
    elif case.mask == "documents with a window":
        mask = document_intervals(starts.to(DEVICE), key_starts.to(DEVICE), T, is_causal=True, window=4)
    elif case.mask == "random":  # anything that an interval can be, empty ones too, another one in each row
        ends = torch.randint(0, S + 1, (2, B, T), generator=torch.Generator().manual_seed(case.seed)).int().to(DEVICE)
        mask = KeyIntervals(ends.amin(dim=0), ends.amax(dim=0))
    else:  # padding on the left, and queries of a cache
        first = torch.tensor([0, S // 2, S - 1] * B, device=DEVICE)[:B]
        mask = MaskRule(lambda b, h, q, k: (k <= q) & (k >= first[b]), B, T, S, query_offset=S - T, device=DEVICE)
        return mask, mask.dense()
    return mask, mask.dense(S)


def options_of(case: Case) -> tuple[dict, dict, list[torch.Tensor]]:
    """Arguments of the kernel, of the reference, and what of them wants a gradient."""
    B, H, _, T, S, _, _ = case.shape
    mask, dense = mask_of(case)
    options = {"is_causal": case.is_causal, "softcap": case.softcap, "scaling": case.scaling}
    learnt = []
    if case.bias:
        key_positions = torch.cat([torch.arange(S - S // 3), torch.arange(S // 3)]).expand(B, S).to(DEVICE)
        slopes = alibi_slopes(H).to(DEVICE).requires_grad_()
        options["bias"] = ScoreBias(
            slopes, key_positions[:, -T:] if T <= S else torch.arange(T, device=DEVICE)[None], key_positions,
            bidirectional=case.bias == "both",
        )  # fmt: skip
        learnt.append(slopes)
    if case.sinks:
        sinks = torch.linspace(-2, 3, H, device=DEVICE).requires_grad_()
        options["sinks"] = sinks
        learnt.append(sinks)
    return options | {"mask": mask} | case.options, options | {"mask": dense}, learnt


def compare(attend, case: Case, tolerance: dict, *, backward: bool = True) -> None:
    """Outputs and gradients of `attend` against the reference in fp64 on the same rounded inputs."""
    inputs = inputs_of(case)
    options, reference_options, learnt = options_of(case)
    got = [attend(*inputs, **options)]
    assert got[0].dtype == case.dtype
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = [eager_attention(*exact, **reference_options)[0]]
    names = ["output"]
    if backward:
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(expected[0].shape, generator=generator, dtype=torch.float64).to(case.dtype).to(DEVICE)
        got += torch.autograd.grad(got[0], (*inputs, *learnt), weight)
        expected += torch.autograd.grad(expected[0], (*exact, *learnt), weight.double())
        names += ["query", "key", "value", *(f"learnt {i}" for i in range(len(learnt)))]
    for name, a, b in zip(names, got, expected, strict=True):
        assert a.isfinite().all(), f"{name}: not finite"
        # a gradient adds up over tokens: its error is measured against its size
        scale = max(1.0, float(b.detach().abs().max())) if name != "output" else 1.0
        message = lambda m, n=name: f"{n}: {m}"  # noqa: E731
        torch.testing.assert_close(
            a.double(), b.double(), atol=tolerance["atol"] * scale, rtol=tolerance["rtol"], msg=message
        )
