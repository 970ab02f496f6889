"""Adapters of every kind: put where they belong by default, trained, merged, saved and reloaded."""

import pytest
import torch
from models.encoder_decoder_grid import VARIANTS, attentions_for, make_model, tokens


peft = pytest.importorskip("peft")
# fp32: merged weights are one sum instead of two products, on logits of order 10
TOLERANCE = {"atol": 5e-5, "rtol": 1e-5}
STEPS = 5

IN_THE_WEIGHTS = {
    "LoRA": lambda: peft.LoraConfig(r=2),
    "LoRA, all linear": lambda: peft.LoraConfig(r=2, target_modules="all-linear"),
    "DoRA": lambda: peft.LoraConfig(r=2, use_dora=True),
    "IA3": lambda: peft.IA3Config(),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4),
    "LoHa": lambda: peft.LoHaConfig(r=2),
    "LN tuning": lambda: peft.LNTuningConfig(),
}
BEFORE_THE_TEXT = {
    "prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "P-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16),
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
}
NAMES = (
    "rope",
    "2017: post-norm, sinusoidal",
    "latent, sliding and global, sinks, gated",
    "two vocabularies",
    "one vocabulary, embeddings apart, QK-norm by projection, sandwich",
)


def base(name: str):
    return make_model(attentions_for(VARIANTS[name])[-1], **VARIANTS[name])


def inputs() -> dict:
    mask = (torch.arange(13) < torch.tensor([[13], [9]])).long()
    return {"input_ids": tokens() * mask, "attention_mask": mask}


def trained(config, name: str):
    """The adapted model after a few steps, in eval mode; its loss has fallen."""
    torch.manual_seed(0)
    config.task_type = "SEQ_2_SEQ_LM"
    model = peft.get_peft_model(base(name), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(STEPS):
        loss = model(**inputs(), labels=tokens(T=6, seed=1)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return model.eval()


def logits(model) -> torch.Tensor:
    return model(**inputs(), decoder_input_ids=tokens(T=6, seed=1)).logits


def assert_reloads(model, name: str, folder) -> torch.Tensor:
    expected = logits(model)
    model.save_pretrained(folder)
    reloaded = peft.PeftModel.from_pretrained(base(name), folder).eval()
    torch.testing.assert_close(logits(reloaded), expected, **TOLERANCE)
    assert (expected - logits(base(name))).abs().max() > 1e-2  # it does something
    return expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", IN_THE_WEIGHTS)
def test_in_the_weights(method, name, tmp_path):
    model = trained(IN_THE_WEIGHTS[method](), name)
    with torch.no_grad():
        expected = assert_reloads(model, name, tmp_path)
        torch.testing.assert_close(logits(model.merge_and_unload()), expected, **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_lora_adapts_every_attention(name):
    config = peft.LoraConfig(r=2, task_type="SEQ_2_SEQ_LM")
    adapted = {n for n, m in peft.get_peft_model(base(name), config).named_modules() if hasattr(m, "lora_A")}
    for part in ("encoder.layers.0.self_attn", "decoder.layers.1.self_attn", "decoder.layers.1.cross_attn"):
        assert sum(part in module for module in adapted) == 2, part  # queries and values


@pytest.mark.parametrize("method", BEFORE_THE_TEXT)
def test_before_the_text(method, tmp_path):
    model = trained(BEFORE_THE_TEXT[method](), "rope")
    with torch.no_grad():
        assert_reloads(model, "rope", tmp_path)
        text = model.generate(**inputs(), max_new_tokens=5, do_sample=False, eos_token_id=None)
        for t in range(1, 6):
            step = model(**inputs(), decoder_input_ids=text[:, :t]).logits[:, -1].argmax(-1)
            assert torch.equal(step, text[:, t])
