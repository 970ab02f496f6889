"""Whether a folder holds a model, and what is said where it holds something else."""

import json
from pathlib import Path


def check_holds_model(folder: str | Path, called: str | None = None) -> None:
    """Raises ValueError where there is no config.json, of an adapter alone with what can be done about it.

    Args:
        called: what the message names it by; default its path.
    """
    folder = Path(folder)
    called = str(folder) if called is None else called
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and not any(folder.glob("model*.safetensors")):  # a model may have one beside it
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise ValueError(
            f"{called}: holds an adapter, not the model that it is for ({base!r}); save both as one, with peft's "
            "merge_and_unload() and save_pretrained(), and name that folder"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"{called}: holds no model (no config.json); name the folder of a saved one")
