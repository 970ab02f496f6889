"""Memory of a training step of any configuration, part by part, known before anything is allocated.

A step is run on fake tensors: its forward and backward pass make the tensors that they would make on a CPU, and what is
alive is added up (`LiveStorage`). What shards over ranks is divided: Rajbhandari et al. 2019, arXiv 1910.02054, sec. 5.

    weights           stage 3: / ranks, and what is gathered of two blocks
    gradients         stage 2 and 3: / ranks, and those of one block until they are given away
    optimizer states  stage 1, 2 and 3: / ranks, and so fp32 master weights
    activations       of the rank's own rows

FSDP's full sharding is stage 3, its SHARD_GRAD_OP stage 2.
"""

import math
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn
from transformers import PretrainedConfig

from hf_ext.training.optimizers import block_matrices, create_optimizer
from hf_ext.training.scaling.fake_model import check_sizes, fake_batch, fake_model, fake_tensors, find_head
from hf_ext.training.scaling.live_storage import LiveStorage


@dataclass(frozen=True)
class Precision:
    """weights: dtype they are held in, and their gradients. autocast: dtype of the products, or None. master: whether the
    optimizer holds fp32 copies, and its states in fp32."""

    weights: torch.dtype
    autocast: torch.dtype | None = None
    master: bool = False


PRECISIONS = MappingProxyType(
    {
        "fp32": Precision(torch.float32),
        "bf16": Precision(torch.bfloat16),  # all of it, states too
        "bf16_autocast": Precision(torch.float32, torch.bfloat16),  # the Trainer's bf16: true
        "fp16_autocast": Precision(torch.float32, torch.float16),  # the Trainer's fp16: true
        "bf16_master": Precision(torch.bfloat16, master=True),  # DeepSpeed's and Megatron's
        "fp16_master": Precision(torch.float16, master=True),
    }
)

OPTIMIZERS = ("adamw", "adamw_8bit", "muon", "sgd", "sgd_momentum", "adafactor")

# bitsandbytes: tensors smaller than this keep fp32 states, and the Trainer has it keep those of embeddings in fp32
SMALLEST_8BIT = 4096
BLOCK_8BIT = 256  # elements that share a scale, in fp32

