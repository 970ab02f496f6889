"""How to lay a training run out over accelerators: what fits, what is sent, and which of these is fastest.

An arrangement is data-parallel ranks times tensor-parallel ones, a ZeRO stage, checkpointing or not, rows a pass. Its memory
is `estimate_memory` of one rank's slice; a step takes

    max(FLOPs / (utilization · peak), bytes of weights and gradients / link) + bytes of tensor parallelism / link

since the former are sent while the rank computes, the latter while it waits. It is a plan on paper: which of two
arrangements is better is more certain than how long either takes.
"""

import itertools
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from transformers import PretrainedConfig

from hf_ext.models import HfxDecoderConfig
from hf_ext.training.scaling.communication import data_parallel_bytes, tensor_parallel_bytes
from hf_ext.training.scaling.compute_optimal import ACCELERATORS, _check_positive
from hf_ext.training.scaling.flops import count_flops
from hf_ext.training.scaling.memory import MeasuredStep, MemoryEstimate, measure_step


ITEMSIZE = 2  # of what is sent: bf16
LOGITS_ITEMSIZE = 2 * (2 + 4)  # of a logit in bf16 and in the loss's fp32, and of the gradients of both
# of an accelerator's memory; the rest is the driver's, the collectives' buffers, and fragments
USABLE = 0.9
STAGES = (0, 1, 2, 3)
ROWS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Accelerator:
    """peak: FLOP/s in bf16. memory: bytes. inside, between: bytes a second that one sends to others of its node, of other
    nodes. host: bytes of its share of the node's memory. host_link: bytes a second to it. node: accelerators of a node."""

    peak: float
    memory: float
    inside: float
    between: float
    host: float = 256e9
    host_link: float = 25e9
    node: int = 8


# by their makers' data sheets, one way; 400 Gb/s between nodes for each accelerator (a100: 200)
CLUSTERS = MappingProxyType(
    {
        "a100": Accelerator(ACCELERATORS["a100"], 80e9, 300e9, 25e9),
        "h100": Accelerator(ACCELERATORS["h100"], 80e9, 450e9, 50e9),
        "h200": Accelerator(ACCELERATORS["h200"], 141e9, 450e9, 50e9),
        "b200": Accelerator(ACCELERATORS["b200"], 180e9, 900e9, 50e9),
        "mi300x": Accelerator(ACCELERATORS["mi300x"], 192e9, 448e9, 50e9),
    }
)


@dataclass(frozen=True)
class Arrangement:
    """data, tensor: ranks. rows: of a rank in one pass. passes: a step. offload: optimizer states and master weights in the
    host's memory."""

    data: int
    tensor: int
    zero_stage: int
    checkpointing: bool
    rows: int
    passes: int
    offload: bool = False

    @property
    def engine(self) -> str:
        """As the launch configurations are named."""
        name = ("one process" if self.data == 1 else "ddp") if self.zero_stage == 0 else f"zero{self.zero_stage}"
        if self.zero_stage == 3:
            name = "zero3_offload" if self.offload else "fsdp2, zero3"
        return name if self.tensor == 1 else f"tp {self.tensor} · {name}"


@dataclass(frozen=True)
class Layout:
    """A way to run, of one step: seconds it takes, computes, sends of data and of tensor parallelism.

    memory: of a rank. held: bytes of its accelerator that are used. sent_data, sent_tensor: bytes a rank sends a step.
    tokens: of a step, on all ranks. model_flops: of them, what checkpointing computes again left out. peak: FLOP/s of all.
    """

    arrangement: Arrangement
    memory: MemoryEstimate
    held: int
    sent_data: int
    sent_tensor: int
    tokens: int
    parameters: int
    model_flops: float
    peak: float
    compute_seconds: float
    data_seconds: float
    tensor_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.compute_seconds, self.data_seconds) + self.tensor_seconds

    @property
    def utilization(self) -> float:
        """MFU: model FLOPs of a step over what the accelerators could have done in its time."""
        return self.model_flops / (self.seconds * self.peak)

    def days(self, tokens: float) -> float:
        """Days that a run of `tokens` takes."""
        return tokens / self.tokens * self.seconds / 86_400


