"""The lines of a card by which a model is used: filled in, and with an adapter's base beneath it.

That they run is seen in tests/recipes, on what each task's run leaves.
"""

import json

import pytest

from hf_ext.hub.saved_adapter import SavedAdapter, saved_adapter
from hf_ext.hub.usage import USAGE, usage_code


def code(task: str, adapter: SavedAdapter | None = None) -> str:
    return usage_code(USAGE[task], "mine", adapter, prompt='a {context} "b"', context="c {folder}")


@pytest.mark.parametrize("task", USAGE)
@pytest.mark.parametrize(
    "adapter",
    [None, *(SavedAdapter("lora", "me/base", new_head, bits) for new_head in (False, True) for bits in (None, "int4"))],
)
def test_it_is_python_with_everything_filled_in(task, adapter):
    text = code(task, adapter)
    compile(text, task, "exec")
    assert json.dumps('a {context} "b"') in text
    assert text.count('"mine"') >= 1
    assert text.count('from_pretrained(model, "mine")') == text.count("import PeftModel") == (adapter is not None)
    assert text.count('"me/base"') == (adapter is not None)
    assert ("ignore_mismatched_sizes" in text) == (adapter is not None and adapter.new_head)
    in_few_bits = adapter is not None and adapter.bits is not None
    assert ("weights=qint4" in text) == in_few_bits
    assert ("merge_and_unload" in text) == (adapter is not None and not in_few_bits)


def test_what_a_folder_holds(tmp_path):
    assert saved_adapter(tmp_path) is None
    base = tmp_path / "a" / "base"
    base.mkdir(parents=True)
    saved = {"peft_type": "LORA", "base_model_name_or_path": str(base), "modules_to_save": ["classifier"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    assert saved_adapter(tmp_path) == SavedAdapter("lora", "base", True)
    saved |= {"base_model_name_or_path": "me/base", "modules_to_save": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    assert saved_adapter(tmp_path) == SavedAdapter("lora", "me/base")
    (tmp_path / "recipe.yaml").write_text("adapter: {method: lora, quantize: int8}")
    assert saved_adapter(tmp_path) == SavedAdapter("lora", "me/base", bits="int8")
    (tmp_path / "recipe.yaml").write_text("adapter: {method: lora, quantize: 'x); import os'}")
    with pytest.raises(ValueError, match=r"adapter.quantize='x\); import os': must be one of int8, int4"):
        saved_adapter(tmp_path)
