"""Cross-entropy of token predictions: plain from logits, and fused with the last linear layer so that they never exist.

N tokens, d hidden size, V vocabulary, C tokens in a chunk.

With logits z (softcapped: c tanh(z / c)), log_z = log sum_v exp(z_v), smoothing e and z-loss weight w, a token labelled
y costs
    loss = log_z - (1 - e) z_y - e mean_v(z_v) + w log_z^2
and its gradient is
    dloss/dz_v = (1 + 2 w log_z) softmax(z)_v - (1 - e) [v = y] - e / V,   times 1 - (z_v / c)^2 under a softcap.

The z-loss keeps log_z near 0: Chowdhery et al. 2022, arXiv 2204.02311, section 5; Zoph et al. 2022, arXiv 2202.08906,
eq. 5. Label smoothing: Szegedy et al. 2016, arXiv 1512.00567, section 7. Softcap: Gemma Team 2024, arXiv 2408.00118.
Chunks with the gradient computed in the forward pass: Hsu et al. 2024, arXiv 2410.10989, section 3.2.
"""

import re

import torch
from torch.nn import functional as F

from hf_ext.ops.fake_tensors import has_values
from hf_ext.ops.kernel_choice import takes_triton
from hf_ext.ops.matrix_product import add_outer_product, linear, outer_product_bytes


# Bytes of one chunk's logits in fp32. Measured on 2 AVX2 cores, fp32, d = 512, V = 32,000, N = 2,048: 16, 32 and 64 MB
# (128, 256, 512 rows) take the same time within 3 %, 128 MB takes longer, and small ones keep reading the weight anew.
CHUNK_BYTES = 16 * 2**20

