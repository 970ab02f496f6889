"""Fused projections: the same numbers, names, gradients and files; and what can't be fused is refused or left as it was."""

import pytest
import torch
from models.grid import ALL_FAMILIES, gradients, padded, tokens
from torch import nn

from hf_ext.layers.joint_projections import are_joint, joint_product
from hf_ext.models.fused_projections import groups_of_same_input
from hf_ext.ops import matrix_product


# fp32: the same sums, which another block size may add up in another order, through two or three layers of order 10
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}
TWO_STACKS = {"atol": 5e-5, "rtol": 1e-5}  # five layers, as everywhere in this grid

CASES = [
    pytest.param(family, name, id=f"{family}: {name}")
    for family, entry in ALL_FAMILIES.items()
    for name in entry.variants
]
# the groups of one layer: q k v, gate up; the second family's cross-attention has k v of its own
TYPICAL = [
    ("decoder", "llama"),
    ("encoder", "BERT: segments, learned positions, post-norm, biases"),
    ("encoder-decoder", "rope"),
]


def make(family: str, name: str = "llama", head: str = "text"):
    return ALL_FAMILIES[family].make(head, "eager", **ALL_FAMILIES[family].variants[name])


def batch_of(family: str) -> dict:
    return padded(ALL_FAMILIES[family].documents("text", (13, 7)), "left")


def products(function) -> int:
    """Matrix products that `function` asks for."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::linear")


@pytest.mark.parametrize(("family", "name"), CASES)
@torch.no_grad()
def test_same_logits_and_state(family, name):
    model, batch = make(family, name), batch_of(family)
    batch.pop("labels")
    expected = model(**batch).logits
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = model.fuse_projections()
    assert fused == sum(are_joint(layers) for _, layers in groups_of_same_input(model))
    assert fused or "bias" in name
    tolerance = TWO_STACKS if family == "encoder-decoder" else TOLERANCE
    torch.testing.assert_close(model(**batch).logits, expected, **tolerance)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.unfuse_projections()
    assert not any(are_joint(layers) for _, layers in groups_of_same_input(model))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("family", "name"), TYPICAL)
@torch.no_grad()
def test_fewer_products_are_computed(family, name):
    model, batch = make(family, name), batch_of(family)
    batch.pop("labels")
    before = products(lambda: model(**batch))
    groups = [len(layers) for _, layers in groups_of_same_input(model)]
    assert model.fuse_projections() == len(groups)
    assert products(lambda: model(**batch)) == before - sum(groups) + len(groups)


@pytest.mark.parametrize(("family", "name"), TYPICAL)
def test_saved_as_it_was_and_trained_as_it_was(family, name, tmp_path):
    model, batch = make(family, name), batch_of(family)
    model.save_pretrained(tmp_path / "plain")
    model(**batch).loss.backward()
    expected = gradients(model)
    model.fuse_projections()
    model.save_pretrained(tmp_path / "fused")
    files = [(tmp_path / side / "model.safetensors").read_bytes() for side in ("plain", "fused")]
    assert files[0] == files[1]
    model(**batch).loss.backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)  # each is multiplied by itself

    with torch.no_grad():
        for parameter in model.parameters():  # a step of an optimizer: in place, and so in the common storage
            parameter.add_(0.01)
        batch.pop("labels")
        after = model(**batch).logits
        model.unfuse_projections()
        tolerance = TWO_STACKS if family == "encoder-decoder" else TOLERANCE
        torch.testing.assert_close(after, model(**batch).logits, **tolerance)

    reloaded = type(model).from_pretrained(tmp_path / "fused", attn_implementation="eager")
    assert reloaded.fuse_projections() > 0
    state = reloaded.state_dict()
    reloaded.load_state_dict({key: value + 1 for key, value in state.items()})
    assert all(are_joint(layers) for _, layers in groups_of_same_input(reloaded))


@torch.no_grad()
def test_another_dtype_is_laid_out_anew():
    model, ids = make("decoder"), tokens()
    model.fuse_projections()
    model.to(torch.float64)
    assert all(are_joint(layers) for _, layers in groups_of_same_input(model))
    fused = model(ids).logits
    model.unfuse_projections()
    torch.testing.assert_close(fused, model(ids).logits, atol=1e-12, rtol=1e-12)
    assert not any(are_joint(layers) for _, layers in groups_of_same_input(model.to(torch.float32)))


@torch.no_grad()
def test_what_was_replaced_is_not_passed_by():
    """A weight put in another's place, a hook, a layer that is no matrix any more: each is asked itself."""
    model, ids = make("decoder"), tokens()
    model.fuse_projections()
    attention = model.model.layers[0].self_attn
    attention.k_proj.weight.data = attention.k_proj.weight.data * 2
    replaced = model(ids).logits
    model.unfuse_projections()
    torch.testing.assert_close(replaced, model(ids).logits, **TOLERANCE)

    model.fuse_projections()
    calls = []
    handle = attention.v_proj.register_forward_hook(lambda *_: calls.append(1))
    model(ids)
    handle.remove()
    assert calls
    attention.q_proj = nn.Sequential(attention.q_proj, nn.ReLU())
    assert (model(ids).logits - replaced).abs().max() > 0.1


