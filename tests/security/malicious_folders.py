"""Model folders as an attacker would make them: one change each to a folder that loads."""

import json
from collections.abc import Callable
from pathlib import Path

import torch


def change(name: str, **fields) -> Callable[[Path], None]:
    """Fields put into a JSON of the folder, which is made where it isn't there."""

    def do(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(content | fields))

    return do


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return do


class Payload:
    """Touches `ran` in the working folder when it is unpickled."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def pickled_weights(folder: Path) -> None:
    """A pytorch_model.bin that runs what it says: transformers' CVE-2024-3568, CVE-2024-11392 to 11394 are of this kind."""
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload()}, folder / "pytorch_model.bin")


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    outside.write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(outside)


def linked_folder(folder: Path) -> None:
    (folder / "deeper").symlink_to(folder.parent, target_is_directory=True)


def code(folder: Path) -> None:
    """Code beside the model, which only its own model_type can be loaded by."""
    write("evil.py", "open('ran', 'w')\nclass Config: pass\n")(folder)
    change("config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})(folder)


def code_of_the_tokenizer(folder: Path) -> None:
    write("evil.py", "open('ran', 'w')\nclass Tokenizer: pass\n")(folder)
    change(
        "tokenizer_config.json",
        tokenizer_class="Tokenizer",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    )(folder)


def shards(**files: str) -> Callable[[Path], None]:
    return change("model.safetensors.index.json", metadata={}, weight_map=files)


def adapter(**fields) -> Callable[[Path], None]:
    return change("adapter_config.json", peft_type="LORA", base_model_name_or_path="someone/base", **fields)


def header(length: int) -> Callable[[Path], None]:
    """A safetensors file whose header says it is so long."""
    return write("model.safetensors", length.to_bytes(8, "little") + b"{}")


def tensors_beyond_the_file(folder: Path) -> None:
    entry = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    write("model.safetensors", len(entry).to_bytes(8, "little") + entry)(folder)


# what -> (the change, what the one line says)
FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights are a pickle": (pickled_weights, "its weights are a pickle"),
    "a link out of the folder": (link_out, "model.safetensors: is a link out of the folder"),
    "a linked folder": (linked_folder, "deeper: is a link out of the folder"),
    "code of a model": (code, "is known by its own code only"),
    # transformers' CVE-2026-4372
    "code by name": (change("config.json", _attn_implementation_internal="someone/kernel"), "names code on the Hub"),
    # still read from a config.json in 5.22.2
    "code by its plain name": (
        change("config.json", attn_implementation="someone/kernel@main"),
        "names code on the Hub",
    ),
    "code by part": (change("config.json", attn_implementation={"": "someone/kernel"}), "names code on the Hub"),
    "code of experts": (change("config.json", experts_implementation="someone/kernel"), "names code on the Hub"),
    "code in a tower": (change("config.json", text_config={"_attn_implementation": "a/b"}), "names code on the Hub"),
    "trust in config.json": (change("config.json", trust_remote_code=True), "only your own command may"),
    "trust in an adapter": (adapter(tokenizer_kwargs={"trust_remote_code": True}), "only your own command may"),
    "trust in a quantization": (
        change("config.json", quantization_config={"quant_method": "gptq", "tokenizer": {"trust_remote_code": True}}),
        "only your own command may",
    ),
    "trust in another engine's file": (
        change("openvino_config.json", trust_remote_code=True),
        "only your own command may",
    ),
    "a million layers": (change("config.json", num_hidden_layers=10**6), "num_hidden_layers=1000000"),
    "negative layers": (change("config.json", num_hidden_layers=-1), "num_hidden_layers=-1"),
    "a list for a configuration": (write("config.json", "[]"), "config.json: must be a mapping"),
    "no JSON": (write("config.json", "{"), "config.json: is no JSON"),
    "deep JSON": (write("config.json", '{"a":' * 100_000), "config.json: (more than 100 levels deep|is no JSON)"),
    "nested JSON": (write("config.json", '{"a":' * 200 + "1" + "}" * 200), "config.json: more than 100 levels deep"),
    "a number of 5,000 digits": (write("config.json", '{"a": ' + "9" * 5000 + "}"), "config.json: is no JSON"),
    "a large JSON": (write("special_tokens_map.json", " " * (11 * 2**20)), "special_tokens_map.json: .* bytes, above"),
    "a shard outside": (shards(a="../../other.safetensors"), "leads out of the folder"),
    "a shard anywhere": (shards(a="/etc/passwd"), "leads out of the folder"),
    "a shard of pickles": (shards(a="pytorch_model.bin"), "is no safetensors file"),
    "a vocabulary outside": (change("tokenizer_config.json", vocab_file="/etc/passwd"), "leads out of the folder"),
    "a tokenizer outside": (change("tokenizer_config.json", tokenizer_file="../x.json"), "leads out of the folder"),
    "a long template": (change("tokenizer_config.json", chat_template="x" * 300_000), "chat_template has 300,000"),
    "a long template in a file": (write("chat_template.jinja", "x" * 300_000), "chat_template.jinja: above"),
    # peft's issue 3085: what is named there was imported
    "a module to import": (
        adapter(auto_mapping={"parent_library": "os", "base_model_class": "x"}),
        "names the module 'os'",
    ),
    "a module of megatron": (adapter(megatron_core="evil", megatron_config={"a": 1}), "names a module to import"),
    "an adapter of absurd rank": (adapter(r=10**9), "r=1000000000"),
    "endless generation": (change("generation_config.json", max_new_tokens=10**12), "max_new_tokens="),
    "beams without number": (change("generation_config.json", num_beams=10**6), "num_beams="),
    "a header of 2 ** 62 bytes": (header(2**62), "says that its header has"),
    "a header longer than the file": (header(10**6), "says that its header has"),
    "no header": (write("model.safetensors", b""), "says that its header has"),
    "code names of no file": (change("config.json", auto_map={"AutoConfig": "../x.py"}), "must be FILE.CLASS"),
}
# what the folder itself can't tell, but the libraries that read it refuse
REFUSED_BY_LIBRARIES = {
    "code of a tokenizer": (code_of_the_tokenizer, "contains custom code"),
    "tensors beyond the file": (tensors_beyond_the_file, "its weights can't be read"),
}


def make(kind: str, folder: Path) -> str:
    """Change the folder; what the one line must say."""
    do, said = (FOLDERS | REFUSED_BY_LIBRARIES)[kind]
    do(folder)
    return said
