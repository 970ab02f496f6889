"""Optimizers: Muon for the matrices inside the blocks, AdamW for the rest, as one torch optimizer.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"): the momentum of a weight matrix is
replaced by the nearest matrix with orthonormal rows or columns, so that every direction of the matrix learns at the same
rate. With M_t = momentum * M_{t-1} + G_t and Nesterov's G_t + momentum * M_t,

    O_t = NewtonSchulz(G_t + momentum * M_t),   W = (1 - lr * weight_decay) * W - lr * scale * O_t

scale = 0.2 * sqrt(max(rows, columns)) gives the update the root mean square of AdamW's, so that one learning rate and one
weight decay serve both (Liu et al. 2025, arXiv 2502.16982, eq. 4): `adjust="match_rms_adamw"`. Jordan et al.'s own is
sqrt(max(1, rows / columns)), `adjust="spectral"`, wants a learning rate of its own.

O_t has rows of very different lengths still. NorMuon (Li et al. 2025, arXiv 2510.05491, alg. 1) divides each by the
root of a running mean of its squares, v_t = beta2 * v_{t-1} + (1 - beta2) * mean over columns of O_t², then scales the
matrix back to the norm of O_t: neurons, the rows of a linear layer's weight, learn at one rate as directions do.
"""

import difflib
import math
from collections import defaultdict

import torch
from torch import nn
from torch.optim.adamw import adamw
from transformers.pytorch_utils import Conv1D


OPTIMIZERS = ("adamw", "muon")
ADJUSTMENTS = ("match_rms_adamw", "spectral")
# p(x) = a x + b x³ + c x⁵ drives every singular value in (0, 1] towards 1: steep at 0, and within 0.7 to 1.2 after 5 steps
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


# added to a row's root mean square, which is near 1 / sqrt(max(rows, columns)) where the row has a gradient at all
NEURON_EPS = 1e-8


# what the Newton-Schulz products may be computed in
PRECISIONS = ("float32", "bfloat16", "auto")


def product_dtype(name: str | None) -> torch.dtype | None:
    """The dtype that one of `PRECISIONS` means here: "auto" is bf16 where it multiplies faster, on accelerators and on
    processors with AVX512-BF16 or AMX, else fp32. None stays None."""
    if name != "auto":
        return name and getattr(torch, name)
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if torch.accelerator.is_available() or has_bf16 else torch.float32


