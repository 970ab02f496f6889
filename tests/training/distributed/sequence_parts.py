"""Rows in parts on several processes (`hfx_ulysses`), against the rows whole: logits, loss and gradients.

sequence_parts.py '{"folder": …, "cases": [["decoder", {…}], …]}'        in each rank
"""

import json
import sys

import torch
import torch.distributed as dist
from training.distributed.ranks import write_found
from training.distributed.split_models import FAMILIES, SIZES, gradients_of, largest

from hf_ext.ops.all_to_all import sharing_rows


ROWS, LENGTH = 2, 16


def compare(family: str, options: dict) -> dict:
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES | options))
    part, parts = dist.get_rank(), dist.get_world_size()
    tokens = torch.randint(3, SIZES["vocab_size"], (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    # a part can't shift its own labels: the first of the next one is the last one's
    targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100) if family == "decoder" else tokens
    label = "shift_labels" if family == "decoder" else "labels"
    options = {"num_items_in_batch": int((targets != -100).sum()), "skip_logits": False}

    model.set_attn_implementation("eager")
    whole = model(input_ids=tokens, **{label: targets}, **options)
    whole.loss.backward()
    expected = gradients_of(model)

    model.zero_grad()
    model.set_attn_implementation("hfx_ulysses")
    mine = slice(part * LENGTH // parts, (part + 1) * LENGTH // parts)
    positions = torch.arange(LENGTH)[None, mine]
    with sharing_rows():
        own = model(input_ids=tokens[:, mine], position_ids=positions, **{label: targets[:, mine]}, **options)
        own.loss.backward()
    total = own.loss.detach().clone()
    dist.all_reduce(total)
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
    given = gradients_of(model)
    found = {
        "logits": largest(own.logits, whole.logits[:, mine]),
        "loss": abs(float(total - whole.loss)),
        "gradients": max(largest(expected[name], given[name]) for name in expected),
        "refused": [],
    }
    padded = torch.ones(ROWS, LENGTH // parts, dtype=torch.long)
    padded[0, 0] = 0
    shifted = {"input_ids": tokens[:, mine], "position_ids": positions + 1}
    for wrong in (shifted, {"input_ids": tokens[:, mine], "position_ids": positions, "attention_mask": padded}):
        try:
            with sharing_rows():
                model(**wrong)
        except ValueError as error:
            found["refused"].append(str(error))
    return found


def main(arguments: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    write_found(arguments["folder"], [compare(*case) for case in arguments["cases"]])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
