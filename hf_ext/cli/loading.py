"""A model and its tokenizer for a subcommand, from what the user named."""

import json
from pathlib import Path
from typing import Annotated

import typer


ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A saved model's folder, or owner/name on the Hub.")]
Revision = Annotated[str | None, typer.Option("--revision", help="On the Hub: a branch, tag or commit.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust_remote_code",
        help="Run the code that comes with the model; on the Hub with --revision, a commit's 40 digits.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--base", help="Of an adapter alone: the model that it was trained beside; a file isn't asked."),
]
Attention = Annotated[
    str | None, typer.Option("--attn_implementation", help="eager, sdpa, hfx_tiled, …; default what the model takes.")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="Of the weights: float32, bfloat16, …; default as they are saved.")
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps, …; default the first accelerator.")
]


def load_tokenizer(source):
    """The tokenizer in a folder.

    Raises:
        ValueError: there is none, or it can't be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.folder, **source.options)
    except (OSError, KeyError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{source.folder}: its tokenizer can't be loaded ({said})") from error


def load_model(
    source,
    auto_class,
    *,
    base: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    attn_implementation: str | None = None,
):
    """The model in eval mode on its device; quantized, exported, or with its adapter, where that is what the folder holds.

    Args:
        source: from `find_model`. auto_class: the Auto class that loads it. base: of an adapter.

    Raises:
        ValueError: one line.
    """
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    from hf_ext.export.exported_folder import DESCRIPTION as EXPORTED
    from hf_ext.hub.model_folder import check_holds_model
    from hf_ext.quantization.saving import DESCRIPTION, load_quantized

    logging.disable_progress_bar()
    if (source.folder / EXPORTED).is_file():
        return _open_export(source, dtype=dtype, device=device, attn_implementation=attn_implementation)
    options = {}
    if dtype is not None:
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"--dtype {dtype}: must be a torch dtype such as float32 or bfloat16")
        options["dtype"] = getattr(torch, dtype)
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    adapter = source.folder / "adapter_config.json"
    if (source.folder / DESCRIPTION).is_file():
        if options:
            name = next(iter(options))
            raise ValueError(f"--{name}: has no effect on a quantized folder; leave it out")
        model = load_quantized(source.folder)
    elif adapter.is_file():
        from hf_ext.tasks.adapter_loading import load_with_adapter

        beneath = whole_model(source, base)
        model = load_with_adapter(auto_class, source.folder, beneath.folder, beneath.weight_options, **options)
    else:
        check_holds_model(source.folder)
        try:
            model = auto_class.from_pretrained(source.folder, **source.weight_options, **options)
        except SafetensorError as error:
            raise ValueError(f"{source.folder}: its weights can't be read ({error}); save the model again") from error
    return model.to(_device(device)).eval()


def _open_export(source, **asked):
    """Raises ValueError for what its graphs had decided when they were written, and for one on the Hub."""
    from hf_ext.export.opening import open_export

    if source.commit is not None:  # what was fetched of it are the files that transformers reads
        raise ValueError("MODEL: is an export, whose graphs are read from a folder; fetch it with hf-ext pull first")
    for name, value in asked.items():
        if value is not None and (name, value) != ("device", "cpu"):
            raise ValueError(
                f"--{name} {value}: has no effect on an export, which runs on the CPU as it is; leave it out"
            )
    return open_export(source.folder)


def whole_model(source, base: str | None):
    """The source of the model itself: of an adapter what the user named, else what was named in the first place.

    Raises:
        ValueError: an adapter without a base, or a base for what is no adapter.
    """
    from hf_ext.hub.model_source import find_model

    adapter = source.folder / "adapter_config.json"
    if adapter.is_file() and base is None:
        named = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise ValueError(f"{source.folder}: is an adapter that says it is {named!r}'s; name that model: --base {named}")
    if base is None:
        return source
    if not adapter.is_file():
        raise ValueError(f"--base {base}: has no effect, {source.folder} holds no adapter; leave it out")
    return find_model(base)


def config_source(source, base: str | None):
    """The source of the config.json that says what the model is: of an adapter its own, if it brings a new head, else its
    base's."""
    beneath = whole_model(source, base)
    return source if (source.folder / "config.json").is_file() else beneath


def _device(asked: str | None):
    import torch

    if asked is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {asked}: isn't to be had here ({said}); hf-ext doctor says what is") from error
    return device


def writing_class(config: dict, name: str | Path, *, trusted: bool = False):
    """The Auto class of a model that writes: AutoModelForSeq2SeqLM or AutoModelForCausalLM.

    Raises:
        ValueError: the configuration's model has neither.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kinds = (AutoModelForSeq2SeqLM, AutoModelForCausalLM)
    model_type, architectures = config.get("model_type"), config.get("architectures") or []
    if model_type in CONFIG_MAPPING:
        known = [auto for auto in kinds if CONFIG_MAPPING[model_type] in auto._model_mapping]
        for auto in known:
            if auto._model_mapping[CONFIG_MAPPING[model_type]].__name__ in architectures or len(known) == 1:
                if architectures and not any(_writes(architecture) for architecture in architectures):
                    break
                return auto
    elif trusted:
        for auto in kinds:
            if auto.__name__ in (config.get("auto_map") or {}):
                return auto
    raise ValueError(f"{name}: {', '.join(architectures) or model_type} doesn't write; name a language model's folder")


def _writes(architecture: str) -> bool:
    return architecture.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "MTModel", "ForSeq2SeqLM"))


def encode(tokenizer, text: str, **options):
    """`tokenizer(text, …)`; a pattern of tokenizer.json that backtracks without end stops at its engine's limit.

    Raises:
        ValueError: it did.
    """
    try:
        return tokenizer(text, **options)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's, which is no Exception
            raise
        raise ValueError(
            f"tokenizer.json: a pattern of it can't read this text ({error}); take another tokenizer"
        ) from None
