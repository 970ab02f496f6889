"""A folder that somebody else made, before anything is loaded from it: what would run code, lead elsewhere or ask for absurd
sizes is refused in one line.

transformers, peft and tokenizers read these files with care, and have had to learn some of it (SECURITY.md names what and
when). What is looked at here is refused whatever their version is. Nothing is run, and no weight is read.
"""

import json
import re
from pathlib import Path

from hf_ext.hub.file_names import check_name, pickles_among
from hf_ext.models.code_by_name import check_names_no_code
from hf_ext.models.configuration_limits import check_saved_sizes


MAX_FILES = 10_000
# bytes of a JSON; vocabularies and the lists of weights may be larger
MAX_JSON, MAX_TABLE = 10 * 2**20, 500 * 2**20
TABLES = ("tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json", "trainer_state.json")
MAX_JSON_DEPTH = 100
# bytes of a safetensors header, the format's own limit
MAX_HEADER = 100_000_000
# bytes of a template that makes a prompt of a conversation
MAX_TEMPLATE = 200_000
# libraries that peft may import by the name that an adapter gives: those that hold models
PARENT_LIBRARIES = ("transformers", "peft", "diffusers", "hf_ext")
# what generation takes from its configuration -> the most of it
GENERATION_LIMITS = {
    "max_length": 10**8,
    "max_new_tokens": 10**8,
    "num_beams": 1000,
    "num_return_sequences": 10_000,
    "min_length": 10**8,
    "top_k": 10**8,
}
_FILE_ENTRY = re.compile(r".*_files?$")


def check_loadable(folder: Path, *, trust_remote_code: bool = False, cache: Path | None = None) -> None:
    """Raises ValueError, one line, for the first thing in a folder that isn't safe to load.

    Args:
        trust_remote_code: whether the user's own command allowed the code in this folder to run; that of another repository
            isn't run with it.
        cache: the Hub client's folder of this repository, into which the links of its snapshots lead.
    """
    names = _names(folder, cache)
    if not any(name.endswith((".safetensors", ".gguf")) for name in names) and (pickles := pickles_among(names)):
        raise ValueError(
            f"{folder.name}: its weights are a pickle ({pickles[0]}), which runs what it says when it is loaded; take a "
            "revision with safetensors"
        )
    contents = {
        name: read_untrusted_json(folder / name) for name in names if name.endswith(".json") and "/" not in name
    }
    for name, content in contents.items():
        if name not in TABLES:  # words of a vocabulary may be called anything
            check_names_no_code(content, name)
    mappings = {name: content for name, content in contents.items() if isinstance(content, dict)}
    for name in ("config.json", "adapter_config.json", "tokenizer_config.json", "generation_config.json"):
        if name in contents and name not in mappings:
            raise ValueError(f"{name}: must be a mapping of fields, is a {type(contents[name]).__name__}")
    if "config.json" in mappings:
        check_saved_sizes(mappings["config.json"])
    for name, content in mappings.items():
        _check_code(folder, name, content, trust_remote_code)
    if "tokenizer_config.json" in mappings:
        _check_tokenizer(mappings["tokenizer_config.json"])
    if "adapter_config.json" in mappings:
        _check_adapter(mappings["adapter_config.json"])
    if "generation_config.json" in mappings:
        _check_generation(mappings["generation_config.json"])
    for name, content in mappings.items():
        if name.endswith(".safetensors.index.json"):
            _check_index(name, content)
    for name in names:
        if name.endswith(".safetensors"):
            _check_header(folder / name, name)
        if name.endswith(".jinja") and (folder / name).stat().st_size > MAX_TEMPLATE:
            raise ValueError(f"{name}: above {MAX_TEMPLATE:,} bytes, which no template of a conversation needs")


def _names(folder: Path, cache: Path | None) -> list[str]:
    """Names of all files, each of which lies in the folder (or the cache) whatever links there are."""
    inside = [folder.resolve(), *([] if cache is None else [cache.resolve()])]
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in inside):
            raise ValueError(f"{name}: is a link out of the folder; copy what is meant in, or delete it")
        if path.is_file():
            names.append(name)
        if len(names) > MAX_FILES:
            raise ValueError(f"{folder.name}: holds more than {MAX_FILES:,} files; name the folder of one model")
    return names


