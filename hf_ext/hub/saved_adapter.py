"""What an adapter that was saved alone says of itself."""

import json
from dataclasses import dataclass
from pathlib import Path

from hf_ext.training.recipe_yaml import read_yaml


# in which the weights beneath an adapter can be held
BITS = ("int8", "int4")


@dataclass(frozen=True)
class SavedAdapter:
    """What peft's adapter_config.json says, and the recipe beside it.

    Attributes:
        kind: "lora", …. base: the model that it was trained beside: a name on the Hub, or the last part of a folder's.
        new_head: whether it holds a head that the base doesn't have, whose sizes are in the adapter's own config.json.
        bits: "int8" or "int4" where the base's blocks were held in few bits; it was fitted to them.
    """

    kind: str
    base: str
    new_head: bool = False
    bits: str | None = None


def saved_adapter(folder: str | Path) -> SavedAdapter | None:
    """The adapter that a folder holds instead of a model, or None.

    Raises:
        ValueError: a recipe beside it that is none, or asks for bits that there aren't.
    """
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    base = saved.get("base_model_name_or_path") or "base"
    recipe = path.with_name("recipe.yaml")
    section = read_yaml(recipe).get("adapter") if recipe.is_file() else None
    bits = section.get("quantize") if isinstance(section, dict) else None
    if bits not in (None, *BITS):
        raise ValueError(f"{recipe}: adapter.quantize={bits!r}: must be one of {', '.join(BITS)}")
    return SavedAdapter(
        saved.get("peft_type", "adapter").lower(),
        Path(base).name if Path(base).exists() else base,
        bool(saved.get("modules_to_save")),
        bits,
    )
