"""What the card of any run says beside its task's own: data, size, hardware, time, energy, and how far to trust it."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel

from hf_ext.data.provenance import data_sources
from hf_ext.hub.saved_adapter import saved_adapter
from hf_ext.tasks.run_costs import RunCosts
from hf_ext.training.hardware import describe_hardware
from hf_ext.training.scaling.run_flops import RunFlops, run_flops


def data_rows(sections: Iterable[object]) -> list[dict]:
    """What each section of a recipe that names data has read."""
    named = [section for section in sections if hasattr(section, "data_files")]
    return list({source: asdict(source) for section in named for source in data_sources(section)}.values())


def flops_of(trainer, model: PreTrainedModel) -> RunFlops | str | None:
    """What training took; why it can't be counted; None where nothing was trained."""
    try:
        return run_flops(trainer, model)
    except ValueError as error:  # a model of another library's design, say
        return " ".join(str(error).split())


def size_rows(
    model: PreTrainedModel, flops: RunFlops | str | None, seconds: float | None, share: float = 1.0
) -> dict[str, str]:
    """Parameters and FLOPs.

    Args:
        seconds: that training took, with the evaluations within it. share: of the steps that were made in them; less
            than 1 after a resume.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    rows = {"weights": f"{weights / 1e6:.2f} MB, {', '.join(sorted({str(p.dtype)[6:] for p in model.parameters()}))}"}
    if trained and trained < model.num_parameters():
        rows["trained parameters"] = f"{trained:,}"
    if isinstance(flops, str):
        return rows | {"FLOPs": f"not counted: {flops}"}
    if flops is None:
        return rows
    count = flops.count
    parts = sorted(count.parameters.by_part.items(), key=lambda part: -part[1])
    rows["parameters by part"] = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in parts if number)
    row = (
        f"{flops.length:,} tokens"
        if flops.source_length is None
        else f"{flops.source_length:,} + {flops.length:,} tokens"
    )
    rows["FLOPs a token"] = (
        f"{_short(count.forward_per_token)} forward, {_short(flops.training / flops.tokens)} in training, in a row of {row} "
        "(the mean)"
    )
    teacher = f", of which {_short(flops.teacher)} the teacher's" if flops.teacher else ""
    rate = share * flops.training / seconds / 1e9 if seconds else 0
    speed = f"; {rate:,.3g} GFLOP/s, evaluations in the time" if rate else ""
    rows["FLOPs of the training"] = f"{_short(flops.training)} for {flops.tokens:,} tokens{teacher}{speed}"
    return rows


def compute_rows(costs: RunCosts, last_step: int, seconds: float | None, timed_from: int = 0) -> dict[str, str]:
    """Hardware, time, energy.

    Args:
        seconds: that training took from step `timed_from` on.
    """
    since = f", since the resume at step {timed_from:,}" if timed_from else ""
    training = f"{seconds:,.0f} s, with its evaluations{since}" if seconds else "not known"
    return {**describe_hardware(costs.num_processes), "training": training, **costs.rows(last_step)}


def summary_of(model: PreTrainedModel, folder: Path, path: str | None) -> str:
    """A card's first sentence.

    Args:
        model: with an adapter in it, where `folder` holds that alone. path: what it was trained on from; None from scratch.
    """
    how = "trained from scratch" if path is None else f"from {Path(path).name}"
    adapter = saved_adapter(folder)
    if adapter is None:
        return f"A `{model.config.model_type}` of {model.num_parameters() / 1e6:.2f}M parameters, {how}."
    parts = (p for name, p in model.named_parameters() if "lora_" in name or ".modules_to_save." in name)
    size = sum(p.numel() for p in parts)
    return f"An adapter ({adapter.kind}) of {size:,} parameters for a `{model.config.model_type}`, {how}."


def base_model_of(path: str | None) -> str | None:
    """The name on the Hub of the model that a run began from; None for a folder, or from scratch."""
    return path if path is not None and not Path(path).exists() and path.count("/") == 1 else None


def _short(number: float) -> str:
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:,.0f} "
