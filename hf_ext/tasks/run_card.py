"""The model card of a run's folder, written again from the files in it, or brought up to date where there is one."""

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard
from transformers import PreTrainedModel

from hf_ext.hub import RunFacts, model_card
from hf_ext.hub.card_text import check_card_text
from hf_ext.tasks.run import Run
from hf_ext.tasks.run_report import summary_of
from hf_ext.training.recipe_yaml import read_yaml


LATER = "## Evaluated later"
# end of a class's name -> the Hub's task
TASKS = {
    "MaskedLM": "fill-mask",
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering",
    "ConditionalGeneration": "text2text-generation",
}
# our split -> what its scores begin with in all_results.json
_PREFIXES = {"validation": "eval_", "test": "test_"}


def write_card(model: PreTrainedModel, folder: Path) -> ModelCard:
    """A card from what lies in the folder: model, recipe.yaml, all_results.json, trainer_state.json, loss.png.

    Raises:
        ValueError: recipe.yaml or all_results.json aren't there.
    """
    results = _read(folder, "all_results.json")
    sections = {name: part or {} for name, part in read_yaml(folder / "recipe.yaml").items()}
    state = _read(folder, "trainer_state.json") if (folder / "trainer_state.json").is_file() else {}
    reported = Run.reported({name: value for name, value in results.items() if not name.startswith("train_")})
    data = _data_name(sections.get("data", {}))
    training = {
        "steps": f"{state.get('global_step', 0):,}",
        "training loss": f"{results.get('train_loss', float('nan')):.4f}",
    }
    facts = RunFacts(
        title=folder.name,
        summary=summary_of(model, folder, sections.get("model", {}).get("path")),
        limits=("Written from the run's folder; its samples and command are in no file of it.",),
        dataset=data,
        dataset_summary=f"`{data}`.",
        metrics=reported,
        headline=tuple(name for name in reported if not name.startswith("test_") and name not in ("loss", "tokens")),
        task=TASKS.get(type(model).__name__.rpartition("For")[2], "text-generation"),
        training=training,
        command="hf-ext train TASK recipe.yaml",
        recipe=(folder / "recipe.yaml").read_text(encoding="utf-8"),
        curve="loss.png" if (folder / "loss.png").is_file() else None,
    )
    return model_card(model, folder, facts)


def refresh_card(
    folder: Path, *, later: Mapping[str, float] | None = None, dataset: str | None = None
) -> tuple[ModelCard, int]:
    """A card with the numbers that all_results.json has now, and those of a later evaluation in a part of its own.

    Args:
        later: name -> score, as `hf-ext evaluate --json` prints them. dataset: what they were measured on.

    Returns:
        The card, and how many numbers of its metadata have changed or come.

    Raises:
        ValueError: no card, or one without valid metadata.
    """
    text = (folder / "README.md").read_text(encoding="utf-8")
    check_card_text(text)
    try:
        card = ModelCard(text)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"README.md: its metadata isn't valid ({' '.join(str(error).split())}); mend it") from None
    results = _read(folder, "all_results.json") if (folder / "all_results.json").is_file() else {}
    changed = 0
    for entry in card.data.eval_results or []:
        name = f"{_PREFIXES.get(entry.dataset_split, 'eval_')}{entry.metric_type}"
        if name in results and entry.metric_value != round(results[name], 5):
            entry.metric_value = round(results[name], 5)
            changed += 1
    if later:
        changed += _add(card, later, dataset)
    return card, changed


def _add(card: ModelCard, later: Mapping[str, float], dataset: str) -> int:
    """Scores of a later evaluation, in the metadata and in a table; those of the same data before it are replaced."""
    name = Path(dataset).name
    kept = [entry for entry in card.data.eval_results or [] if entry.dataset_name != name]
    task = card.data.pipeline_tag or "other"
    card.data.eval_results = kept + [
        EvalResult(
            task_type=task, dataset_type=name, dataset_name=name, metric_type=metric, metric_value=round(value, 5)
        )
        for metric, value in later.items()
    ]
    if not card.data.model_name:
        card.data.model_name = name
    body, _, _ = card.text.partition(LATER)
    cell = name.replace("|", "\\|").replace("`", "'")
    rows = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in later.items())
    table = f"On `{cell}`, by `hf-ext evaluate`.\n\n| metric | value |\n| --- | --- |\n{rows}\n"
    card.text = f"{body.rstrip()}\n\n{LATER}\n\n{table}"
    return len(later)


def _read(folder: Path, name: str) -> dict:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder}: has no {name}; name the folder of a finished run")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error})") from None


def _data_name(section: Mapping) -> str:
    """The data set's name, or its first file and that one's folder."""
    found = section.get("dataset_name") or section.get("data_files") or "unknown"
    while not isinstance(found, str):
        found = next(iter(found.values())) if isinstance(found, dict) else found[0]
    return str(Path(*Path(found).parts[-2:])) if section.get("dataset_name") is None else found
