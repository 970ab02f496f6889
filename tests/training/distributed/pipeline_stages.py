"""A decoder whose layers lie on two processes, one after the other: logits and text against the whole model's.

pipeline_stages.py '{"folder": …, "cases": [{…}, …]}'        in each rank; each case, options of the configuration
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from training.distributed.ranks import write_found
from training.distributed.split_models import FAMILIES, SIZES, batch_of, largest
from transformers.distributed import DistributedConfig


@torch.no_grad()
def compare(options: dict, folder: Path) -> dict:
    config_class, model_class = FAMILIES["decoder"]
    torch.manual_seed(0)
    whole = model_class(config_class(**{**SIZES, "num_hidden_layers": 3} | options)).eval()
    if dist.get_rank() == 0:
        whole.save_pretrained(folder)
    dist.barrier()
    model = model_class.from_pretrained(
        folder, distributed_config=DistributedConfig(pp_size=dist.get_world_size())
    ).eval()
    batch = {name: tensor for name, tensor in batch_of("decoder").items() if name != "labels"}
    found = {"logits": largest(model(**batch).logits, whole(**batch).logits)}
    found["layers"] = [i for i, layer in enumerate(model.model.layers) if list(layer.parameters())]
    for cached in (True, False):
        asked = {"input_ids": batch["input_ids"][:1, :6], "attention_mask": batch["attention_mask"][:1, :6]}
        asked |= {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "use_cache": cached}
        text = "text" if cached else "text uncached"
        try:
            found[text] = bool((model.generate(**asked) == whole.generate(**asked)).all())
        except (RuntimeError, ValueError) as error:
            found[text] = f"{type(error).__name__}: {error}"
    return found


def main(arguments: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = [
        compare(case, Path(arguments["folder"]) / f"case{number}") for number, case in enumerate(arguments["cases"])
    ]
    write_found(arguments["folder"], found)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
