"""The model card of a run: what was trained, on what, by which command, at what cost, and what it measured."""

import json
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from hf_ext.hub.bundle import source_commit
from hf_ext.hub.export_parity import exports_section
from hf_ext.hub.intended_use import use_of
from hf_ext.hub.saved_adapter import saved_adapter
from hf_ext.hub.usage import USAGE, usage_code
from hf_ext.training.local_paths import public_yaml, without_local_paths


TEMPLATE = Path(__file__).with_name("model_card_template.md")
# whose versions may change what a run computes
LIBRARIES = ("hf-ext", "torch", "transformers", "accelerate", "datasets", "tokenizers", "peft")
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
    adapter = saved_adapter(folder)
    data = ModelCardData(
        model_name=folder_name,
        license=facts.license,
        library_name="transformers" if adapter is None else "peft",
        pipeline_tag=facts.task,
        tags=["hf_ext", model.config.model_type, *(() if adapter is None else (adapter.kind,))],
        base_model=facts.base_model,
        eval_results=results,
    )
    use = use_of(facts.task)
    first = {"prompt": "Once", "context": "", **(facts.samples[0] if facts.samples else {})}
    usage = usage_code(
        facts.usage or USAGE[facts.task], folder_name, adapter, prompt=first["prompt"], context=first["context"]
    )
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
        usage=usage,
        alone="hf_ext" not in usage,
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
