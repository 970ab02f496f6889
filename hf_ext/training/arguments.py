"""What can be set about a training run, on top of transformers' own TrainingArguments."""

import os
from dataclasses import dataclass, field, fields
from importlib.util import find_spec

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from hf_ext.training.distributed import check_processes, launched_sizes
from hf_ext.training.layer_rates import check_layer_rate_decay
from hf_ext.training.length_grouped_batches import COSTS
from hf_ext.training.local_paths import without_local_paths
from hf_ext.training.optimizers import PRECISIONS


MATRIX_OPTIMIZERS = (None, "muon")
# the first GPUs that multiply 8-bit floating point numbers: Ada, then Hopper
FP8_CAPABILITY = (8, 9)
# last words of metrics that are better when lower; transformers takes all but a loss to be better when higher
LOWER_IS_BETTER = (
    "loss",
    "perplexity",
    "bits_per_byte",
    "error",
    "error_rate",
    "mse",
    "rmse",
    "mae",
    "wer",
    "cer",
    "ter",
)


@dataclass
class HfxTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments and what our Trainer adds. Non-finite losses are logged as what they are.

    `lr_scheduler_type` takes transformers' names; "cosine" and "warmup_stable_decay" are ours (`training/schedules.py`),
    their shape set by `lr_scheduler_kwargs` (min_lr_ratio; decay_fraction, decay_form).

    Raises:
        ValueError: one line, for values out of range.
    """

    matrix_optimizer: str | None = field(
        default=None,
        metadata={"help": "Optimizer for the blocks' matrices: 'muon', or none for `optim` everywhere."},
    )
    matrix_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the matrix optimizer. Default: learning_rate."}
    )
    muon_momentum: float = field(default=0.95, metadata={"help": "Muon's momentum, in [0, 1)."})
    muon_dtype: str | None = field(
        default=None,
        metadata={
            "help": "What Muon's products are computed in: float32, bfloat16, or auto, the faster of both here (bfloat16 on "
            "processors with AVX512-BF16 or AMX). Default: bfloat16 on an accelerator, float32 on CPU."
        },
    )
    muon_beta2: float | None = field(
        default=None,
        metadata={
            "help": "With it Muon evens out the rates of a matrix's rows by a running mean of their squares with this "
            "decay (NorMuon: 0.95). Default: plain Muon."
        },
    )
    layer_rate_decay: float | None = field(
        default=None,
        metadata={
            "help": "Layer-wise rates: each layer's is this times the one's above it, the head's is learning_rate "
            "(fine-tuning: 0.8 to 0.9). Default: one rate for all."
        },
    )
    z_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of log(Z)^2 in a language model's training loss (PaLM: 1e-4)."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate and keep an exponential moving average of the weights, which forgets so slowly (0.999). "
            "Default: the weights themselves."
        },
    )
    ema_warmup: bool = field(
        default=True, metadata={"help": "Forget faster at first: min(ema_decay, (1 + t) / (10 + t)) at step t."}
    )
    tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Batches of rows of like length, as many as so many tokens hold, both sides of pairs counted; in place "
            "of per_device_train_batch_size, and like it of one device before accumulation."
        },
    )
    tokens_per_batch_cost: str = field(
        default="padded",
        metadata={
            "help": "What tokens_per_batch counts: padded (rows times the longest) or real (without the padding)."
        },
    )
    length_pool_size: int = field(
        default=8192, metadata={"help": "Rows drawn at random, among which batches of like length are made."}
    )
    max_non_finite_losses: int = field(
        default=3,
        metadata={
            "help": "Stop after so many steps in a row whose loss or gradients are not finite; each one before is left out. "
            "0: never stop, and take such steps."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations in a row without a better metric_for_best_model. Default: never."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "By how much the metric has to be better to count, in its own unit."}
    )
    tp_size: int | None = field(
        default=None,
        metadata={
            "help": "Tensor parallelism: processes that each matrix is divided over, which get the same rows. Default: what "
            "the launch file says, else 1."
        },
    )
    fsdp_size: int | None = field(
        default=None,
        metadata={
            "help": "FSDP2: processes that all weights, gradients and optimizer states are divided over, each with rows of "
            "its own; tp_size times it is the number of processes, -1 takes all. Default: the launch file's, else 1."
        },
    )
    fp8: bool = field(
        default=False,
        metadata={
            "help": "Mixed precision with 8-bit matrix products, where the GPU has them (compute capability 8.9)."
        },
    )
    hub_private_repo: bool | None = field(
        default=True, metadata={"help": "Whether a repository that push_to_hub makes is private."}
    )
    hub_strategy: str = field(
        default="end",
        metadata={"help": "When push_to_hub pushes: end, all at once; or every_save, checkpoint, all_checkpoints."},
    )
    # the stock filter logs a NaN loss as 0.0 and the run ends as if nothing had happened
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide non-finite losses from the log."})

    def __post_init__(self):
        if self.matrix_optimizer not in MATRIX_OPTIMIZERS:
            raise ValueError(
                f"matrix_optimizer={self.matrix_optimizer!r}: must be 'muon', or none for `optim` everywhere"
            )
        if self.matrix_learning_rate is not None:
            if self.matrix_optimizer is None:
                raise ValueError(
                    f"matrix_learning_rate={self.matrix_learning_rate}: has no effect without matrix_optimizer; "
                    "set matrix_optimizer: muon or leave it out"
                )
            if self.matrix_learning_rate <= 0:
                raise ValueError(f"matrix_learning_rate={self.matrix_learning_rate}: must be above 0")
        if self.muon_dtype is not None:
            if self.matrix_optimizer is None:
                raise ValueError(
                    f"muon_dtype={self.muon_dtype!r}: has no effect without matrix_optimizer; set matrix_optimizer: muon "
                    "or leave it out"
                )
            if self.muon_dtype not in PRECISIONS:
                raise ValueError(f"muon_dtype={self.muon_dtype!r}: must be {', '.join(PRECISIONS)}, or none")
        if self.muon_beta2 is not None:
            if self.matrix_optimizer is None:
                raise ValueError(
                    f"muon_beta2={self.muon_beta2}: has no effect without matrix_optimizer; set matrix_optimizer: muon "
                    "or leave it out"
                )
            if not 0 <= self.muon_beta2 < 1:
                raise ValueError(f"muon_beta2={self.muon_beta2}: must be at least 0 and below 1, or none")
        if self.layer_rate_decay is not None:
            check_layer_rate_decay(self.layer_rate_decay)
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate={self.learning_rate}: must not be negative")
        if not 0 <= self.muon_momentum < 1:
            raise ValueError(f"muon_momentum={self.muon_momentum}: must be at least 0 and below 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: must be above 0 and below 1, or none")
        if self.ema_decay is None and not self.ema_warmup:
            raise ValueError("ema_warmup=False: has no effect without ema_decay; set it or leave this out")
        if self.max_non_finite_losses < 0:
            raise ValueError(
                f"max_non_finite_losses={self.max_non_finite_losses}: must be a number of steps, or 0 for never"
            )
        if self.z_loss_weight < 0:
            raise ValueError(f"z_loss_weight={self.z_loss_weight}: must not be negative")
        if not 0 <= self.label_smoothing_factor < 1:
            raise ValueError(f"label_smoothing_factor={self.label_smoothing_factor}: must be at least 0 and below 1")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        _check_early_stopping(self)
        _check_token_batches(self)
        if self.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint=True: saves within a step, from which a resume goes on differently; leave it out, "
                "SIGTERM saves at the end of the step anyway"
            )
        metric = self.metric_for_best_model
        if self.greater_is_better is None and metric is not None:
            self.greater_is_better = not f"_{metric}".endswith(tuple(f"_{name}" for name in LOWER_IS_BETTER))
        if self.fp8:
            _check_fp8(self)
        if not torch.accelerator.is_available():
            # until told so, the stock arguments refuse bf16 then, and several processes would each train alone
            self.use_cpu = self.use_cpu or self.bf16 or int(os.environ.get("WORLD_SIZE", 1)) > 1
            # an installed DeepSpeed is imported by every Trainer, and looks for an accelerator aloud
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        self.tp_size, self.fsdp_size = launched_sizes(self.tp_size, self.fsdp_size)
        super().__post_init__()
        check_processes(self)
        if self.fp8:
            self.mixed_precision = "fp8"  # accelerate's name; the stock arguments have no field for it
        _check_trackers(self)
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is nothing to copy to, and torch warns at every run

    def to_dict(self) -> dict:
        """As transformers': for files and trackers, so without paths of this machine."""
        return without_local_paths(super().to_dict())


