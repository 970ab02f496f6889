"""A kernel with the functions of the flash-attn package, computed document by document in fp64: what a repository of the Hub
is to transformers, where none can be fetched. `write_repository` makes it one."""

import json
from itertools import pairwise
from pathlib import Path

import torch


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, deterministic=False
):
    """(B, T, H, D), (B, S, K, D) -> (B, T, H, D)."""
    rows = zip(q, k, v, strict=True)
    return torch.stack([_attend(*row, dropout_p, softmax_scale, causal, window_size, softcap) for row in rows])


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    deterministic=False,
):
    """(N, H, D), (N', K, D) -> (N, H, D)."""
    parts = zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True)
    return torch.cat(
        [
            _attend(q[a:b], k[c:d], v[c:d], dropout_p, softmax_scale, causal, window_size, softcap)
            for (a, b), (c, d) in parts
        ]
    )


def _attend(q, k, v, dropout, scale, causal, window, softcap):
    """(T, H, D), (S, K, D) -> (T, H, D); places are counted from the end."""
    assert dropout == 0
    T, S, groups = len(q), len(k), q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1).double() for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q.double(), k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(S) - (torch.arange(T)[:, None] + S - T)
    left, right = window
    hidden = distance > 0 if causal else torch.zeros_like(distance, dtype=torch.bool)
    hidden = hidden | ((distance < -left) & (left >= 0)) | ((distance > right) & (right >= 0))
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1).nan_to_num()
    return torch.einsum("hts,shd->thd", weights, v).to(q.dtype)


def write_repository(folder: Path, name: str = "flash-attn2") -> Path:
    """A kernel repository with this file in it."""
    variant = folder / "build" / "torch-universal"
    variant.mkdir(parents=True)
    (variant / "__init__.py").write_text(Path(__file__).read_text())
    metadata = {"name": name, "id": f"_{name.replace('-', '_')}_in_torch", "version": 1, "license": "Apache-2.0"}
    (variant / "metadata.json").write_text(json.dumps({**metadata, "python-depends": [], "backend": {"type": "cuda"}}))
    return folder