STEP_BYTES = 4  # torch's AdamW counts each parameter's steps in an fp32 number


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank.

    Attributes:
        weights: parameters and buffers. gradients, optimizer: whole or a shard of them. master: fp32 copies of the weights.
        activations: what the forward pass leaves for the backward pass; under autocast also the cast weights.
        gathered: weights of two blocks and gradients of one, under sharding.
        working: what the step's fullest moment holds beyond the sum of all these; 0 where they aren't there together.
        peak: the most at once.
    """

    weights: int
    gradients: int
    optimizer: int
    master: int
    activations: int
    gathered: int
    working: int
    peak: int


def estimate_memory(
    config: PretrainedConfig,
    *,
    batch_size: int,
    length: int,
    source_length: int | None = None,
    head: str | None = None,
    optimizer: str = "adamw",
    precision: str = "fp32",
    checkpointing: bool = False,
    accumulation_steps: int = 1,
    zero_stage: int = 0,
    ranks: int = 1,
    attn_implementation: str | None = None,
    adapter=None,
) -> MemoryEstimate:
    """Memory of a training step.

    Args:
        batch_size: rows on a rank in one forward pass. length: tokens a row. source_length: of an encoder-decoder's encoder;
            default `length`.
        head: see `fake_model.find_head`.
        optimizer: one of `OPTIMIZERS`. "adamw" is torch's fused one, "muon" ours with AdamW for the rest, "adamw_8bit" and
            "adafactor" (without first moments) those that the Trainer knows.
        precision: one of `PRECISIONS`.
        checkpointing: keep the blocks' inputs alone and compute the rest again.
        accumulation_steps: forward passes a step; beyond one, the gradients stay while the next runs.
        zero_stage: 0 to 3. ranks: that share the shards.
        attn_implementation: default: the model's own choice, which on CPU and accelerators holds no scores.
        adapter: a configuration of peft's; only what it trains has gradients and states.

    Raises:
        ValueError: one line, for what can't be or isn't known.
    """
    check_sizes(
        config,
        batch_size=batch_size,
        length=length,
        source_length=source_length,
        ranks=ranks,
        accumulation_steps=accumulation_steps,
    )
    _check_stage(zero_stage, optimizer)
    step = measure_step(
        config,
        batch_size=batch_size,
        length=length,
        source_length=source_length,
        head=head,
        optimizer=optimizer,
        precision=precision,
        checkpointing=checkpointing,
        attn_implementation=attn_implementation,
        adapter=adapter,
    )
    return step.divided(accumulation_steps=accumulation_steps, zero_stage=zero_stage, ranks=ranks)


def _check_stage(zero_stage: int, optimizer: str) -> None:
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"zero_stage={zero_stage!r}: must be 0, 1, 2 or 3")
    if zero_stage and optimizer == "muon":
        raise ValueError(
            f"zero_stage={zero_stage}: splits matrices, which muon needs whole; set optimizer='adamw' or stage 0"
        )


@dataclass(frozen=True)
class MeasuredStep:
    """A step on one rank, whole; what sharding makes of it is arithmetic.

    Attributes, in bytes: weights, states, master, activations: as in `MemoryEstimate`. stepping: what the optimizer's step
    takes beside its states. block: weights of the largest block; block_gradients: those of them with a gradient.
    step: what lives when.
    """

    weights: int
    states: int
    master: int
    activations: int
    stepping: int
    block: int
    block_gradients: int
    step: LiveStorage

    def divided(self, *, accumulation_steps: int = 1, zero_stage: int = 0, ranks: int = 1) -> MemoryEstimate:
        """The memory of one of `ranks` under a stage of ZeRO."""
        gradients = self.step.gradients
        sharded = ranks > 1 and zero_stage >= 2
        gathered_weights = 2 * self.block if sharded and zero_stage == 3 else 0
        gathered_gradients = self.block_gradients if sharded else 0
        held = {
            "weights": _shard(self.weights, ranks if zero_stage == 3 else 1),
            "optimizer": _shard(self.states, ranks if zero_stage >= 1 else 1),
            "master": _shard(self.master, ranks if zero_stage >= 1 else 1),
        }
        shard = _shard(gradients, ranks if sharded else 1)
        if accumulation_steps > 1:  # gradients of earlier passes are there from the beginning
            passes = shard + gathered_gradients + self.step.peak(share=0)
        else:
            passes = self.step.peak(shard / gradients if gradients else 1, gathered_gradients)
        always = sum(held.values())
        gathered = gathered_weights + gathered_gradients
        peak = always + math.ceil(max(passes + gathered_weights, shard + self.stepping))
        return MemoryEstimate(
            **held,
            gradients=shard,
            activations=self.activations,
            working=max(0, peak - always - shard - self.activations - gathered),
            gathered=gathered,
            peak=peak,
        )


def measure_step(
    config: PretrainedConfig,
    *,
    batch_size: int,
    length: int,
    source_length: int | None = None,
    head: str | None = None,
    optimizer: str = "adamw",
    precision: str = "fp32",
    checkpointing: bool = False,
    attn_implementation: str | None = None,
    adapter=None,
) -> MeasuredStep:
    """A step on fake tensors. Args: as in `estimate_memory`."""
    _check_name("optimizer", optimizer, OPTIMIZERS)
    _check_name("precision", precision, tuple(PRECISIONS))
    kind = PRECISIONS[precision]
    head = find_head(config, head)
    with fake_tensors():
        model = fake_model(
            config, head=head, dtype=kind.weights, attn_implementation=attn_implementation, adapter=adapter
        ).train()
        if checkpointing:
            if adapter is not None:
                model.enable_input_require_grads()  # else nothing that goes into a block would have a gradient
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        batch = fake_batch(model, head, batch_size, length, source_length, labels=True)
        activations, step = run_step(model, batch, kind.autocast)
        states = optimizer_state_bytes(model, optimizer, torch.float32 if kind.master else kind.weights)
        stepping = optimizer_step_bytes(model, optimizer)
    trained = [p for p in model.parameters() if p.requires_grad]
    largest = largest_block(model)
    return MeasuredStep(
        weights=sum(_bytes(t) for t in (*model.parameters(), *model.buffers())),
        states=states,
        master=sum(4 * p.numel() for p in trained) if kind.master else 0,
        activations=activations,
        stepping=stepping,
        block=sum(_bytes(p) for p in largest),
        block_gradients=sum(_bytes(p) for p in largest if p.requires_grad),
        step=step,
    )


def run_step(model: nn.Module, batch: dict, autocast: torch.dtype | None = None) -> tuple[int, LiveStorage]:
    """Forward and backward pass of a model in training, fake or real.

    Args:
        autocast: dtype of the forward pass's products; default the weights'.

    Returns:
        bytes that the forward pass leaves alive, and the count of the whole.
    """
    live = LiveStorage(model)
    with live:
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            loss = model(**batch).loss
        activations = live.now
        loss.backward()
    return activations, live


def optimizer_state_bytes(model: nn.Module, optimizer: str, dtype: torch.dtype) -> int:
    """Bytes of an optimizer's states; one of `OPTIMIZERS`.

    Args:
        dtype: of the states, that of what is stepped.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    size = dtype.itemsize
    if optimizer == "sgd":
        return 0
    if optimizer == "sgd_momentum":
        return sum(size * p.numel() for p in trained)
    if optimizer == "adafactor":
        return sum(STEP_BYTES + 4 * _factored(p) for p in trained)
    if optimizer == "adamw_8bit":
        embeddings = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        return sum(2 * (4 * p.numel() if p in embeddings else _bytes_8bit(p)) for p in trained)
    matrices = block_matrices(model) if optimizer == "muon" else set()
    return sum(size * p.numel() if p in matrices else 2 * size * p.numel() + STEP_BYTES for p in trained)


