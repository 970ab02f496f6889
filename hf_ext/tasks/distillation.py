"""Teacher and student of a distillation recipe: the student has layers of the teacher, or a design of its own."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel

from hf_ext.tasks.model_section import ModelSection, read_model_section
from hf_ext.tasks.text_classification import ClassificationArguments
from hf_ext.training.distillation import DistillationArguments, DistillationTrainer


@dataclass
class TeacherArguments:
    """The trained model to learn from."""

    path: str = field(metadata={"help": "Folder of a finished run, or Hub name."})
    revision: str | None = field(default=None, metadata={"help": "Of a Hub model: branch, tag or commit."})

    @property
    def section(self) -> ModelSection:
        """As a model section.

        Raises:
            ValueError: there is no model in the folder.
        """
        return read_model_section({"path": self.path, "revision": self.revision})


def student_config(teacher: PretrainedConfig, asked: DistillationArguments) -> PretrainedConfig:
    """The teacher's configuration with `asked.student_layers` alone.

    Raises:
        ValueError: no layers are named, or one that the teacher doesn't have.
    """
    values = teacher.to_dict()
    if asked.student_layers is None:
        raise ValueError("distillation.student_layers: name the teacher's layers to begin as, or give a model")
    depth = _picked(asked.student_layers, teacher.num_hidden_layers, "student_layers")
    values["num_hidden_layers"] = len(depth)
    for name in ("layer_types", "mlp_layer_types"):
        if values.get(name):
            values[name] = [values[name][layer] for layer in depth]
    if teacher.is_encoder_decoder:
        encoder = asked.student_encoder_layers or list(range(teacher.encoder_layers))
        _picked(encoder, teacher.encoder_layers, "student_encoder_layers")
        values["encoder_layers"] = len(encoder)
        values["encoder_layer_types"] = [teacher.encoder_layer_types[layer] for layer in encoder]
    elif asked.student_encoder_layers is not None:
        raise ValueError(
            f"distillation.student_encoder_layers={asked.student_encoder_layers}: a {teacher.model_type} has one stack; "
            "leave it out"
        )
    return type(teacher).from_dict(values)


def _picked(layers: list[int], depth: int, name: str) -> list[int]:
    if layers[-1] >= depth:
        raise ValueError(f"distillation.{name}={layers}: the teacher has layers 0 to {depth - 1}; choose among them")
    return layers


def copy_layers(student: PreTrainedModel, teacher: PreTrainedModel, asked: DistillationArguments) -> None:
    """Give the student the teacher's weights, layer i those of its i-th chosen layer; everything else as it is.

    Raises:
        ValueError: weights of another shape.
    """
    of_decoder = dict(enumerate(asked.student_layers))
    of_encoder = dict(
        enumerate(asked.student_encoder_layers or range(getattr(teacher.config, "encoder_layers", 0) or 0))
    )
    weights = teacher.state_dict()
    chosen = {}
    for name in student.state_dict():
        found = re.search(r"(?<=layers\.)\d+(?=\.)", name)
        source = name
        if found:
            is_encoder = teacher.config.is_encoder_decoder and "encoder." in name[: found.start()]
            layer = (of_encoder if is_encoder else of_decoder)[int(found.group())]
            source = f"{name[: found.start()]}{layer}{name[found.end() :]}"
        chosen[name] = weights[source]
    student.load_state_dict(chosen)


def check_student(model: dict, asked: DistillationArguments) -> None:
    """Raises ValueError unless the student is either layers of the teacher or a model section, not both."""
    if bool(model) == (asked.student_layers is not None):
        given = "both are" if model else "neither is"
        raise ValueError(
            f"distillation.student_layers, model: {given} given; a student has layers of the teacher, or a design of its own"
        )


def check_classification(asked: ClassificationArguments) -> None:
    """Raises ValueError, one line, for what is asked of a classifier that has no effect on a student."""
    if asked.r_drop:
        raise ValueError(f"classification.r_drop={asked.r_drop}: has no effect beside a teacher; leave it out")


def layer_dropped(teacher: PreTrainedModel, asked: DistillationArguments) -> PreTrainedModel:
    """A student of the teacher's class that begins as its chosen layers; DistilBERT's start, arXiv 1910.01108, sec. 3."""
    student = type(teacher)(student_config(teacher.config, asked))
    copy_layers(student, teacher, asked)
    return student


def layer_pairs(student: PretrainedConfig, teacher: PretrainedConfig) -> list[tuple[int, int]]:
    """(student's layer, teacher's) whose hidden states are brought together: the last ones of equal shares of the depth.

    Of k layers of the student, layer i answers for the teacher's round((i + 1) n / k) - 1 of n: the last for the last. A
    student deeper than its teacher has no such pairs.
    """
    k, n = student.num_hidden_layers, teacher.num_hidden_layers
    if k > n:
        return []
    return [(layer, max(0, round((layer + 1) * n / k) - 1)) for layer in range(k)]


def compare(trainer: DistillationTrainer, rows, metric: str) -> list[dict]:
    """Student and teacher on the same rows: parameters, the metric, and rows a second, one after the other."""
    lines = []
    student = trainer.model
    trainer.predict(rows, metric_key_prefix="warmup")  # the first pass of a process is slower than the others
    for name, model in (("teacher", trainer.teacher), ("student", student)):
        trainer.model = trainer.model_wrapped = model
        scores = trainer.predict(rows, metric_key_prefix=name).metrics
        lines.append(
            {
                "model": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                metric: scores[f"{name}_{metric}"],
                "rows_per_second": scores[f"{name}_samples_per_second"],
            }
        )
    trainer.model = trainer.model_wrapped = student
    return lines


def comparison_table(lines: list[dict]) -> str:
    """The comparison for a terminal."""
    heads = list(lines[0])
    shown = [
        [f"{v:,}" if isinstance(v, int) else f"{v:,.4g}" if isinstance(v, float) else v for v in r.values()]
        for r in lines
    ]
    widths = [max(map(len, column)) for column in zip(heads, *shown, strict=True)]
    rows = ("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in (heads, *shown))
    return "\n".join(["", *rows])


def summary(student: PreTrainedModel, teacher: PreTrainedModel) -> str:
    """One sentence for the card."""
    return (
        f"A `{student.config.model_type}` of {student.num_parameters() / 1e6:.2f}M parameters, taught by one of "
        f"{teacher.num_parameters() / 1e6:.2f}M."
    )


def name_of(path: str) -> str:
    """What a card calls a model: the last part of a folder, a Hub name as it is."""
    return Path(path).name if Path(path).exists() else path