def orthogonalize(
    matrices: torch.Tensor, steps: int = NEWTON_SCHULZ_STEPS, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """U V^T of each matrix U S V^T, roughly: singular values near 1 instead of S. Jordan et al. 2024.

    Args:
        matrices: (..., rows, columns); all of them go through one batched product a step.
        dtype: what the products are computed in; default bf16 on an accelerator, fp32 on CPU, where only some processors
            multiply bf16 faster. The rounding of bf16 is well below what the five steps leave of the singular values.

    Returns:
        The same shape and dtype.
    """
    a, b, c = NEWTON_SCHULZ
    if dtype is None:
        dtype = torch.float32 if matrices.device.type == "cpu" else torch.bfloat16
    x = matrices.to(dtype).reshape(-1, *matrices.shape[-2:])  # baddbmm takes one batch dimension
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT  # the Gram matrix is then the smaller one
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        # each sum comes with its product: small matrices spend as long on passes over memory as on multiplying
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype).reshape(matrices.shape)


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer of two rules: groups with `use_muon` take Muon's step, the others AdamW's.

    Being one optimizer, it goes through the Trainer, its schedules, checkpoints and resumes like any other.

    Args:
        param_groups: as `parameter_groups` makes them.
        lr, weight_decay, betas, eps: defaults of the groups; betas and eps are AdamW's.
        momentum: Muon's, with Nesterov's look ahead.
        adjust: the scale of Muon's update, see the file's head.
        muon_dtype: "float32", "bfloat16", "auto" or None, see `product_dtype` and `orthogonalize`.
        muon_beta2: NorMuon's beta2, in [0, 1); None for plain Muon.
    """

    def __init__(
        self,
        param_groups,
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        momentum: float = 0.95,
        adjust: str = "match_rms_adamw",
        muon_dtype: str | None = None,
        muon_beta2: float | None = None,
    ):
        _check_name("adjust", adjust, ADJUSTMENTS)
        if muon_dtype is not None:
            _check_name("muon_dtype", muon_dtype, PRECISIONS)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
            "momentum": momentum,
            "adjust": adjust,
            "muon_dtype": muon_dtype,
            "muon_beta2": muon_beta2,
            "use_muon": False,
        }
        super().__init__(param_groups, defaults)
        for group in self.param_groups:
            if group["use_muon"]:
                for parameter in group["params"]:
                    _check_matrix(parameter)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # those saved before there was a choice
            group.setdefault("adjust", "match_rms_adamw")
            group.setdefault("muon_dtype", None)
            group.setdefault("muon_beta2", None)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["use_muon"]:
                self._muon_step(group, parameters)
            elif parameters:
                self._adamw_step(group, parameters)
        return loss

    def _muon_step(self, group: dict, parameters: list[torch.Tensor]) -> None:
        by_shape = defaultdict(list)
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(parameter.grad)
            update = parameter.grad.add(buffer, alpha=group["momentum"])
            by_shape[(parameter.shape, parameter.dtype, parameter.device)].append((parameter, update))
        for (shape, _, _), pairs in by_shape.items():
            # one batched product for all matrices of a shape: small ones are too small to keep a processor busy alone
            stacked = torch.stack([update for _, update in pairs])
            updates = orthogonalize(stacked, dtype=product_dtype(group["muon_dtype"]))
            if group["muon_beta2"] is not None:
                updates = self._even_neurons([parameter for parameter, _ in pairs], updates, group["muon_beta2"])
            scale = update_scale(*shape[-2:], group["adjust"])
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)

    def _even_neurons(self, parameters: list[torch.Tensor], updates: torch.Tensor, beta2: float) -> torch.Tensor:
        """NorMuon's division of stacked updates (N, ..., rows, columns) by each row's running root mean square."""
        squares = updates.square().mean(dim=-1, keepdim=True)
        for parameter, square in zip(parameters, squares, strict=True):
            state = self.state[parameter]
            if "neuron_mean_square" not in state:
                state["neuron_mean_square"] = torch.zeros_like(square)
            state["neuron_mean_square"].lerp_(square, 1 - beta2)
        means = torch.stack([self.state[parameter]["neuron_mean_square"] for parameter in parameters])
        evened = updates / (means.sqrt() + NEURON_EPS)
        norm, before = (torch.linalg.matrix_norm(x, keepdim=True) for x in (evened, updates))
        # both are 0 where there is no gradient yet, as behind an output matrix that starts at 0
        return evened * (before / norm.clamp(min=NEURON_EPS))

    def _adamw_step(self, group: dict, parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            foreach=parameters[0].device.type != "cpu",
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def update_scale(rows: int, columns: int, adjust: str) -> float:
    """Factor on an orthogonalized update."""
    return 0.2 * math.sqrt(max(rows, columns)) if adjust == "match_rms_adamw" else math.sqrt(max(1, rows / columns))


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{what}={name!r}: must be one of {', '.join(known)}{hint}")


def _check_matrix(parameter: torch.Tensor) -> None:
    if type(parameter).__name__ == "DTensor":
        raise ValueError("matrix_optimizer=muon: can't take sharded parameters (DTensor); use adamw under FSDP2 and TP")
    if parameter.ndim < 2:
        raise ValueError(f"matrix_optimizer=muon: a parameter of shape {tuple(parameter.shape)} is no matrix")


def block_matrices(model: nn.Module) -> set[nn.Parameter]:
    """The weights that Muon takes: matrices of the linear layers and stacked experts inside the blocks.

    A block is an item of a `ModuleList` of the base model. Embeddings, output heads and classifiers, also a list of them,
    stand outside; low-rank adapters (`lora_A`, `lora_B`) stay out because what should be orthogonal is their product.
    Stacked experts are 3-D parameters (experts, rows, columns) of a module that is no convolution.
    """
    outside = set()
    for get in ("get_input_embeddings", "get_output_embeddings"):
        module = getattr(model, get, lambda: None)()
        if module is not None:
            outside |= set(module.parameters())
    found = set()
    for module in getattr(model, getattr(model, "base_model_prefix", ""), model).modules():
        if isinstance(module, nn.ModuleList):
            for name, layer in module.named_modules():
                if "lora_" in name or isinstance(layer, nn.modules.conv._ConvNd):
                    continue
                if isinstance(layer, nn.Linear | Conv1D):
                    found.add(layer.weight)
                found.update(p for p in layer.parameters(recurse=False) if p.ndim == 3 and min(p.shape[-2:]) > 1)
    return {parameter for parameter in found - outside if parameter.requires_grad}


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay acts on a parameter: on matrices and embeddings, not on biases and norms."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    matrix_learning_rate: float | None = None,
    optimizer: str = "adamw",
) -> list[dict]:
    """Trainable parameters, each once, in up to three groups: Muon's matrices, AdamW with decay, AdamW without."""
    matrices = block_matrices(model) if optimizer == "muon" else set()
    groups = [
        {"params": [], "use_muon": True, "lr": matrix_learning_rate or learning_rate, "weight_decay": weight_decay},
        {"params": [], "use_muon": False, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": [], "use_muon": False, "lr": learning_rate, "weight_decay": 0.0},
    ]
    for name, parameter in model.named_parameters():  # tied weights are named once
        if parameter.requires_grad:
            which = 0 if parameter in matrices else 1 if decays(name, parameter) else 2
            groups[which]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def create_optimizer(
    model: nn.Module,
    *,
    name: str = "adamw",
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    momentum: float = 0.95,
    matrix_learning_rate: float | None = None,
    adjust: str = "match_rms_adamw",
    muon_dtype: str | None = None,
    muon_beta2: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW, or Muon for the matrices inside the blocks and AdamW for the rest.

    Args:
        learning_rate, weight_decay: of both, since Muon's step is scaled to AdamW's size.
        matrix_learning_rate: of Muon alone.
        adjust: the scale of Muon's update, "match_rms_adamw" or "spectral".
        muon_dtype: what Muon's products are computed in, "float32" or "bfloat16"; see `orthogonalize`.
        muon_beta2: NorMuon's, for rows that learn at one rate; None for plain Muon.

    Raises:
        ValueError: unknown name, values out of range, nothing to train, or no matrix for Muon.
    """
    _check_name("optimizer", name, OPTIMIZERS)
    for what, value, valid in (
        ("learning_rate", learning_rate, learning_rate >= 0),
        ("weight_decay", weight_decay, weight_decay >= 0),
        ("matrix_learning_rate", matrix_learning_rate, matrix_learning_rate is None or matrix_learning_rate > 0),
        ("eps", eps, eps > 0),
    ):
        if not valid:
            raise ValueError(
                f"{what}={value}: must be {'above' if what in ('eps', 'matrix_learning_rate') else 'at least'} 0"
            )
    shares = {"betas[0]": betas[0], "betas[1]": betas[1], "momentum": momentum, "muon_beta2": muon_beta2}
    for what, value in shares.items():
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"{what}={value}: must be at least 0 and below 1")
    groups = parameter_groups(
        model,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        matrix_learning_rate=matrix_learning_rate,
        optimizer=name,
    )
    if not groups:
        raise ValueError(f"optimizer={name!r}: {type(model).__name__} has no trainable parameters; unfreeze some")
    if name == "muon" and not groups[0]["use_muon"]:
        raise ValueError(f"optimizer='muon': {type(model).__name__} has no trainable matrix inside a block; use adamw")
    return MuonWithAdamW(
        groups,
        learning_rate,
        weight_decay=weight_decay,
        betas=betas,
        eps=eps,
        momentum=momentum,
        adjust=adjust,
        muon_dtype=muon_dtype,
        muon_beta2=muon_beta2,
    )