def read_untrusted_json(path: Path):
    """The content of a JSON whose size and depth are bounded.

    Raises:
        ValueError: one line.
    """
    most = MAX_TABLE if path.name in TABLES or path.name.endswith(".index.json") else MAX_JSON
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{path.name}: {size:,} bytes, above {most:,}; no file of that name needs them")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name}: more than {MAX_JSON_DEPTH} levels deep; write it again") from None
    except ValueError as error:  # also of a number with thousands of digits
        raise ValueError(f"{path.name}: is no JSON ({str(error).splitlines()[0]}); write it again") from None
    if _depth(content) > MAX_JSON_DEPTH:
        raise ValueError(f"{path.name}: more than {MAX_JSON_DEPTH} levels deep; write it again")
    return content


def _depth(content) -> int:
    depth, level = 0, [content]
    while level and depth <= MAX_JSON_DEPTH:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth


def _check_code(folder: Path, name: str, content: dict, trusted: bool) -> None:
    """`auto_map`: with the user's word the code in this folder, and no other; without it none."""
    auto_map = content.get("auto_map") or {}
    if not isinstance(auto_map, dict):
        auto_map = {"auto_map": auto_map}
    for auto_class, references in auto_map.items():
        for reference in references if isinstance(references, list) else [references]:
            if reference is None:
                continue
            if not isinstance(reference, str) or not re.fullmatch(r"(?:[\w./-]+--)?\w+\.\w+", reference):
                raise ValueError(f"{name}: auto_map names {reference!r} for {auto_class}; must be FILE.CLASS")
            if trusted and "--" in reference:
                raise ValueError(
                    f"{name}: auto_map names {reference!r} for {auto_class}, code of another repository, which your command "
                    "didn't name; copy it in after you have read it"
                )
            if trusted and not (folder / f"{reference.split('.')[0]}.py").is_file():
                raise ValueError(f"{name}: auto_map names {reference!r} for {auto_class}, which isn't there")


def _check_tokenizer(content: dict) -> None:
    for key, value in content.items():
        if _FILE_ENTRY.fullmatch(key):
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, str) and entry:
                    _inside("tokenizer_config.json", key, entry)
    templates = content.get("chat_template")
    for template in templates if isinstance(templates, list) else [templates]:
        text = template.get("template") if isinstance(template, dict) else template
        if isinstance(text, str) and len(text) > MAX_TEMPLATE:
            raise ValueError(
                f"tokenizer_config.json: chat_template has {len(text):,} characters, above {MAX_TEMPLATE:,}; none needs them"
            )


def _check_adapter(content: dict) -> None:
    """What peft would import or load besides the base model, which the user names."""
    for key in ("megatron_core", "megatron_config"):
        if content.get(key) and content[key] != "megatron.core":
            raise ValueError(f"adapter_config.json: {key}={content[key]!r} names a module to import; take it out")
    mapping = content.get("auto_mapping") or {}
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if library and str(library).split(".")[0] not in PARENT_LIBRARIES:
        raise ValueError(
            f"adapter_config.json: auto_mapping names the module {library!r} to import; only "
            f"{', '.join(PARENT_LIBRARIES)} hold models"
        )
    for key in ("r", "num_virtual_tokens", "num_layers", "token_dim", "encoder_hidden_size"):
        size = content.get(key)
        if isinstance(size, int) and not 0 <= size <= 2**20:
            raise ValueError(f"adapter_config.json: {key}={size}: must be from 0 to {2**20:,}")


def _check_generation(content: dict) -> None:
    for key, most in GENERATION_LIMITS.items():
        value = content.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and not value <= most:
            raise ValueError(f"generation_config.json: {key}={value}: above {most:,}; lower it")


def _check_index(name: str, content: dict) -> None:
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{name}: has no weight_map; save the model again")
    for shard in sorted({str(file) for file in weight_map.values()}):
        _inside(name, "weight_map", shard)
        if not shard.endswith(".safetensors"):
            raise ValueError(f"{name}: names {shard!r}, which is no safetensors file")


def _check_header(path: Path, name: str) -> None:
    """The length that a safetensors file begins with is that of a header within the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise ValueError(f"{name}: says that its header has {length:,} bytes, the file has {size:,}; save it again")


def _inside(name: str, key: str, entry: str) -> None:
    try:
        check_name(entry)
    except ValueError:
        raise ValueError(f"{name}: {key}={entry!r} leads out of the folder; name a file in it") from None
