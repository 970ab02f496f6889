"""Load a saved model as a stranger would and say what it computes: run it in a process of its own.

    python -m hf_ext.tasks.reload_check FOLDER --prompt "import os"

Prints one line of JSON: the class that AutoModelForCausalLM chose, a checksum of the weights, the mean negative
log-likelihood of the prompt, and what `pipeline("text-generation")` goes on with, greedily.
"""

import argparse
import hashlib
import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import hf_ext  # noqa: F401  registers our classes, as a user's first line does


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
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    text = writer(prompt, max_new_tokens=20, do_sample=False, return_full_text=False)[0]["generated_text"]
    return {"class": type(model).__name__, "weights": weights_checksum(model), "prompt_loss": loss, "greedy": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--prompt", required=True)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.folder)
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    print(json.dumps(probe(model, tokenizer, arguments.prompt)))


if __name__ == "__main__":
    main()
