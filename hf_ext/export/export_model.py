"""A saved model for another engine: traced, written, quantized, compared with torch, and only then there.

exported = export_model("outputs/quickstart", "onnx", "outputs/quickstart_onnx", quantize="int8_dynamic")
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_ext.export.calibration import calibration_inputs, read_texts
from hf_ext.export.exported_folder import Description, check_new_folder, new_folder, write_description
from hf_ext.export.greedy_text import WRITING, prompt_of, tokens_alike, write
from hf_ext.export.options import ExportOptions
from hf_ext.export.parity import Parity, ParityError, compare_parts, probe_tokens, reference, write_parity
from hf_ext.export.parts import MOST_TOKENS, cache_shapes, parts_of, sample_tokens
from hf_ext.export.targets import TARGETS
from hf_ext.export.tasks import check_exportable, exported_attention, load_for_export, task_of
from hf_ext.export.tracing import traceable_experts
from hf_ext.training.local_paths import public_yaml
from hf_ext.training.recipe_yaml import read_yaml


@dataclass(frozen=True)
class Exported:
    """What was written. num_bytes: of all files together."""

    folder: Path
    task: str
    parity: Parity
    num_bytes: int


def export_model(
    model: str | Path | PreTrainedModel,
    target: str,
    out: str | Path,
    task: str | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    options: ExportOptions | None = None,
    **further,
) -> Exported:
    """Export one of our models. The folder appears whole, after its numbers were compared with torch's, or not at all.

    Args:
        model: folder or Hub name of a saved model, or the model itself, in 32 bits and eval mode.
        target: a name in `hf_ext.export.targets.TARGETS`. out: the folder to write; must not exist.
        task: as Optimum calls it; None for the model's own, "feature-extraction" for its body without the head.
        tokenizer: is saved beside it, and reads the calibration texts; of a folder the folder's own.
        options, further: an `ExportOptions`, or its fields by name.

    Raises:
        ValueError: one line; an unknown target or one whose packages are missing, an option that the target can't do, a
            model that isn't ours, no calibration texts, a folder that exists.
        ParityError: the export computes something else than the model.
    """
    if options is not None and further:
        raise ValueError(f"options: given together with {', '.join(further)}; give one or the other")
    options = options or ExportOptions(task=task, **further)
    options.check(target)
    check_new_folder(out)
    texts = None if options.calibration is None else read_texts(options.calibration)
    recipe = None
    if isinstance(model, PreTrainedModel):
        task, given = task_of(model), task
        check_exportable(model)
        if given is not None and given.removesuffix("-with-past") != task:
            raise ValueError(f"task={given!r}: a {type(model).__name__}'s is {task!r}; leave it out")
    else:
        path = model
        model, task = load_for_export(path, task or options.task)
        tokenizer, recipe = tokenizer or _tokenizer_of(path), _recipe_of(path)
    if texts is not None and tokenizer is None:
        raise ValueError(f"calibration={str(options.calibration)!r}: there is no tokenizer to read it; give tokenizer=")
    return _export(model, task, tokenizer, recipe, target, Path(out), options, texts)


def _tokenizer_of(path: str | Path) -> PreTrainedTokenizerBase | None:
    """The folder's, None where it has none; of the Hub too."""
    if Path(path).is_dir() and not (Path(path) / "tokenizer_config.json").is_file():
        return None
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _recipe_of(path: str | Path) -> str | None:
    """YAML of the run that trained it, by which `hf-ext evaluate` knows what the task is; without this machine's paths."""
    recipe = Path(path) / "recipe.yaml"
    if not recipe.is_file():
        return None
    read_yaml(recipe)  # raises its one line
    return public_yaml(recipe.read_text(encoding="utf-8"))


def _export(model, task: str, tokenizer, recipe, target: str, out: Path, options: ExportOptions, texts) -> Exported:
    made = TARGETS[target]
    longest = model.config.max_position_embeddings
    if longest < MOST_TOKENS:
        raise ValueError(
            f"max_position_embeddings={longest}: graphs are traced with {MOST_TOKENS} tokens; use a longer model"
        )
    config, limits = copy.deepcopy(model.config), options.limits(model.config)
    with as_traced(model):
        parts = parts_of(model, task)
        probed = {}
        for part in parts:
            probes = probe_tokens(part, task, *_vocabularies(model, task))
            probed |= {f"{part.name}/{name}": value for name, value in reference(part, probes).items()}
        with new_folder(out) as folder:
            files = {part.name: part.name + made.suffix for part in parts}
            has_cache = any(part.goes_on for part in parts)
            description = Description(
                target,
                task,
                type(model).__name__,
                options.quantize,
                files,
                cache_shapes(model) if has_cache else {},
            )
            for part in parts:
                path = folder / files[part.name]
                with traceable_experts():
                    made.write(part, part.inputs_of(sample_tokens(model, task, part)), path, limits)
                if options.quantize is not None:
                    calibration = None if texts is None else calibration_inputs(model, task, part, tokenizer, texts)
                    made.quantize(path, options.quantize, calibration)
            write_description(folder, description, config, model, tokenizer)
            if recipe is not None:
                (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
            tolerance = options.tolerance
            if tolerance is None:
                tolerance = made.quantizations[options.quantize].tolerance if options.quantize else made.tolerance
            found = compare_parts(folder, description, probed, tolerance)
            greedy = None
            if task in WRITING:
                greedy = _compare_text(model, folder, task, options, probed)
            parity = write_parity(folder, probed, tolerance, found, greedy, made.distributions)
    return Exported(out, task, parity, sum(path.stat().st_size for path in out.rglob("*") if path.is_file()))


@contextmanager
def as_traced(model: PreTrainedModel) -> Iterator[None]:
    """`model` with the attention that is traced, and padding computed as graphs do, which have no other number of tokens."""
    config = model.config
    attention, padding_free = config._attn_implementation, getattr(config, "padding_free", None)
    model.set_attn_implementation(exported_attention(config))
    if padding_free:
        config.padding_free = False
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        if padding_free:
            config.padding_free = True


def _compare_text(
    model: PreTrainedModel, folder: Path, task: str, options: ExportOptions, probed: dict[str, torch.Tensor]
) -> tuple[int, int]:
    """Tokens compared and tokens alike; prompt and tokens join `probed`."""
    prompt = prompt_of(_vocabularies(model, task)[0])
    longest = options.max_length or model.config.max_position_embeddings
    num_tokens = min(options.greedy_tokens, longest - prompt.shape[1])
    expected = write(model, prompt, num_tokens)
    written = write(WRITING[task].from_pretrained(folder), prompt, num_tokens)
    same = tokens_alike(written, expected)
    if options.quantize is None and same < len(expected):
        raise ParityError(
            f"greedy text: differs from torch's after {same} of {len(expected)} tokens; nothing was written"
        )
    probed |= {"greedy/in/input_ids": prompt, "greedy/out/tokens": expected}
    return len(expected), same


def _vocabularies(model: PreTrainedModel, task: str) -> tuple[int, int | None]:
    """Of what is read first, and of an encoder-decoder's decoder where it reads something else."""
    config = model.config
    if config.is_encoder_decoder and task in ("text2text-generation", "feature-extraction"):
        return config.source_vocab_size, config.vocab_size
    return config.vocab_size, None


__all__ = ["Exported", "export_model"]