def optimizer_step_bytes(model: nn.Module, optimizer: str) -> int:
    """Bytes that an optimizer's step takes beside its states; the gradients must be there. Muon's is run on them."""
    if optimizer != "muon":
        return 0
    muon = create_optimizer(model, name="muon", learning_rate=1e-3)
    group = muon.param_groups[0]
    live = LiveStorage(model)
    with live, torch.no_grad():
        muon._muon_step(group, group["params"])
    momentum = sum(_bytes(state["momentum_buffer"]) for state in muon.state.values())
    rest = [_bytes(p) for g in muon.param_groups[1:] for p in g["params"]]
    adamw = 2 * max(rest, default=0)  # the root of a parameter's second moment, and that divided
    return max(int(live.peak()) - momentum, adamw)


def largest_block(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the largest piece that is gathered at once: a block, or an embedding outside of them."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    pieces = [list(block.parameters()) for blocks in lists for block in blocks]
    inside = {parameter for piece in pieces for parameter in piece}
    pieces += [[parameter] for parameter in model.parameters() if parameter not in inside]
    return max(pieces, key=lambda piece: sum(_bytes(p) for p in piece))


def _factored(parameter: nn.Parameter) -> int:
    """Numbers of Adafactor's second moment: rows and columns of a matrix; Shazeer & Stern 2018, arXiv 1804.04235, alg. 4."""
    *batch, rows, columns = parameter.shape if parameter.ndim > 1 else (parameter.numel(), 0)
    return math.prod(batch) * (rows + columns)


def _bytes_8bit(parameter: nn.Parameter) -> int:
    """Bytes of one 8-bit state: Dettmers et al. 2021, arXiv 2110.02861, sec. 2."""
    count = parameter.numel()
    return 4 * count if count < SMALLEST_8BIT else count + 4 * -(-count // BLOCK_8BIT)


def _shard(size: int, ranks: int) -> int:
    return -(-size // ranks)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{what}={name!r}: must be one of {', '.join(known)}")
