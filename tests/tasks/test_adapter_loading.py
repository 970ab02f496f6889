"""An adapter over its base again: the head is the adapter's where it holds one, else the base's own."""

import pytest
import torch
from models.decoder_grid import make_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_ext.models import HfxEncoderConfig, HfxEncoderForSequenceClassification
from hf_ext.tasks.adapter_loading import load_with_adapter
from hf_ext.tasks.adapter_section import AdapterArguments, add_adapter


peft = pytest.importorskip("peft")
IDS = torch.tensor([[3, 5, 7, 9]])


def save(base, adapted, folder):
    """Base and adapter, with a config.json beside the adapter; what both compute together."""
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        scores = adapted.eval()(IDS).logits
    adapted.save_pretrained(folder / "adapter")
    base.config.save_pretrained(folder / "adapter")
    return scores


@pytest.mark.parametrize("modules", [None, ["embed_tokens"], ["lm_head"]])
def test_a_language_models_head(modules, tmp_path):
    base = make_model(tie_word_embeddings=False)
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", modules_to_save=modules)
    scores = save(base, peft.get_peft_model(base, config), tmp_path)
    again = load_with_adapter(AutoModelForCausalLM, tmp_path / "adapter", tmp_path / "base", {})
    torch.testing.assert_close(again.eval()(IDS).logits, scores)


def test_a_classifiers_head_is_there_whole_or_refused(tmp_path):
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    base = HfxEncoderForSequenceClassification(HfxEncoderConfig(**sizes))
    base.save_pretrained(tmp_path / "base")
    other = HfxEncoderForSequenceClassification(HfxEncoderConfig(**sizes, num_labels=5))
    other.model.load_state_dict(base.model.state_dict())
    whole = add_adapter(other, AdapterArguments(method="lora"), AutoModelForSequenceClassification)
    scores = save(other, whole, tmp_path)
    folders = tmp_path / "adapter", tmp_path / "base"
    again = load_with_adapter(AutoModelForSequenceClassification, *folders, {})
    torch.testing.assert_close(again.eval()(IDS).logits, scores)

    part = peft.get_peft_model(base, peft.LoraConfig(r=2, task_type="SEQ_CLS"))  # peft's own: without head.dense
    save(base, part, tmp_path)
    with pytest.raises(ValueError, match="holds a part of its head, without 'head'; train it again"):
        load_with_adapter(AutoModelForSequenceClassification, *folders, {})
