"""Load a saved model as a stranger would and say what it computes: run it in a process of its own.

    python -m hf_ext.tasks.reload_check FOLDER --prompt "import os"

Prints one line of JSON: the class that the Auto class chose, a checksum of the weights, the mean negative log-likelihood of
the prompt, and what the model makes of it greedily: `pipeline("text-generation")` or `pipeline("fill-mask")`, or `generate`.
"""

import argparse
import hashlib
import json

import torch
from transformers import AutoConfig, AutoTokenizer, pipeline

import hf_ext  # noqa: F401  registers our classes, as a user's first line does
from hf_ext.tasks.objective_section import auto_class_of


def weights_checksum(model: torch.nn.Module) -> str:
    """sha256 over the names, dtypes, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def probe(model, tokenizer, prompt: str) -> dict:
    """What two processes that hold the same model must agree on."""
    model = model.eval()
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    loss = model(inputs.input_ids, labels=inputs.input_ids).loss.item()
    if model.config.is_encoder_decoder:
        text = tokenizer.decode(model.generate(inputs.input_ids, max_new_tokens=20, do_sample=False)[0])
    elif model.can_generate():
        writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
        text = writer(prompt, max_new_tokens=20, do_sample=False, return_full_text=False)[0]["generated_text"]
    else:
        filler = pipeline("fill-mask", model=model, tokenizer=tokenizer)
        found = filler(prompt if tokenizer.mask_token in prompt else prompt + tokenizer.mask_token, top_k=1)
        text = json.dumps([first[0]["token_str"] if isinstance(first, list) else first["token_str"] for first in found])
    return {"class": type(model).__name__, "weights": weights_checksum(model), "prompt_loss": loss, "greedy": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--prompt", required=True)
    arguments = parser.parse_args()
    model = auto_class_of(AutoConfig.from_pretrained(arguments.folder)).from_pretrained(arguments.folder)
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    print(json.dumps(probe(model, tokenizer, arguments.prompt)))


if __name__ == "__main__":
    main()
