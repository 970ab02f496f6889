"""The model card of a run: what was trained, on what, by which command, at what cost, and what it measured."""

import json
import platform
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from hf_ext.hub.bundle import source_commit
from hf_ext.hub.export_parity import exports_section
from hf_ext.hub.intended_use import use_of
from hf_ext.training.local_paths import public_yaml, without_local_paths


TEMPLATE = Path(__file__).with_name("model_card_template.md")
# whose versions may change what a run computes
LIBRARIES = ("hf-ext", "torch", "transformers", "accelerate", "datasets", "tokenizers", "peft")
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
        title, summary: prose. limits: prose, a sentence or two each, on top of what its task has by its nature.
        dataset: identifier of the data for the metadata; dataset_summary: what it is, its size and licence.
        data: what was read, each {"name", "split", "num_bytes", "identity"}, see `hf_ext.data.provenance.DataSource`.
        metrics: name -> value; those in `headline` go into the Hub's model-index, with `test_…` of them.
        training: name -> value: steps, tokens, batch, optimizer. size: parameters, FLOPs.
        compute: hardware, time, energy.
        command, recipe: how to repeat it.
        samples: [{"prompt", "text"}], and "context" where a prompt is about one.
        curve: file name of the loss curve beside the card.
        base_model: name on the Hub of the model that it was made from.
    """

    title: str
    summary: str
    limits: tuple[str, ...]
    dataset: str
    dataset_summary: str
    metrics: dict[str, float]
    training: dict[str, str]
    command: str
    recipe: str
    headline: tuple[str, ...] = ()
    task: str = "text-generation"
    data: list[dict] = field(default_factory=list)
    size: dict[str, str] = field(default_factory=dict)
    compute: dict[str, str] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    usage: str | None = None
    curve: str | None = None
    base_model: str | None = None
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
        base_model=facts.base_model,
        eval_results=results,
    )
    use = use_of(facts.task)
    default = type(model.config)().to_dict()
    changed = {name: value for name, value in model.config.to_dict().items() if value != default.get(name)}
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=facts.title,
        summary=without_local_paths(facts.summary),
        intended=use.intended,
        out_of_scope=use.out_of_scope,
        limits=[*use.limits, *facts.limits],
        exports=exports_section(folder),
        folder_name=folder_name,
        usage=_usage(facts, folder_name),
        continues=facts.task == "text-generation",
        metrics={name: _number(value) for name, value in facts.metrics.items()},
        curve=facts.curve,
        model_type=model.config.model_type,
        parameters=f"{model.num_parameters():,}",
        tied=", embedding and head tied" if model.config.tie_word_embeddings else "",
        architecture=_cells({k: f"`{v}`" for k, v in sorted(changed.items()) if k not in _NOT_ARCHITECTURE}),
        size=_cells(facts.size),
        data_summary=without_local_paths(facts.dataset_summary),
        data=[_shown(source) for source in facts.data],
        training=_cells(facts.training),
        compute=_cells({**facts.compute, "software": _software()}),
        command=without_local_paths(facts.command),
        recipe=public_yaml(facts.recipe).strip(),
        # as it would be written in a program, line breaks and all
        samples=[{**sample, "shown": json.dumps(sample["prompt"], ensure_ascii=False)} for sample in facts.samples],
    )


def _usage(facts: RunFacts, folder_name: str) -> str:
    shown = {"prompt": "Once", "context": "", **(facts.samples[0] if facts.samples else {})}
    values = {"folder": folder_name, **{name: json.dumps(shown[name]) for name in ("prompt", "context")}}
    # in one go, for a text may have braces itself
    return re.sub(r"\{(folder|prompt|context)\}", lambda match: values[match[1]], facts.usage or USAGE[facts.task])


def _cells(rows: dict[str, str]) -> dict[str, str]:
    """As cells of a table may be: in one line, without what would end the cell."""
    return {name: without_local_paths(" ".join(value.split()).replace("|", "\\|")) for name, value in rows.items()}


def _shown(source: dict) -> dict:
    num_bytes = source["num_bytes"]
    return {**source, "num_bytes": "" if num_bytes is None else f"{num_bytes:,}"}


def _number(value) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _software() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES if find_spec(name.replace("-", "_")))
    commit = source_commit()
    at = f", hf-ext at {commit}" if commit else ""
    return f"{libraries}, Python {platform.python_version()}{at}"
