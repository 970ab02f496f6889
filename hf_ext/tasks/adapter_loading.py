"""The model that an adapter's folder stands for: the base as it was when the adapter was trained, with the adapter in it."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedModel

from hf_ext.hub.saved_adapter import saved_adapter
from hf_ext.tasks.adapter_section import heads_of, hold_in_few_bits
from hf_ext.tasks.model_section import body_under_new_head


def load_with_adapter(auto_class, folder: str | Path, base: str | Path, saved: dict, **loading) -> PreTrainedModel:
    """The base model itself, with the adapter in its layers and, where the adapter was trained so, in few bits.

    Args:
        auto_class: that loads it. folder: the adapter's. The head is the adapter's where it holds one, of the sizes in its
            own config.json, else the base's: a config.json alone says nothing, other tools leave one too.
        base: folder or name of the model beneath. saved: for `from_pretrained` alone: how files are read.
        loading: `dtype`, `attn_implementation`.

    Raises:
        ValueError: the folder holds no adapter, or one with a part of a head; the base is another one.
    """
    from peft import PeftConfig, PeftModel

    adapter = saved_adapter(folder)
    if adapter is None:
        raise ValueError(f"{folder}: holds no adapter (no adapter_config.json); name the folder of one")
    model = None
    if adapter.new_head and (Path(folder) / "config.json").is_file():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model = body_under_new_head(auto_class, config, base, saved, **loading)
        heads = heads_of(model)
        lacking = [name for name in heads if name not in PeftConfig.from_pretrained(folder).modules_to_save]
        if lacking and len(lacking) < len(heads):
            raise ValueError(f"{folder}: the adapter holds a part of its head, without {lacking[0]!r}; train it again")
        if lacking:
            model = None
    if model is None:
        model = auto_class.from_pretrained(base, **saved, **loading)
    if adapter.bits is not None:
        hold_in_few_bits(model, adapter.bits)
    return PeftModel.from_pretrained(model, folder, use_safetensors=True).get_base_model()
