"""Cross-entropy of a chunk of logits and its gradient in one Triton kernel; see `ops/cross_entropy.py` for the equations.

C rows, V vocabulary. A program takes a row: it goes over the logits once for maximum and sum, and once more to write the
gradient over them, where torch would make a dozen passes over a copy in fp32.
"""

import torch
import triton
import triton.language as tl


COLUMNS = 4096  # that a program takes at a time


@triton.jit
def cross_entropy_kernel(
    logits,
    labels,
    losses,
    step,
    vocab_size,
    label_smoothing,
    z_loss_weight,
    softcap,
    SOFTCAP: tl.constexpr,
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """losses (C,) fp32; with GRADIENT logits (C, V) become d(loss)/d(logit). Grid: (C,)."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * step
    label = tl.load(labels + row)
    maximum = tl.full([COLUMNS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    plain_sum = tl.zeros([COLUMNS], dtype=tl.float32)
    # a running maximum and sum for each column of the block, joined at the end
    for first in range(0, vocab_size, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        there = columns < vocab_size
        z = tl.load(logits + columns, mask=there, other=0.0).to(tl.float32)
        if SOFTCAP:
            z = softcap * (2.0 * tl.sigmoid(z * (2.0 / softcap)) - 1.0)
        plain_sum += tl.where(there, z, 0.0)
        z = tl.where(there, z, float("-inf"))
        new_maximum = tl.maximum(maximum, z)
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        total = total * tl.exp(maximum - shift) + tl.exp(z - shift)
        maximum = new_maximum
    row_maximum = tl.max(maximum, 0)
    row_total = tl.sum(total * tl.exp(maximum - row_maximum), 0)
    log_z = row_maximum + tl.log(row_total)
    # a label outside the vocabulary makes the loss NaN: the number beside the row must not become a loss
    known = (label >= 0) & (label < vocab_size)
    chosen = tl.load(logits + label, mask=known, other=0.0).to(tl.float32)
    chosen = tl.where(known, chosen, float("nan"))
    if SOFTCAP:
        chosen = softcap * (2.0 * tl.sigmoid(chosen * (2.0 / softcap)) - 1.0)
    mean = tl.sum(plain_sum, 0) / vocab_size
    loss = log_z - (1.0 - label_smoothing) * chosen - label_smoothing * mean + z_loss_weight * log_z * log_z
    tl.store(losses + row, loss)

    if GRADIENT:
        tl.debug_barrier()  # every thread has read the label's logit before one writes over it
        factor = 1.0 + 2.0 * z_loss_weight * log_z
        for first in range(0, vocab_size, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)
            there = columns < vocab_size
            z = tl.load(logits + columns, mask=there, other=0.0).to(tl.float32)
            if SOFTCAP:
                squashed = 2.0 * tl.sigmoid(z * (2.0 / softcap)) - 1.0
                z = softcap * squashed
            grad = factor * tl.exp(z - log_z) - label_smoothing / vocab_size
            grad -= tl.where(columns == label, 1.0 - label_smoothing, 0.0)
            if SOFTCAP:
                grad *= 1.0 - squashed * squashed
            tl.store(logits + columns, grad.to(logits.dtype.element_ty), mask=there)


def cross_entropy_of_chunk(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss_weight: float = 0.0,
    softcap: float | None = None,
    wants_gradient: bool = True,
) -> torch.Tensor:
    """Each row's loss, fp32 (C,). With `wants_gradient` d(loss)/d(logits) is written over the logits.

    Args:
        logits: (C, V), rows contiguous; fp32, fp16 or bf16. labels: (C,) integer; one outside the vocabulary makes its loss
            NaN.

    Raises:
        ValueError: shapes or strides that the kernel doesn't take.
    """
    C, V = logits.shape
    if labels.shape != (C,):
        raise ValueError(f"labels: shape {tuple(labels.shape)} must be ({C},), one a row of the logits")
    if logits.stride(1) != 1:
        raise ValueError(f"logits: strides {logits.stride()}, rows must be contiguous: they are written over")
    losses = torch.empty(C, dtype=torch.float32, device=logits.device)
    if C:
        with torch.cuda.device_of(logits):  # where Triton launches
            cross_entropy_kernel[(C,)](
                logits,
                labels.contiguous(),
                losses,
                logits.stride(0),
                V,
                float(label_smoothing),
                float(z_loss_weight),
                1.0 if softcap is None else float(softcap),
                SOFTCAP=softcap is not None,
                GRADIENT=wants_gradient,
                COLUMNS=min(COLUMNS, triton.next_power_of_2(V)),
                num_warps=8,
            )
    return losses