def test_neighbours_by_chance_are_not_joined():
    """Addresses that follow one another in two storages."""
    whole = torch.randn(8, 4)
    layers = [nn.Linear(4, 4, bias=False) for _ in range(2)]
    layers[0].weight.data = torch.frombuffer(memoryview(whole.numpy()).cast("B")[:64], dtype=torch.float32).view(4, 4)
    layers[1].weight.data = whole[4:]
    assert layers[0].weight.data_ptr() + 64 == layers[1].weight.data_ptr()
    assert not are_joint(layers)


def test_adapters_go_on_fused_models():
    peft = pytest.importorskip("peft")
    model, ids = make("decoder").requires_grad_(False), tokens()
    model.fuse_projections()
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "up_proj"])
    )
    with torch.no_grad():
        beside = adapted(ids).logits
        assert (beside - make("decoder")(ids).logits).abs().max() > 0.1
        torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, beside, atol=5e-5, rtol=1e-5)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared as text
        peft.get_peft_model(make("decoder"), peft.LoraConfig(r=2)).base_model.model.fuse_projections()
    assert "fuse_projections: model.layers.0.self_attn.q_proj is a peft." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_quantized_weights_are_refused_before_anything_moves():
    quanto = pytest.importorskip("optimum.quanto")
    model = make("decoder")
    quanto.quantize(model, weights=quanto.qint8, include="*layers.1.mlp*")
    quanto.freeze(model)
    with pytest.raises(ValueError, match=r"fuse_projections: model\.layers\.1\.mlp\.gate_proj is a optimum\.quanto"):
        model.fuse_projections()
    assert not any(are_joint(layers) for _, layers in groups_of_same_input(model))
    # the other way round
    model, ids = make("decoder"), tokens()
    model.fuse_projections()
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()


@torch.no_grad()
def test_biases_of_some_are_passed_over():
    options = ALL_FAMILIES["decoder"].variants["latent, queries too, interleaved"] | {
        "attention_bias": True,
        "q_lora_rank": None,
    }
    model = ALL_FAMILIES["decoder"].make("text", "eager", **options)
    assert model.fuse_projections() == 2  # gate and up of two layers; the query has no bias, the latents have one


@torch.no_grad()
def test_generation_is_the_same():
    model, ids = make("decoder", "grouped, QK-norm by head"), tokens(T=6)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options)
    model.fuse_projections()
    assert torch.equal(model.generate(ids, **options), expected)


def test_joint_product_is_its_parts(monkeypatch):
    monkeypatch.setattr(matrix_product, "MIN_MULTIPLICATIONS", 0)  # oneDNN's too
    model, x = make("decoder"), torch.randn(2, 3, 32)
    model.fuse_projections()
    _, layers = next(iter(groups_of_same_input(model)))
    with torch.no_grad():
        for got, layer in zip(joint_product(x, layers), layers, strict=True):
            torch.testing.assert_close(got, layer(x), atol=1e-6, rtol=1e-5)
