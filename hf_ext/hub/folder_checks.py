"""Whether a folder is what it says: a model, tokenizer, adapter or data set that loads from these files alone.

Nothing in the folder is run, and no weight is read but the headers.
"""

import ast
import json
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import yaml
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, GenerationConfig

from hf_ext.hub.card_text import check_card_text
from hf_ext.hub.defined_names import defined_names
from hf_ext.hub.file_names import PICKLES, check_name, check_no_pickle, pickles_among


# what a model is loaded from, by any library
WEIGHTS = (".safetensors", ".onnx", ".gguf", ".xml")
DATA = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt", ".arrow")
IMAGES_OF_A_CARD = re.compile(r"!\[[^\]]*\]\(([^)\s]+)")


def check_folder(folder: Path, names: Iterable[str], repo_type: str = "model") -> None:
    """Raises ValueError, one line, for the first file that is missing, broken, unsafe or doesn't fit the others.

    Args:
        folder, names: the files that would be pushed, by their paths in the folder. repo_type: "model" or "dataset".
    """
    names = sorted(names)
    if not names:
        raise ValueError(f"{folder.name}: no file to push")
    for name in names:
        check_name(name)
        _check_is_file_inside(folder, name)
    if pickles := pickles_among(names):
        raise ValueError(
            f"{', '.join(pickles)}: pickles ({' '.join(PICKLES)}) run what they say when they are loaded and aren't pushed; "
            "save weights as safetensors, or leave them out: leave_out=('*.bin',)"
        )
    check_no_pickle(folder, names)
    for name in names:
        if name.endswith(".json"):
            _json(folder, name)
        if name.endswith(".safetensors"):
            _tensors(folder, name)
    present = set(names)
    for name in names:
        where, last = PurePosixPath(name).parent, PurePosixPath(name).name
        if last.endswith(".safetensors.index.json"):
            _check_index(folder, name, present)
        if last == "adapter_config.json" and repo_type == "model":
            _check_adapter(folder, where, present)
        if last == "tokenizer.json":
            _check_tokenizer(folder, name)
    if "README.md" in present:
        _check_card(folder, present, repo_type)
    if repo_type == "model":
        _check_model(folder, present)
    else:
        _check_data(folder, names)


def _check_is_file_inside(folder: Path, name: str) -> None:
    path = folder / name
    try:
        mode = path.stat().st_mode
    except OSError:
        raise ValueError(f"{name}: can't be read, or is a link to nowhere; mend it or leave it out") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name}: is no plain file; leave it out")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name}: is a link out of the folder; copy the file in, or leave it out")


def _json(folder: Path, name: str) -> dict | list:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are the first
        raise ValueError(f"{name}: is no JSON ({_first_line(error)}); write it again") from None


def _mapping(folder: Path, name: str) -> dict:
    content = _json(folder, name)
    if not isinstance(content, dict):
        raise ValueError(f"{name}: must be a mapping of fields, is a {type(content).__name__}")
    return content