def plan_layout(
    config: PretrainedConfig,
    *,
    accelerators: int,
    accelerator: str | Accelerator = "h100",
    length: int = 4096,
    tokens_per_step: int = 2**22,
    utilization: float = 0.5,
    optimizer: str = "adamw",
    precision: str = "bf16_master",
) -> list[Layout]:
    """The ways of one cluster that fit, the fastest first; empty where none does.

    Args:
        config: of a decoder of ours whose heads and feed-forward a tensor-parallel rank has a part of.
        length: tokens a row. tokens_per_step: of the whole cluster.
        utilization: share of the peak that a rank's products reach while nothing is sent.

    Raises:
        ValueError: an unknown accelerator, numbers out of range.
    """
    _check_positive(accelerators=accelerators, tokens_per_step=tokens_per_step, length=length)
    if not 0 < utilization <= 1:
        raise ValueError(f"utilization={utilization}: must be above 0 and at most 1; 0.5 is usual")
    if isinstance(accelerator, str):
        if accelerator.lower() not in CLUSTERS:
            raise ValueError(f"accelerator={accelerator!r}: must be one of {', '.join(CLUSTERS)}")
        accelerator = CLUSTERS[accelerator.lower()]
    slices = _slices(type(config), config.to_json_string(use_diff=False), length, optimizer, precision)
    found = []
    for tensor, stage, checkpointing in itertools.product(
        _tensor_sizes(config, accelerators, accelerator), STAGES, (False, True)
    ):
        data = accelerators // tensor
        if data == 1 and stage not in (0, 3):
            continue
        for offload in (False, True) if stage == 3 else (False,):
            if data == 1 and stage == 3 and not offload:
                continue
            fitting = _largest_that_fits(
                slices, accelerator, data, tensor, stage, checkpointing, offload, tokens_per_step // length
            )
            if fitting is not None:
                found.append(_timed(config, slices, accelerator, fitting, length, utilization))
    return sorted(found, key=lambda layout: layout.seconds)


def tensor_parallel_slice(config: PretrainedConfig, ranks: int) -> PretrainedConfig:
    """The configuration of what a tensor-parallel rank holds: its heads, its part of the feed-forward and of the
    vocabulary (the largest there is); what isn't split, it holds whole.

    Raises:
        ValueError: heads or feed-forward that don't divide.
    """
    values = config.to_dict()
    values["head_dim"] = config.head_dim or config.hidden_size // config.num_attention_heads
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        whole = getattr(config, name)
        if whole % ranks:
            raise ValueError(f"{name}={whole}: can't be split over {ranks} ranks; choose a divisor of it")
        values[name] = whole // ranks
    values["vocab_size"] = -(-config.vocab_size // ranks)
    special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}  # may lie in another's part
    return type(config).from_dict(values | special)


@lru_cache(maxsize=2)
def _slices(config_class: type, fields: str, length: int, optimizer: str, precision: str) -> "_Slices":
    """A run's slices, for every number of accelerators that is asked about."""
    return _Slices(config_class.from_dict(json.loads(fields)), length, optimizer, precision)


