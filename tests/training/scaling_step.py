"""A training step of each configuration in this process, and the bytes that torch's allocator gave for it, as JSON.

    python scaling_step.py '[[{"model_type": …}, {"batch_size": …, "length": …, "precision": …, "optimizer": …, …}], …]'

The profiler sees each allocation and release of torch's CPU allocator. The process's resident memory is reported too, and is
no measure of a step: it counts libraries, allocator pools and what was freed but not given back.
"""

import json
import resource
import sys

import torch
from torch.profiler import profile
from transformers import AutoConfig

import hf_ext  # noqa: F401
from hf_ext.training.optimizers import create_optimizer
from hf_ext.training.scaling.fake_model import HEADS, fake_batch, find_head
from hf_ext.training.scaling.memory import PRECISIONS


def measure(config, batch_size, length, precision="fp32", optimizer="adamw", checkpointing=False, lora=None, **options):
    """Bytes of the parts of a step, and of all at its fullest."""
    torch.manual_seed(0)
    kind, head = PRECISIONS[precision], find_head(config)
    model = HEADS[head].from_config(config, dtype=kind.weights).train()
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(**lora))
    if checkpointing:
        if lora is not None:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = fake_batch(model, head, batch_size, length, labels=True, **options)
    batch = {k: torch.randint_like(v, 5, 50) if torch.is_tensor(v) else v for k, v in batch.items()}
    if optimizer == "muon":
        stepper = create_optimizer(model, name="muon", learning_rate=1e-3)
    else:
        stepper = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def forward():
        with torch.autocast("cpu", dtype=kind.autocast or torch.bfloat16, enabled=kind.autocast is not None):
            return model(**batch).loss

    forward().backward()  # what is made once in a process is made here
    stepper.step()
    stepper.zero_grad()
    with profile(profile_memory=True) as forward_alone:
        loss = forward()
    loss.backward()
    stepper.zero_grad()
    del loss
    with profile(profile_memory=True) as both:
        forward().backward()
    with profile(profile_memory=True) as stepping:
        stepper.step()
    states = [t for state in stepper.state.values() for t in state.values() if torch.is_tensor(t)]
    parts = {
        "weights": _bytes([*model.parameters(), *model.buffers()]),
        "gradients": _bytes([p.grad for p in model.parameters() if p.grad is not None]),
        "optimizer": _bytes(states),
        "activations": _allocated(forward_alone)[0],
    }
    passes = max(_allocated(both)[1], parts["gradients"] + _allocated(stepping)[1])
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return parts | {"peak": parts["weights"] + parts["optimizer"] + passes, "resident": resident}


def _allocated(profiled) -> tuple[int, int]:
    """Bytes more than at the beginning: at the end, and at the fullest."""
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return now, most


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


if __name__ == "__main__":
    steps = json.loads(sys.argv[1])
    configs = [AutoConfig.for_model(fields.pop("model_type"), **fields) for fields, _ in steps]
    print(json.dumps([measure(config, **options) for config, (_, options) in zip(configs, steps, strict=True)]))
