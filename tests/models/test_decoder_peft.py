"""Adapters: found by default, trained, merged, saved and reloaded."""

import pytest
import torch
from models.decoder_grid import VARIANTS, make_model, tokens


peft = pytest.importorskip("peft")
# fp32: merged weights are one sum instead of two products
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.mark.parametrize(
    "name", ["llama", "ALiBi, norm after the embeddings", "sliding window, reordered norm, biases"]
)
def test_lora_trains_merges_and_reloads(name, tmp_path):
    model = peft.get_peft_model(make_model(**VARIANTS[name]), peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    assert {n.split(".")[-4] for n, p in model.named_parameters() if p.requires_grad} <= {
        "self_attn",
        "q_proj",
        "v_proj",
    }
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(tokens(), labels=tokens()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    expected = model(tokens()).logits
    assert (expected - make_model(**VARIANTS[name])(tokens()).logits).abs().max() > 1e-2
    model.save_pretrained(tmp_path)
    reloaded = peft.PeftModel.from_pretrained(make_model(**VARIANTS[name]), tmp_path).eval()
    torch.testing.assert_close(reloaded(tokens()).logits, expected, **TOLERANCE)
    torch.testing.assert_close(model.merge_and_unload()(tokens()).logits, expected, **TOLERANCE)
