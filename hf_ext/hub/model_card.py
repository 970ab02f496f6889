"""The model card of a run: what was trained, on what, by which command, and what it measured."""

import json
import platform
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel


TEMPLATE = Path(__file__).with_name("model_card_template.md")
# task -> how the card says to use the model; {folder}, {prompt} and {context} are filled in
USAGE = {
    "text-generation": """from transformers import pipeline

writer = pipeline("text-generation", model="{folder}")
print(writer({prompt}, max_new_tokens=50)[0]["generated_text"])""",
    "fill-mask": """from transformers import pipeline

filler = pipeline("fill-mask", model="{folder}")
print(filler({prompt}))""",
    "text-classification": """from transformers import pipeline

classifier = pipeline("text-classification", model="{folder}")
print(classifier({prompt}))""",
    "token-classification": """from transformers import pipeline

tagger = pipeline("token-classification", model="{folder}", aggregation_strategy="simple")
print(tagger({prompt}))""",
    "question-answering": """from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from hf_ext.tasks.question_answering import find_answers

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForQuestionAnswering.from_pretrained("{folder}")
context = {context}
print(find_answers(model, tokenizer, {prompt}, context).text)""",
    "text2text-generation": """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("{folder}"), AutoModelForSeq2SeqLM.from_pretrained("{folder}")
output = model.generate(**tokenizer({prompt}, return_tensors="pt"), max_new_tokens=50)
print(tokenizer.decode(output[0]))""",
    "translation": """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("{folder}"), AutoModelForSeq2SeqLM.from_pretrained("{folder}")
output = model.generate(**tokenizer({prompt}, return_tensors="pt"))
print(tokenizer.decode(output[0], skip_special_tokens=True))""",
}
# fields of a config that say nothing about the architecture
_NOT_ARCHITECTURE = {
    "architectures",
    "auto_map",
    "dtype",
    "model_type",
    "transformers_version",
    "_name_or_path",
    "torch_dtype",
}


@dataclass
class RunFacts:
    """What a run knows of itself.

    Attributes:
        title, summary, limits: prose.
        dataset: identifier of the data for the metadata; dataset_summary: what it is, its size and licence.
        metrics: name -> value; those in `headline` go into the Hub's model-index, with `test_…` of them.
        training: name -> value: steps, tokens, batch, optimizer, time.
        command, recipe: how to repeat it.
        samples: [{"prompt", "text"}], and "context" where a prompt is about one.
        curve: file name of the loss curve beside the card.
    """

    title: str
    summary: str
    limits: str
    dataset: str
    dataset_summary: str
    metrics: dict[str, float]
    training: dict[str, str]
    command: str
    recipe: str
    headline: tuple[str, ...] = ()
    task: str = "text-generation"
    samples: list[dict[str, str]] = field(default_factory=list)
    usage: str | None = None
    curve: str | None = None
    license: str = "apache-2.0"


def model_card(model: PreTrainedModel, folder: str | Path, facts: RunFacts) -> ModelCard:
    """The card as `huggingface_hub` knows it; `card.save(folder / "README.md")` writes it."""
    folder_name = Path(folder).resolve().name
    results = [
        EvalResult(
            task_type=facts.task,
            dataset_type=facts.dataset,
            dataset_name=facts.dataset,
            dataset_split=split,
            metric_type=name,
            metric_value=round(facts.metrics[prefix + name], 5),
        )
        for split, prefix in (("validation", ""), ("test", "test_"))
        for name in facts.headline
        if not prefix or prefix + name in facts.metrics
    ]
    data = ModelCardData(
        model_name=folder_name,
        license=facts.license,
        library_name="transformers",
        pipeline_tag=facts.task,
        tags=["hf_ext", model.config.model_type],
        eval_results=results,
    )
    default = type(model.config)().to_dict()
    changed = {name: value for name, value in model.config.to_dict().items() if value != default.get(name)}
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=facts.title,
        summary=facts.summary,
        limits=facts.limits,
        folder_name=folder_name,
        usage=_usage(facts, folder_name),
        continues=facts.task == "text-generation",
        metrics={name: _number(value) for name, value in facts.metrics.items()},
        curve=facts.curve,
        model_type=model.config.model_type,
        parameters=f"{model.num_parameters():,}",
        tied=", embedding and head tied" if model.config.tie_word_embeddings else "",
        architecture={k: f"`{v}`" for k, v in sorted(changed.items()) if k not in _NOT_ARCHITECTURE},
        data_summary=facts.dataset_summary,
        training={**facts.training, "software": _software()},
        command=without_local_paths(facts.command),
        recipe=without_local_paths(facts.recipe.strip()),
        # as it would be written in a program, line breaks and all
        samples=[{**sample, "shown": json.dumps(sample["prompt"], ensure_ascii=False)} for sample in facts.samples],
    )


def _usage(facts: RunFacts, folder_name: str) -> str:
    shown = {"prompt": "Once", "context": "", **(facts.samples[0] if facts.samples else {})}
    values = {"folder": folder_name, **{name: json.dumps(shown[name]) for name in ("prompt", "context")}}
    # in one go, for a text may have braces itself
    return re.sub(r"\{(folder|prompt|context)\}", lambda match: values[match[1]], facts.usage or USAGE[facts.task])


def without_local_paths(text: str) -> str:
    """Absolute paths cut down to their last part: a card says what was done, not on whose machine."""
    return re.sub(r"(?<![\w.:/~-])(?:~|[A-Za-z]:)?/(?:[^\s'\"/]+/)+(?=[^\s'\"/])", "", text)


def _number(value) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _software() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("hf-ext", "torch", "transformers"))
    return f"{libraries}, Python {platform.python_version()}; {device}"
