"""Adapters of every kind: put where they belong by default, trained, merged, saved and reloaded."""

import pytest
import torch
from models.decoder_grid import VARIANTS, attentions_for, make_model, tokens
from models.grid import FAMILIES, padded


peft = pytest.importorskip("peft")
# fp32: merged weights are one sum instead of two products, on logits of order 10
TOLERANCE = {"atol": 5e-5, "rtol": 1e-5}
STEPS = 5

# method -> its configuration, small
IN_THE_WEIGHTS = {
    "LoRA": lambda: peft.LoraConfig(r=2),
    "LoRA, all linear": lambda: peft.LoraConfig(r=2, target_modules="all-linear"),
    "LoRA, PiSSA": lambda: peft.LoraConfig(r=2, init_lora_weights="pissa"),
    "DoRA": lambda: peft.LoraConfig(r=2, use_dora=True),
    "rsLoRA": lambda: peft.LoraConfig(r=2, use_rslora=True),
    "AdaLoRA": lambda: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=20, tinit=1, tfinal=5),
    "IA3": lambda: peft.IA3Config(),
    "VeRA": lambda: peft.VeraConfig(r=4),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4),
    "LoHa": lambda: peft.LoHaConfig(r=2),
    "LoKr": lambda: peft.LoKrConfig(r=2),
    "HRA": lambda: peft.HRAConfig(r=2),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=20),
    "LN tuning": lambda: peft.LNTuningConfig(),
}
BEFORE_THE_TEXT = {
    "prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "P-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16),
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
}
# the short form, of wirings that adapters meet differently; `make test-full` runs all
SHORT = (
    "ALiBi, norm after the embeddings",
    "multi-query, post-norm, LayerNorm, GELU, biases",
    "latent, queries too, interleaved",
    "shared experts, sigmoid scores, balance bias, first layer dense",
)
# learnt keys have no position and belong to no frequencies; and peft makes them for heads that a latent cache hasn't
WITHOUT_PREFIX = ("dynamic", "longrope", "latent")


def over(methods: dict, without: tuple[str, ...] = ()):
    cases = [(method, name) for method in methods for name in VARIANTS if not (method in without and is_without(name))]
    marks = [[] if name in SHORT else [pytest.mark.full] for _, name in cases]
    return pytest.mark.parametrize(
        ("method", "name"), [pytest.param(*case, marks=mark) for case, mark in zip(cases, marks, strict=True)]
    )


def is_without(name: str) -> bool:
    return name.startswith(WITHOUT_PREFIX)


def base(name: str):
    return make_model(attentions_for(VARIANTS[name])[-1], **VARIANTS[name])


def trained(method: str, name: str):
    """The adapted model after a few steps, in eval mode; its loss has fallen."""
    torch.manual_seed(0)
    config = (IN_THE_WEIGHTS | BEFORE_THE_TEXT)[method]()
    config.task_type = "CAUSAL_LM"
    model = peft.get_peft_model(base(name), config).train()
    assert any(p.requires_grad for p in model.parameters())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for step in range(STEPS):
        loss = model(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        optimizer.step()
        if method == "AdaLoRA":
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return model.eval()


def assert_reloads(model, name: str, folder) -> torch.Tensor:
    """The logits, which a base and what was saved give again."""
    ids = tokens()
    expected = model(input_ids=ids).logits
    model.save_pretrained(folder)
    reloaded = peft.PeftModel.from_pretrained(base(name), folder).eval()
    torch.testing.assert_close(reloaded(input_ids=ids).logits, expected, **TOLERANCE)
    assert (expected[:, -ids.shape[1] :] - base(name)(ids).logits).abs().max() > 1e-2  # it does something
    return expected


@over(IN_THE_WEIGHTS)
def test_in_the_weights(method, name, tmp_path):
    model = trained(method, name)
    with torch.no_grad():
        expected = assert_reloads(model, name, tmp_path)
        torch.testing.assert_close(model.merge_and_unload()(tokens()).logits, expected, **TOLERANCE)


@over(BEFORE_THE_TEXT, without=("prefix tuning",))
def test_before_the_text(method, name, tmp_path):
    model = trained(method, name)
    with torch.no_grad():
        assert_reloads(model, name, tmp_path)
        ids = tokens(T=3)  # up to the length that rotary rules were trained for: virtual tokens can't go through again
        for _ in range(3):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(dim=-1)], dim=1)
        generated = model.generate(input_ids=tokens(T=3), max_new_tokens=3, do_sample=False, eos_token_id=None)
        assert torch.equal(generated, ids)


@torch.no_grad()
def test_learnt_keys_at_changing_frequencies_are_refused():
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    for rule in ("dynamic", "longrope"):
        model = peft.get_peft_model(base(rule), config).eval()
        with pytest.raises(ValueError, match=f"past_key_values: 3 tokens were cached at other frequencies .*'{rule}'"):
            model(input_ids=tokens())


def targets(config, **options) -> set[str]:
    model = peft.get_peft_model(make_model(**options), config)
    return {name.rsplit(".", 1)[-1] for name in model.targeted_module_names}


def test_default_targets():
    """As peft chooses for Llama, by the names that there are."""
    latent = VARIANTS["latent, queries too, interleaved"]
    for config in (peft.LoraConfig, peft.VeraConfig, peft.LoHaConfig):
        assert targets(config()) == {"q_proj", "v_proj"}
        assert targets(config(), **latent) == {"q_b_proj", "kv_b_proj"}
    assert targets(peft.IA3Config()) == {"k_proj", "v_proj", "down_proj"}
    sandwich = {
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    }
    assert targets(peft.LNTuningConfig(), block_type="sandwich") == sandwich


def test_every_method_that_peft_knows_for_llama():
    """A method added to peft is found too; its table may hold more for us, never less."""
    from peft.utils import constants

    tables = {n: t for n, t in vars(constants).items() if n.startswith("TRANSFORMERS_MODELS_TO_") and "llama" in t}
    assert len(tables) > 20
    assert [name for name, table in tables.items() if not table.get("hfx_decoder")] == []


@pytest.mark.parametrize(("head", "task"), [("sequence", "SEQ_CLS"), ("token", "TOKEN_CLS")])
def test_prefixes_under_other_heads(head, task):
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type=task)
    model = peft.get_peft_model(FAMILIES["decoder"].make(head), config).train()
    model(**padded(FAMILIES["decoder"].documents(head))).loss.backward()
    assert model.prompt_encoder.default.embedding.weight.grad.abs().sum() > 0
