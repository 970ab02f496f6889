"""peft's adapters on the encoder's heads: by default where they belong, trained, merged, saved and reloaded."""

import pytest
import torch
from models.grid import FAMILIES, LOGITS, padded, scores


peft = pytest.importorskip("peft")
# fp32: merged weights are one sum instead of two products, on logits of order 10
MERGED = {"atol": 5e-5, "rtol": 1e-5}
STEPS = 5
ENCODER = FAMILIES["encoder"]
BERT, MODERN = ENCODER.typical
TASKS = {
    "sequence": "SEQ_CLS",
    "token": "TOKEN_CLS",
    "question": "QUESTION_ANS",
    "text": "FEATURE_EXTRACTION",
    "choice": None,  # peft has no name for it
}
IN_THE_WEIGHTS = {
    "LoRA": lambda task: peft.LoraConfig(r=2, task_type=task),
    "DoRA": lambda task: peft.LoraConfig(r=2, use_dora=True, task_type=task),
    "IA3": lambda task: peft.IA3Config(task_type=task),
    "OFT": lambda task: peft.OFTConfig(oft_block_size=4, task_type=task),
}
BEFORE_THE_TEXT = {
    "prompt tuning": lambda task: peft.PromptTuningConfig(num_virtual_tokens=3, task_type=task),
    "prefix tuning": lambda task: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type=task),
}
CASES = [(m, h) for m in IN_THE_WEIGHTS for h in TASKS] + [
    (m, h) for m in BEFORE_THE_TEXT for h in ("sequence", "token")
]


CASES.remove(("prompt tuning", "token"))  # peft gives the virtual tokens no labels, and is refused


@pytest.mark.parametrize("name", [BERT, MODERN], ids=["BERT", "ModernBERT"])
@pytest.mark.parametrize(("method", "head"), CASES)
def test_trains_and_reloads(method, head, name, tmp_path):
    base = ENCODER.make(head, "hfx_tiled", **ENCODER.variants[name])
    batch = padded(ENCODER.documents(head))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    torch.manual_seed(0)
    model = peft.get_peft_model(base, (IN_THE_WEIGHTS | BEFORE_THE_TEXT)[method](TASKS[head])).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = scores(model(**inputs))
        again = ENCODER.make(head, "hfx_tiled", **ENCODER.variants[name])
        reloaded = peft.PeftModel.from_pretrained(again, tmp_path).eval()
        torch.testing.assert_close(scores(reloaded(**inputs)), expected, **LOGITS)
        if method in IN_THE_WEIGHTS:
            merged = scores(model.merge_and_unload()(**inputs))
            torch.testing.assert_close(merged, expected, **MERGED)
