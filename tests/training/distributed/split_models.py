"""Models whose weights lie in parts, against the same models whole: logits, loss, gradients, text, what is saved.

    split_models.py '{"folder": …, "cases": [["decoder", {…}, {"tp_size": 2}], …]}'        in each rank

Each rank holds the whole model too, and compares. Of a case it writes the largest differences.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from training.distributed.ranks import write_found
from transformers.distributed import DistributedConfig

from hf_ext import (
    HfxDecoderConfig,
    HfxDecoderForCausalLM,
    HfxEncoderConfig,
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderForMaskedLM,
)


FAMILIES = {
    "decoder": (HfxDecoderConfig, HfxDecoderForCausalLM),
    "encoder": (HfxEncoderConfig, HfxEncoderForMaskedLM),
    "encoder_decoder": (HfxEncoderDecoderConfig, HfxEncoderDecoderForConditionalGeneration),
}
SIZES = {
    "vocab_size": 98,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROWS, LENGTH = 4, 12


def batch_of(family: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, SIZES["vocab_size"], (ROWS, LENGTH), generator=draw)
    mask = torch.ones_like(tokens)
    mask[1, LENGTH - 3 :] = 0
    tokens[mask == 0] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    if family == "encoder":
        labels = labels.masked_fill(torch.rand(ROWS, LENGTH, generator=draw) > 0.5, -100)
    if family == "encoder_decoder":
        labels = labels[:, :7].clone()
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {name: whole_tensor(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def compare(family: str, options: dict, split: dict, folder: Path) -> dict:
    """Largest differences between whole and split, and what is split how."""
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(0)
    whole = model_class(config_class(**SIZES | options)).eval()
    if dist.get_rank() == 0:
        whole.save_pretrained(folder)
    dist.barrier()
    model = model_class.from_pretrained(folder, distributed_config=DistributedConfig(**split)).eval()
    parameters = [p for p in model.parameters() if isinstance(p, DTensor)]
    found = {"split": sum(any(not s.is_replicate() for s in p.placements) for p in parameters)}
    found["held"] = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters())
    found["whole"] = sum(p.numel() for p in whole.parameters())

    batch = batch_of(family)
    shares = split.get("fsdp_size", 1)
    own = dist.get_rank() // split.get("tp_size", 1)
    rows = slice(own * ROWS // shares, (own + 1) * ROWS // shares)
    mine = {name: tensor[rows] for name, tensor in batch.items()}
    with torch.no_grad():
        found["logits"] = largest(
            model(**mine, skip_logits=False).logits, whole(**batch, skip_logits=False).logits[rows]
        )

    # training: the loss in chunks where the head is whole; FSDP takes the mean over ranks of rows that are their own
    scored = int((batch["labels"][:, 1:] if family == "decoder" else batch["labels"]).ne(-100).sum())
    for option in ("", "checkpointing"):
        for part, rows_of_it, scale in ((whole, batch, 1), (model, mine, shares)):
            part.train()
            part.zero_grad()
            part.gradient_checkpointing_enable() if option else part.gradient_checkpointing_disable()
            loss = part(**rows_of_it, num_items_in_batch=scored).loss
            (loss * scale).backward()
            if part is whole:
                whole_loss = float(loss)
            else:
                total = loss.detach().clone()
                dist.all_reduce(total)
                found[f"loss {option}".strip()] = abs(float(total) / split.get("tp_size", 1) - whole_loss)
        expected, given = gradients_of(whole), gradients_of(model)
        assert expected.keys() == given.keys(), expected.keys() ^ given.keys()
        worst = max(expected, key=lambda name: largest(expected[name], given[name]))
        found[f"gradients {option}".strip()] = largest(expected[worst], given[worst])
        found[f"worst {option}".strip()] = worst
    model.eval()
    whole.eval()

    if family != "encoder":
        asked = {"input_ids": batch["input_ids"][:1, :6], "attention_mask": batch["attention_mask"][:1, :6]}
        asked |= {"max_new_tokens": 8, "do_sample": False, "min_new_tokens": 8}
        found["text"] = bool((model.generate(**asked) == whole.generate(**asked)).all())
    saved = folder.with_name(f"{folder.name}_saved")
    model.save_pretrained(saved)
    dist.barrier()
    again = model_class.from_pretrained(saved)
    whole_weights = whole.state_dict()
    found["saved"] = max(largest(t, whole_weights[name]) for name, t in again.state_dict().items())
    return found


def main(arguments: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = []
    for number, (family, options, split) in enumerate(arguments["cases"]):
        if dist.get_rank() == 0:
            print(f"--- {family} {options} {split}", flush=True)
        found.append(compare(family, options, split, Path(arguments["folder"]) / f"case{number}"))
    write_found(arguments["folder"], found)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
