"""A few steps of our Trainer under one engine after the other: losses, gradient norms, weights that are saved.

    engines.py '{"folder": …, "engines": ["ddp", "zero2 bf16", …]}'        in each rank, or without ranks

The second word of an engine is an option: bf16 (mixed precision), checkpointing, resume (two steps, a checkpoint, and the
rest from it), best (of two evaluations the one with the higher loss, which is the first), tied (output and input have one
matrix), resize (that, and a vocabulary that grows before training).
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from training.distributed.ranks import write_found
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hf_ext import HfxDecoderConfig
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.distributed import is_split, split_model
from hf_ext.training.trainer import HfxTrainer


ROWS, LENGTH, STEPS = 4, 16, 4  # rows a step of all processes together
MODEL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "qk_norm": "head",
}
GROWN = 103  # the vocabulary after `resize`
RECIPES = Path(__file__).parents[3] / "recipes"


class Texts(Dataset):
    """Rows of random tokens, of which as many count as their number says: ranks with unequal shares of a step's tokens."""

    def __len__(self):
        return ROWS * STEPS

    def __getitem__(self, index):
        tokens = torch.randint(3, MODEL["vocab_size"], (LENGTH,), generator=torch.Generator().manual_seed(index))
        labels = tokens.clone()
        labels[: index % 7] = -100
        return {"input_ids": tokens, "labels": labels}


class RecordingTrainer(HfxTrainer):
    """Keeps the loss of every step and its gradients' norm, unrounded."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses, self.norms = [], []

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses.append(float(self.accelerator.reduce(loss.detach().float().clone(), "mean")))
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        self.norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
        return norm


def make_start(folder: Path) -> None:
    """The models that all engines begin with."""
    for name, options in (("plain", {}), ("tied", {"tie_word_embeddings": True})):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(HfxDecoderConfig(**MODEL, **options)).save_pretrained(folder / name)


def load_start(folder: Path, option: str):
    if option not in ("tied", "resize"):
        return AutoModelForCausalLM.from_pretrained(folder / "plain")
    model = AutoModelForCausalLM.from_pretrained(folder / "tied")
    if option == "resize":
        usual, model.config.initializer_range = model.config.initializer_range, 0.0  # new rows that need no draw
        model.resize_token_embeddings(GROWN, mean_resizing=False)
        model.config.initializer_range = usual
    return model


def arguments_of(engine: str, option: str, folder: Path, ranks: int) -> HfxTrainingArguments:
    sizes, deepspeed = {}, None
    if engine in ("tp", "fsdp2", "tp_fsdp2"):
        tensor = {"tp": ranks, "fsdp2": 1, "tp_fsdp2": 2}[engine]
        sizes = {"tp_size": tensor, "fsdp_size": ranks // tensor}
    elif engine == "autotp":  # DeepSpeed's tensor parallelism, by the same plan
        deepspeed = json.loads((RECIPES / "deepspeed" / "autotp.json").read_text())
        deepspeed["tensor_parallel"]["autotp_size"] = ranks
    elif engine.startswith("zero"):
        deepspeed = json.loads((RECIPES / "deepspeed" / f"{engine}.json").read_text())
        if deepspeed["zero_optimization"]["stage"] == 3:  # of so small a model everything would be kept whole
            deepspeed["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    shares = 1 if engine == "autotp" else ranks // sizes.get("tp_size", 1)
    return HfxTrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=ROWS // shares,
        per_device_eval_batch_size=ROWS // shares,
        max_steps=STEPS,
        learning_rate=1e-2,
        adam_epsilon=1e-4,  # so that a sum's rounding doesn't decide where a weight with hardly a gradient goes
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="steps",
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        prediction_loss_only=True,
        eval_strategy="steps" if option == "best" else "no",
        eval_steps=2,
        load_best_model_at_end=option == "best",
        metric_for_best_model="loss" if option == "best" else None,
        greater_is_better=True if option == "best" else None,
        bf16=option == "bf16",
        gradient_checkpointing=option == "checkpointing",
        deepspeed=deepspeed,
        **sizes,
    )


def train(engine: str, option: str, folder: Path, start: Path, ranks: int) -> dict:
    """Losses and norms of the steps, and of the evaluation after them; the weights are in `folder`."""

    def trainer(max_steps: int) -> RecordingTrainer:
        args = arguments_of(engine, option, folder, ranks)
        args.max_steps = max_steps
        model = split_model(load_start(start, option), args)
        return RecordingTrainer(model=model, args=args, train_dataset=Texts(), eval_dataset=Texts())

    losses, norms = [], []
    if option == "resume":
        running = trainer(2)
        running.train()
        losses, norms = running.losses, running.norms
        del running
        forget_engine()
    running = trainer(STEPS)
    running.train(resume_from_checkpoint=str(folder / "checkpoint-2") if option == "resume" else None)
    running.losses, running.norms = losses + running.losses, norms + running.norms
    found = {"losses": running.losses, "norms": running.norms, "eval_loss": running.evaluate()["eval_loss"]}
    found["split"] = is_split(running.model)
    found["checkpointing"] = running.model.is_gradient_checkpointing
    found["type"] = type(running.model_wrapped).__name__
    running.save_model()
    return found


def forget_engine() -> None:
    """What one engine leaves in this process for the next."""
    for name in [n for n in os.environ if n.startswith(("ACCELERATE_", "FSDP_"))]:
        os.environ.pop(name)
    unset_hf_deepspeed_config()
    tensor_parallel = sys.modules.get("deepspeed.runtime.tensor_parallel.init_utils")
    if tensor_parallel is not None:  # it refuses another dtype for the next model
        tensor_parallel._TP_MODEL_INIT_ARGS = None
    gc.collect()


def main(arguments: dict) -> None:
    torch.set_num_threads(1)
    folder, ranks = Path(arguments["folder"]), int(os.environ.get("WORLD_SIZE", 1))
    found = {}
    for name in arguments["engines"]:
        engine, _, option = name.partition(" ")
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"--- {name}", flush=True)
        found[name] = train(engine, option, folder / name.replace(" ", "_"), Path(arguments["start"]), ranks)
        forget_engine()
    write_found(arguments["folder"], found)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
