"""One training run of a benchmark: seconds a step and peak memory, in HfxTrainer with fused AdamW, fp32 on the CPU."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import transformers
from transformers import PreTrainedModel, TrainerCallback

from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.trainer import HfxTrainer


WARM_UP = 3  # steps


class Clock(TrainerCallback):
    """Seconds between the ends of steps."""

    def __init__(self):
        self.ends = [time.perf_counter()]

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def time_training(
    make_model: Callable[[], PreTrainedModel],
    rows: list[dict],
    collate: Callable[[list[dict]], dict],
    count: Callable[[dict[str, torch.Tensor]], int],
    *,
    batch_size: int,
    steps: int,
) -> dict[str, float]:
    """Train for WARM_UP + `steps` steps over `rows` in their order.

    Args:
        count: what of a batch is counted: its tokens, its rows.

    Returns:
        seconds a step (median), count_a_second, peak megabytes above what the process had before the model was made, loss.
    """
    transformers.logging.set_verbosity_error()
    counts = []

    def counted(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        counts.append(count(batch))
        return batch

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = HfxTrainingArguments(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=batch_size,
            max_steps=steps + WARM_UP,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            optim="adamw_torch_fused",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = HfxTrainer(make_model(), args=arguments, train_dataset=rows, data_collator=counted, callbacks=[clock])
        result = trainer.train()
    spans = [end - start for start, end in zip(clock.ends[:-1], clock.ends[1:], strict=True)][WARM_UP:]
    return {
        "seconds": statistics.median(spans),
        "count_a_second": sum(counts[WARM_UP : steps + WARM_UP]) / sum(spans),
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "loss": result.training_loss,
    }


def in_own_process(script: str, *case, options: tuple[str, ...] = ()) -> dict[str, float]:
    """What `script --case CASE` prints last, as JSON: a run whose memory no other has touched."""
    command = [sys.executable, script, *options, "--case", json.dumps(case)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