class _Slices:
    """Memory and FLOPs of a run, by rank's slice; each step measured once."""

    def __init__(self, config: PretrainedConfig, length: int, optimizer: str, precision: str):
        self.config = config
        self.options = {"length": length, "optimizer": optimizer, "precision": precision}
        self.steps: dict[tuple, MeasuredStep] = {}
        self.whole = self.memory(1, 0, 1, True, 1, False)
        self.flops = count_flops(config, length)
        self.row_of_logits = length * config.vocab_size * LOGITS_ITEMSIZE

    def memory(
        self, tensor: int, stage: int, data: int, checkpointing: bool, rows: int, accumulates: bool
    ) -> MemoryEstimate:
        key = (tensor, checkpointing, rows)
        if key not in self.steps:
            part = self.config if tensor == 1 else tensor_parallel_slice(self.config, tensor)
            self.steps[key] = measure_step(part, batch_size=rows, checkpointing=checkpointing, **self.options)
        return self.steps[key].divided(
            accumulation_steps=1 + accumulates, zero_stage=stage if data > 1 else 0, ranks=data
        )

    def at_least(self, tensor: int, stage: int, data: int, offload: bool) -> float:
        """Bytes of weights and states, below which no number of rows gets."""
        states = 0 if offload else (self.whole.optimizer + self.whole.master) / (data if stage else 1)
        return (self.whole.weights / (data if stage == 3 else 1) + states) / tensor

    def logits(self, tensor: int, rows: int) -> int:
        """Bytes of the logits that tensor parallelism gathers, with their gradients; otherwise they never exist whole."""
        return 0 if tensor == 1 else rows * self.row_of_logits


def _tensor_sizes(config, accelerators: int, accelerator: Accelerator) -> list[int]:
    """Powers of two inside a node, that divide the heads and the accelerators."""
    sizes = [2**k for k in range(int(math.log2(min(accelerator.node, accelerators))) + 1)]
    splits = (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size, accelerators)
    return [size for size in sizes if all(part % size == 0 for part in splits)]


def _largest_that_fits(slices, accelerator, data, tensor, stage, checkpointing, offload, rows_per_step):
    """The arrangement with the most rows a pass that fits, with its memory and bytes held; None."""
    usable, found = USABLE * accelerator.memory, None
    if slices.at_least(tensor, stage, data, offload) > usable:
        return None
    for rows in ROWS:
        if rows_per_step % (rows * data):
            continue
        passes = rows_per_step // (rows * data)
        memory = slices.memory(tensor, stage, data, checkpointing, rows, passes > 1)
        moved = memory.optimizer + memory.master if offload else 0
        held = memory.peak - moved + slices.logits(tensor, rows)
        if held > usable or moved > accelerator.host:
            break
        found = Arrangement(data, tensor, stage, checkpointing, rows, passes, offload), memory, held
    return found


def _timed(config: HfxDecoderConfig, slices: _Slices, accelerator: Accelerator, fitting, length, utilization) -> Layout:
    asked, memory, held = fitting
    ranks = asked.data * asked.tensor
    tokens = asked.rows * asked.passes * asked.data * length
    a_token = slices.flops.checkpointed_per_token if asked.checkpointing else slices.flops.training_per_token
    # weights and gradients of the rank's slice; norms, which are whole on each, are few of them
    weights, gradients = (part // asked.tensor for part in (slices.whole.weights, slices.whole.gradients))
    sent_data = data_parallel_bytes(
        weights, gradients, zero_stage=asked.zero_stage, ranks=asked.data, passes=asked.passes
    )
    sent_tensor = tensor_parallel_bytes(
        config,
        rows=asked.rows * asked.passes,
        length=length,
        ranks=asked.tensor,
        itemsize=ITEMSIZE,
        checkpointing=asked.checkpointing,
    )
    link = accelerator.inside if ranks <= accelerator.node else accelerator.between
    data_seconds = sent_data / link
    if asked.offload:  # gradients to the host, weights back
        data_seconds += (weights + gradients) / asked.data / accelerator.host_link
    return Layout(
        arrangement=asked,
        memory=memory,
        held=held,
        sent_data=sent_data,
        sent_tensor=sent_tensor,
        tokens=tokens,
        parameters=slices.flops.parameters.total,
        model_flops=tokens * slices.flops.training_per_token,
        peak=ranks * accelerator.peak,
        compute_seconds=tokens * a_token / (ranks * utilization * accelerator.peak),
        data_seconds=data_seconds,
        tensor_seconds=sent_tensor / accelerator.inside,
    )