def _tensors(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """name -> shape; the header is read, and its lengths compared with the file's."""
    try:
        with safe_open(folder / name, framework="pt") as file:
            tensors = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{name}: is no whole safetensors file ({_first_line(error)}); save it again") from None
    if not tensors:
        raise ValueError(f"{name}: holds no tensor; save it again")
    return tensors


def _check_index(folder: Path, name: str, present: set[str]) -> None:
    where = PurePosixPath(name).parent
    weight_map = _mapping(folder, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{name}: has no weight_map; save the model again")
    for shard in sorted(set(weight_map.values())):
        path = str(where / shard)
        if path not in present:
            raise ValueError(f"{name}: names {shard}, which isn't there; save the model again")
        listed, there = {key for key, file in weight_map.items() if file == shard}, set(_tensors(folder, path))
        if listed != there:
            raise ValueError(f"{name}: {shard} doesn't hold {min(listed ^ there)!r} as it says; save the model again")


def _check_model(folder: Path, present: set[str]) -> None:
    """The top folder's: the configuration is one, its weights are there, its code too."""
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        if name in present:
            _check_code(folder, name, present)
    if "generation_config.json" in present:
        try:
            GenerationConfig.from_dict(_mapping(folder, "generation_config.json")).validate(strict=True)
        except (ValueError, TypeError) as error:
            raise ValueError(f"generation_config.json: {_first_line(error)}") from None
    if "config.json" not in present:
        return
    values = _mapping(folder, "config.json")
    model_type = values.get("model_type")
    if model_type in CONFIG_MAPPING:
        try:
            config = CONFIG_MAPPING[model_type].from_dict(values)
            if hasattr(config, "validate_architecture"):
                config.validate_architecture()
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise ValueError(f"config.json: {_first_line(error).removeprefix('config.json: ')}") from None
    elif "model_type" in values and "AutoConfig" not in values.get("auto_map", {}):
        raise ValueError(
            f"config.json: model_type {model_type!r} is no architecture that is registered here, and no auto_map names its "
            "code; import the package that has it, or save the code beside"
        )
    if not any(name.endswith(WEIGHTS) for name in present):
        raise ValueError("config.json: is there, but no weights are; save the model, or leave the configuration out")


def _check_code(folder: Path, name: str, present: set[str]) -> None:
    """The files that an `auto_map` names, and what these import of each other, are there."""
    auto_map = _mapping(folder, name).get("auto_map") or {}
    for auto_class, references in auto_map.items():
        for reference in references if isinstance(references, list) else [references]:
            if reference is None or "--" in reference:  # code of another repository
                continue
            module, _, class_name = reference.rpartition(".")
            file = f"{module}.py"
            if file not in present:
                raise ValueError(f"{name}: auto_map names {reference} for {auto_class}, but {file} isn't there; add it")
            if class_name not in defined_names(_parsed(folder, file)):
                raise ValueError(f"{name}: auto_map names {reference} for {auto_class}, which {file} doesn't define")
    if auto_map:
        for file in sorted(file for file in present if file.endswith(".py") and "/" not in file):
            for imported in _siblings(folder, file):
                if f"{imported}.py" not in present:
                    raise ValueError(f"{file}: imports .{imported}, but {imported}.py isn't there; add it")


def _parsed(folder: Path, file: str) -> ast.Module:
    try:
        return ast.parse((folder / file).read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: is no Python ({_first_line(error)})") from None


def _siblings(folder: Path, file: str) -> set[str]:
    nodes = [node for node in ast.walk(_parsed(folder, file)) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return {
        name.split(".")[0]
        for node in nodes
        for name in ([node.module] if node.module else [a.name for a in node.names])
    }


def _check_adapter(folder: Path, where: PurePosixPath, present: set[str]) -> None:
    """peft's: the weights are there and have the rank of the configuration, and the base can be found by others."""
    name, weights = str(where / "adapter_config.json"), str(where / "adapter_model.safetensors")
    config = _mapping(folder, name)
    if "peft_type" not in config:
        raise ValueError(f"{name}: has no peft_type; save the adapter with peft")
    if weights not in present:
        raise ValueError(f"{name}: is there, but {weights} isn't; save the adapter with peft")
    base = config.get("base_model_name_or_path")
    if not base or Path(base).is_absolute() or base.startswith(("~", ".")) or Path(base).is_dir():
        raise ValueError(
            f"{name}: base_model_name_or_path={base!r}: is nothing that others can load; push the base, and put its name "
            "on the Hub here"
        )
    shapes = _tensors(folder, weights)
    if config["peft_type"] == "LORA":
        ranks = {config.get("r"), *(config.get("rank_pattern") or {}).values()}
        for tensor, shape in shapes.items():
            if tensor.endswith("lora_A.weight") and shape[0] not in ranks:
                raise ValueError(
                    f"{weights}: {tensor} has rank {shape[0]}, {name} says {config.get('r')}; save it again"
                )


def _check_tokenizer(folder: Path, name: str) -> None:
    from tokenizers import Tokenizer  # of an extra of the package, as training one is

    try:
        Tokenizer.from_file(str(folder / name))
    except Exception as error:  # its errors are plain `Exception`s
        if type(error) is not Exception:
            raise
        raise ValueError(f"{name}: is no tokenizer ({_first_line(error)}); save it again") from None


def _check_card(folder: Path, present: set[str], repo_type: str) -> None:
    """The metadata is valid YAML and a valid model-index, and the pictures that are shown are there."""
    card_class = ModelCard if repo_type == "model" else DatasetCard
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"README.md: is no text ({_first_line(error)})") from None
    check_card_text(text)
    try:
        card = card_class(text)
    except (ValueError, TypeError, KeyError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"README.md: its metadata isn't valid ({_first_line(error)})") from None
    for shown in IMAGES_OF_A_CARD.findall(card.text):
        if "://" not in shown and shown.removeprefix("./") not in present:
            raise ValueError(f"README.md: shows {shown}, which isn't there; add it, or take it out of the card")


def _check_data(folder: Path, names: list[str]) -> None:
    if not any(name.endswith(DATA) and name not in ("README.md", "dataset_infos.json") for name in names):
        raise ValueError(f"{folder.name}: no data ({', '.join(DATA)}) in it; save the data set into it")
    for name in names:
        if name.endswith(".parquet"):
            _check_parquet(folder, name)
        if name.endswith(".jsonl"):
            _check_json_lines(folder, name)


def _check_parquet(folder: Path, name: str) -> None:
    import pyarrow.parquet  # comes with `datasets`, as parquet files do

    try:
        pyarrow.parquet.ParquetFile(folder / name).close()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{name}: is no whole parquet file ({_first_line(error)}); write it again") from None


def _check_json_lines(folder: Path, name: str) -> None:
    with (folder / name).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                is_row = not line.strip() or isinstance(json.loads(line), dict)
            except ValueError:
                is_row = False
            if not is_row:
                raise ValueError(f"{name}: line {number} is no JSON object; write it again")


def _first_line(error: BaseException) -> str:
    return next((" ".join(line.split()) for line in str(error).splitlines() if line.strip()), type(error).__name__)