# The copy of this file in a Hub repository registers its operator beside ours, not over it.
NAMESPACE = re.sub(r"\W", "_", __name__)


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss_weight: float = 0.0,
    num_items_in_batch: int | torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Mean over the labelled tokens of log_z - (1 - e) z_y - e mean(z) + w log_z^2, see the file's head.

    Args:
        logits: (..., V), floating; computed with in fp32 (fp64 for fp64). labels: (...), integers, already shifted.
        ignore_index: label of the tokens that don't count.
        label_smoothing: e, 0 to 1, as in torch. z_loss_weight: w >= 0; 1e-4 is usual.
        num_items_in_batch: tokens to divide by instead of this batch's own count, so that the losses of several
            micro-batches add up to that of the whole batch; int or 0-d tensor.
        softcap: c > 0, or None.

    Returns:
        0-d, fp32 (fp64 for fp64 logits).

    Raises:
        ValueError: an option out of range, shapes that don't match; on CPU also a label outside the vocabulary, and no
            labelled token at all without `num_items_in_batch`.
    """
    _check(logits.shape[:-1], logits.shape[-1], labels, ignore_index, num_items_in_batch)
    _check_options(label_smoothing, z_loss_weight, softcap)
    logits = logits.flatten(0, -2).to(_precision(logits.dtype))  # (N, V)
    labels = labels.flatten().to(logits.device, torch.int64)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)

    loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum")
    if z_loss_weight:
        log_z = logits.logsumexp(dim=-1)
        loss = loss + z_loss_weight * (log_z.square() * (labels != ignore_index)).sum()
    return loss / _num_items(labels, ignore_index, num_items_in_batch)


def linear_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss_weight: float = 0.0,
    num_items_in_batch: int | torch.Tensor | None = None,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """`cross_entropy(F.linear(hidden_states, weight, bias), labels)` without the (N, V) logits.

    Rows go through in chunks; each chunk's logits are turned into its share of the gradients at once and thrown away.
    So nothing larger than a chunk or the weight is made, the logits are computed once, and ignored rows cost nothing.

    Args:
        hidden_states: (..., d), floating. weight: (V, d). bias: (V,). One dtype, or under autocast any.
            The matrix products run in that dtype (autocast: in autocast's), everything between them in fp32, and the
            weight's gradient is summed over chunks in fp32.
        labels: (...), integers, already shifted.
        chunk_size: rows of logits that exist at a time; None: `default_chunk_size`. The result doesn't depend on it
            beyond rounding.
        The other options: as in `cross_entropy`.

    Returns:
        0-d, fp32 (fp64 for fp64 inputs). Differentiable once, in hidden_states, weight and bias.

    Raises:
        ValueError: as `cross_entropy`; dtypes that differ outside of autocast; chunk_size below 1.
    """
    vocab_size = weight.shape[0]
    _check(hidden_states.shape[:-1], vocab_size, labels, ignore_index, num_items_in_batch)
    _check_options(label_smoothing, z_loss_weight, softcap)
    if weight.ndim != 2 or weight.shape[1] != hidden_states.shape[-1]:
        raise ValueError(
            f"weight: shape {tuple(weight.shape)} must be (vocabulary, hidden size {hidden_states.shape[-1]})"
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: must be at least 1 row, or None to choose by memory")

    dtype = hidden_states.dtype
    if torch.is_autocast_enabled(hidden_states.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(hidden_states.device.type)
    elif any(tensor is not None and tensor.dtype != dtype for tensor in (weight, bias)):
        others = " and ".join(str(tensor.dtype) for tensor in (weight, bias) if tensor is not None)
        raise ValueError(f"hidden_states are {dtype}, weight and bias {others}: cast them to one dtype or use autocast")

    labels = labels.flatten().to(hidden_states.device, torch.int64)
    inputs = (hidden_states, weight, bias)
    # read here: inside the operator gradients are off
    wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs]
    count = torch.as_tensor(_num_items(labels, ignore_index, num_items_in_batch))
    at_once = hidden_states.device.type == "cpu" and dtype != torch.float16
    loss, *_ = _loss_and_gradients(
        hidden_states.flatten(0, -2),
        weight,
        bias,
        labels,
        ignore_index,
        float(label_smoothing),
        float(z_loss_weight),
        None if softcap is None else float(softcap),
        chunk_size or default_chunk_size(*weight.shape),
        dtype,
        wanted,
        count if at_once else None,
    )
    return loss if at_once else loss / count


# An operator, not an autograd.Function: to torch.compile it is one opaque node, so its loop may depend on the data.
@torch.library.custom_op(f"{NAMESPACE}::linear_cross_entropy", mutates_args=())
def _loss_and_gradients(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss_weight: float,
    softcap: float | None,
    chunk_size: int,
    dtype: torch.dtype,
    wanted: list[bool],
    count: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss summed over labelled rows; its gradients by hidden_states (N, d), weight, bias, empty where not wanted.

    All are divided by `count`, tokens, 0-d, where it is given: what comes back in backward is then 1 in plain training,
    and no gradient is multiplied again, for which the weight's would be held twice. None: backward divides, together
    with the loss scale, so that fp16 keeps the small ones; nor would it help a GPU, which isn't asked what came back.
    """
    wants_hidden, wants_weight, wants_bias = wanted
    results = _results(hidden_states, weight, bias, dtype, wanted)
    loss, grad_hidden, grad_weight, grad_bias = (hidden_states.new_zeros(shape, dtype=kind) for shape, kind in results)
    grad_weight = grad_weight.to(loss.dtype)  # the sum over chunks
    vocab_size = weight.shape[0]
    rows = (labels != ignore_index).nonzero().squeeze(-1)
    with torch.no_grad(), torch.autocast(hidden_states.device.type, enabled=False):
        matrix = weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        for row in rows.chunk(-(-len(rows) // chunk_size)) if len(rows) else ():
            x = hidden_states.index_select(0, row).to(dtype)  # (C, d)
            y = labels[row].unsqueeze(-1)  # (C, 1)
            product = linear(x, matrix, offset)  # (C, V)
            if takes_triton(product):
                from hf_ext.ops.triton.triton_cross_entropy import cross_entropy_of_chunk

                losses = cross_entropy_of_chunk(
                    product,
                    labels[row],
                    label_smoothing=label_smoothing,
                    z_loss_weight=z_loss_weight,
                    softcap=softcap,
                    wants_gradient=any(wanted),
                )
                loss += losses.sum()
                if any(wanted):
                    if count is not None:
                        product /= count
                    _add_gradients(product, x, row, matrix, grad_hidden, grad_weight, grad_bias, wanted)
                continue
            z = product.to(loss.dtype)  # fp32: the same memory
            if softcap is not None:
                z = z.div_(softcap).tanh_()
                slope = z.square().neg_().add_(1) if any(wanted) else None
                z = z.mul_(softcap)

            # taking the row's maximum off changes nothing but log_z, which gets it back
            maximum = z.amax(dim=-1, keepdim=True)
            z = z.sub_(maximum)
            cost = (label_smoothing - 1) * z.gather(-1, y)
            if label_smoothing:
                cost -= label_smoothing * z.mean(dim=-1, keepdim=True)
            total = z.exp_().sum(dim=-1, keepdim=True)
            log_z = total.log() + maximum
            loss += (cost + total.log() + z_loss_weight * log_z.square()).sum()

            if not any(wanted):
                continue
            share = torch.ones_like(cost) if count is None else 1 / count.to(cost.dtype).expand_as(cost)  # of a token
            dz = z.mul_((1 + 2 * z_loss_weight * log_z) / total * share)
            if label_smoothing:
                dz -= share * (label_smoothing / vocab_size)
            dz.scatter_add_(-1, y, share * (label_smoothing - 1))
            if softcap is not None:
                dz *= slope
            if wants_bias:
                grad_bias += dz.sum(dim=0)
            without_bias = (wants_hidden, wants_weight, False)
            _add_gradients(product.copy_(dz), x, row, matrix, grad_hidden, grad_weight, grad_bias, without_bias)
    if count is not None:
        loss /= count
    return loss, grad_hidden, grad_weight.to(_kept(weight.dtype)), grad_bias


def _add_gradients(dz, x, row, matrix, grad_hidden, grad_weight, grad_bias, wanted) -> None:
    """Adds a chunk's part of each gradient. dz: (C, V). x: (C, d). row: (C,), where the chunk's rows lie."""
    wants_hidden, wants_weight, wants_bias = wanted
    if wants_bias:
        grad_bias += dz.sum(dim=0, dtype=grad_bias.dtype)
    if wants_hidden:
        grad_hidden.index_copy_(0, row, linear(dz, matrix.T).to(grad_hidden.dtype))
    if wants_weight and dz.dtype == grad_weight.dtype:
        add_outer_product(grad_weight, dz, x)
    elif wants_weight:
        grad_weight += dz.T @ x


@_loss_and_gradients.register_fake
def _(hidden_states, weight, bias, labels, ignore_index, smoothing, z_loss, softcap, chunk_size, dtype, wanted, count):
    results = _results(hidden_states, weight, bias, dtype, wanted)
    return tuple(hidden_states.new_empty(shape, dtype=kind) for shape, kind in results)


def _results(hidden_states, weight, bias, dtype, wanted):
    """Shape and dtype of the loss and of each gradient."""
    yield (), _precision(dtype)
    yield hidden_states.shape if wanted[0] else (0,), hidden_states.dtype
    yield weight.shape if wanted[1] else (0,), _kept(weight.dtype)
    yield bias.shape if wanted[2] else (0,), _precision(dtype)


def _keep_gradients(ctx, inputs, output):
    _, *gradients = output
    hidden_states, weight, bias, *_, ctx.wanted, _ = inputs
    ctx.dtypes = (hidden_states.dtype, weight.dtype, None if bias is None else bias.dtype)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*gradients)
    ctx.save_for_backward(*gradients)


@torch.autograd.function.once_differentiable
def _scale_gradients(ctx, grad_loss, *_):
    gradients = [None, None, None]
    if grad_loss is not None:
        unscaled = _is_one(grad_loss)
        for index, gradient in enumerate(ctx.saved_tensors):
            if ctx.wanted[index]:
                scaled = gradient if unscaled else gradient * grad_loss
                gradients[index] = scaled.to(ctx.dtypes[index])
    return *gradients, *[None] * 9


_loss_and_gradients.register_autograd(_scale_gradients, setup_context=_keep_gradients)


def _is_one(grad_loss: torch.Tensor) -> bool:
    """Whether nothing is to be multiplied, which saves a second copy of the weight's gradient while all activations are
    there; asked only where the answer needs no waiting."""
    return type(grad_loss) is torch.Tensor and grad_loss.device.type == "cpu" and bool(grad_loss == 1)


def _precision(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _kept(dtype: torch.dtype) -> torch.dtype:
    """What a weight's finished gradient waits for its scale in: bf16 has the range of fp32, fp16 has not."""
    return dtype if dtype == torch.bfloat16 else _precision(dtype)


def default_chunk_size(vocab_size: int, hidden_size: int) -> int:
    """Rows of logits that exist at a time: those that fit `CHUNK_BYTES`, but at least hidden_size / 2.

    Each chunk reads the weight and adds to its gradient, V d numbers, and computes 6 C V d operations: with fewer rows
    than that memory traffic would outweigh the arithmetic. At d / 2 the logits take half of what that gradient takes.
    """
    return max(1, CHUNK_BYTES // (4 * vocab_size), hidden_size // 2)


def workspace_bytes(
    hidden_states,
    weight,
    bias,
    labels,
    ignore_index,
    label_smoothing,
    z_loss_weight,
    softcap,
    chunk_size,
    dtype,
    wanted,
    count=None,
) -> int:
    """Bytes that the operator takes beside what it returns, at its fullest, all rows being labelled; args: its own."""
    precision, (vocab_size, d) = _precision(dtype), weight.shape
    rows = -(-hidden_states.shape[0] // max(1, -(-hidden_states.shape[0] // chunk_size)))  # of a chunk
    logits, states = rows * vocab_size, rows * d
    total = (logits + states) * dtype.itemsize
    if dtype != precision:
        total += logits * precision.itemsize
    if softcap is not None and any(wanted):
        total += logits * precision.itemsize  # its slope
    if weight.dtype != dtype:
        total += weight.numel() * dtype.itemsize
    if wanted[1]:
        if _kept(weight.dtype) != precision:
            total += weight.numel() * precision.itemsize  # the sum over chunks
        if dtype == precision:
            total += outer_product_bytes(rows, vocab_size, d) * dtype.itemsize // 4
        else:
            total += weight.numel() * dtype.itemsize
    return total


def _num_items(labels: torch.Tensor, ignore_index: int, num_items_in_batch: int | torch.Tensor | None):
    if num_items_in_batch is None:
        return (labels != ignore_index).sum()
    if isinstance(num_items_in_batch, torch.Tensor):
        return num_items_in_batch.to(labels.device)
    return num_items_in_batch


def _check(
    shape: torch.Size,
    vocab_size: int,
    labels: torch.Tensor,
    ignore_index: int,
    num_items_in_batch: int | torch.Tensor | None,
) -> None:
    """Shapes always; values on CPU outside of tracing only, where reading them costs nothing."""
    if labels.shape != shape:
        raise ValueError(f"labels: shape {tuple(labels.shape)} must be that of the rows to predict, {tuple(shape)}")
    if labels.is_floating_point():
        raise ValueError(f"labels: dtype {labels.dtype} must be an integer one; labels are token ids")
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if num_items_in_batch is not None:
        is_tensor = isinstance(num_items_in_batch, torch.Tensor)
        readable = not is_tensor or (num_items_in_batch.device.type == "cpu" and has_values(num_items_in_batch))
        if readable and num_items_in_batch <= 0:
            raise ValueError(
                f"num_items_in_batch={int(num_items_in_batch)}: must be at least 1 token, None counts them"
            )
    if type(labels) is not torch.Tensor or labels.device.type != "cpu":
        return
    counted = labels[labels != ignore_index]
    if not counted.numel() and num_items_in_batch is None:
        raise ValueError(
            f"labels: every one of the {labels.numel()} labels is ignore_index={ignore_index}; "
            "drop the batch or give num_items_in_batch"
        )
    wrong = counted[(counted < 0) | (counted >= vocab_size)]
    if wrong.numel():
        raise ValueError(
            f"labels: {int(wrong[0])} is outside the vocabulary 0..{vocab_size - 1}; "
            f"use {ignore_index} for tokens that are not to be predicted"
        )


def _check_options(label_smoothing: float, z_loss_weight: float, softcap: float | None) -> None:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing={label_smoothing}: must be from 0 to 1; 0.1 is usual")
    if not z_loss_weight >= 0:
        raise ValueError(f"z_loss_weight={z_loss_weight}: must not be negative; 1e-4 is usual, 0 turns it off")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap}: must be positive, or None for logits without a bound")
