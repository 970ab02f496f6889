"""Load a saved model as a stranger would and say what it computes: run it in a process of its own.

    python -m hf_ext.tasks.reload_check FOLDER --prompt "import os"

Prints one line of JSON: the class that the Auto class chose, a checksum of the weights, scores of the prompt, and what the
model makes of it: its pipeline's answer, or the text of `generate`, greedily.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    pipeline,
)

import hf_ext  # noqa: F401  registers our classes, as a user's first line does
from hf_ext.tasks.adapter_loading import load_with_adapter


# Auto class -> the pipeline that its models have in transformers
AUTO_CLASSES = {
    AutoModelForCausalLM: "text-generation",
    AutoModelForMaskedLM: "fill-mask",
    AutoModelForSeq2SeqLM: None,
    AutoModelForSequenceClassification: "text-classification",
    AutoModelForTokenClassification: "token-classification",
    AutoModelForQuestionAnswering: None,
    AutoModelForMultipleChoice: None,
}
# fp32, two processes that may choose other kernels for the same sums
SAME = {"rel_tol": 1e-5, "abs_tol": 1e-5}


def auto_class_of(config: PretrainedConfig):
    """The Auto class that loads what a saved configuration says was saved.

    Raises:
        ValueError: none does.
    """
    for auto_class in AUTO_CLASSES:
        known = auto_class._model_mapping
        if type(config) in known and known[type(config)].__name__ in (config.architectures or ()):
            return auto_class
    raise ValueError(f"architectures={config.architectures}: no Auto class has such a model of a {config.model_type}")


def weights_checksum(model: torch.nn.Module) -> str:
    """sha256 over the names, dtypes, shapes and bytes of all weights; peft keeps beside an adapter's head the one that it
    took the place of, which computes nothing."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if ".original_module." in name:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def probe(model, tokenizer, prompt: str) -> dict:
    """What two processes that hold the same model must agree on: {"class", "weights", "scores", "output"}."""
    model = model.eval()
    inputs = tokenizer(prompt, return_tensors="pt", truncation=True).to(model.device)
    inputs.pop("token_type_ids", None)
    writes = model.config.is_encoder_decoder and model.can_generate()  # its other heads' decoders read the same text
    shown = {"decoder_input_ids": inputs.input_ids} if writes else {}
    outputs = model(**inputs, **shown)
    logits = outputs["logits"] if "logits" in outputs else outputs["start_logits"]
    return {
        "class": type(model).__name__,
        "weights": weights_checksum(model),
        "scores": logits[0].flatten()[-8:].float().tolist(),
        "output": _output(model, tokenizer, prompt, inputs),
    }


def _output(model, tokenizer, prompt: str, inputs) -> str:
    """What the model makes of a prompt, as a user would ask it."""
    auto_class = next(a for a in AUTO_CLASSES if type(model) is a._model_mapping.get(type(model.config), None))
    task = AUTO_CLASSES[auto_class]
    if auto_class is AutoModelForSeq2SeqLM:
        return tokenizer.decode(model.generate(**inputs, max_new_tokens=20, do_sample=False, num_beams=1)[0])
    if task is None:
        return ""
    if task == "fill-mask" and tokenizer.mask_token not in prompt:
        prompt += tokenizer.mask_token
    options = {"max_new_tokens": 20, "do_sample": False, "num_beams": 1, "return_full_text": False}
    answer = pipeline(task, model=model, tokenizer=tokenizer)(prompt, **options if task == "text-generation" else {})
    return json.dumps(_without_numbers(answer))


def _without_numbers(answer):
    """A pipeline's answer without its scores, which are compared by themselves, with a tolerance."""
    if isinstance(answer, list):
        return [_without_numbers(part) for part in answer]
    return {key: value for key, value in answer.items() if not isinstance(value, float) and key != "score"}


def differences(here: dict, there: dict) -> str:
    """What two probes disagree on, or an empty text."""
    wrong = [
        f"{key}: {there[key]!r} instead of {here[key]!r}"
        for key in ("class", "weights", "output")
        if here[key] != there[key]
    ]
    if not all(math.isclose(a, b, **SAME) for a, b in zip(here["scores"], there["scores"], strict=True)):
        wrong.append(f"scores: {there['scores']} instead of {here['scores']}")
    return "; ".join(wrong)


def load(folder: str):
    """The model in a folder; where there is an adapter alone, with it in the weights that it was trained beside."""
    plain = {"trust_remote_code": False}
    adapter = Path(folder) / "adapter_config.json"
    if not adapter.is_file():
        return auto_class_of(AutoConfig.from_pretrained(folder, **plain)).from_pretrained(folder, **plain)
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    described = folder if (Path(folder) / "config.json").is_file() else base
    auto_class = auto_class_of(AutoConfig.from_pretrained(described, **plain))
    return load_with_adapter(auto_class, folder, base, plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--prompt", required=True)
    arguments = parser.parse_args()
    model = load(arguments.folder)
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder, trust_remote_code=False)
    print(json.dumps(probe(model, tokenizer, arguments.prompt)))


if __name__ == "__main__":
    main()