def _check_early_stopping(args: HfxTrainingArguments) -> None:
    patience, threshold = args.early_stopping_patience, args.early_stopping_threshold
    if patience is None:
        if threshold:
            raise ValueError(
                f"early_stopping_threshold={threshold}: has no effect without early_stopping_patience; set it or leave "
                "this out"
            )
        return
    if patience < 1:
        raise ValueError(f"early_stopping_patience={patience}: must be at least 1 evaluation, or none")
    if threshold < 0:
        raise ValueError(f"early_stopping_threshold={threshold}: must not be negative")
    if args.eval_strategy == "no":
        raise ValueError(
            f"early_stopping_patience={patience}: nothing is evaluated; set eval_strategy: steps or epoch, or leave it out"
        )
    if not args.load_best_model_at_end:
        raise ValueError(
            f"early_stopping_patience={patience}: the model kept would be the last, {patience} evaluations past the best; "
            "set load_best_model_at_end: true"
        )


def _check_token_batches(args: HfxTrainingArguments) -> None:
    def default(name: str):
        return next(f.default for f in fields(args) if f.name == name)

    if args.tokens_per_batch is None:
        for name in ("tokens_per_batch_cost", "length_pool_size"):
            if getattr(args, name) != default(name):
                raise ValueError(
                    f"{name}={getattr(args, name)!r}: has no effect without tokens_per_batch; set it or leave this out"
                )
        return
    for name in ("tokens_per_batch", "length_pool_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name}={getattr(args, name)}: must be at least 1")
    if args.tokens_per_batch_cost not in COSTS:
        raise ValueError(f"tokens_per_batch_cost={args.tokens_per_batch_cost!r}: must be {' or '.join(COSTS)}")
    for name in (
        "per_device_train_batch_size",
        "auto_find_batch_size",
        "dataloader_drop_last",
        "train_sampling_strategy",
    ):
        if getattr(args, name) != default(name):
            raise ValueError(
                f"{name}={getattr(args, name)!r}: has no effect with tokens_per_batch; leave one of them out"
            )


def _check_fp8(args: HfxTrainingArguments) -> None:
    if args.bf16 or args.fp16:
        raise ValueError(f"fp8=True: with {'bf16' if args.bf16 else 'fp16'} too; choose one")
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if capability is None or capability < FP8_CAPABILITY:
        found = "there is no CUDA device" if capability is None else f"this GPU has {capability[0]}.{capability[1]}"
        raise ValueError(f"fp8=True: needs a GPU of compute capability 8.9 or more, {found}; set bf16 instead")
    if find_spec("torchao") is None and find_spec("transformer_engine") is None:
        raise ValueError("fp8=True: needs torchao or transformer_engine; install one of them")


def _check_trackers(args: HfxTrainingArguments) -> None:
    available = get_available_reporting_integrations()
    for name in args.report_to:
        if name not in available:
            raise ValueError(
                f"report_to={name!r}: unknown or not installed; install it, or take one of {', '.join(available)}, none"
            )
