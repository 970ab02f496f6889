"""`attn_implementation="kernels-community/…"`: every family by a kernel that is loaded as one from the Hub is, from a folder
that LOCAL_KERNELS puts in its place. Of the real kernels none can run here."""

import pytest
import torch
from models.flash_attn_in_torch import write_repository
from models.grid import (
    ALL_FAMILIES,
    LOGITS,
    alone,
    asked,
    assert_same,
    gradients,
    mask_of,
    packed,
    padded,
    real,
    tokens,
)
from transformers import modeling_flash_attention_utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_ext.hub.kernel_repository import write_kernel_repository


KERNEL, OWN = "kernels-community/flash-attn2", "hf-ext/flash-kernels"
WINDOWED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
CASES = {
    "decoder, grouped heads": ("decoder", {"num_key_value_heads": 2}),
    "decoder, windows, softcap": ("decoder", {**WINDOWED, "attn_logit_softcapping": 2.0}),
    "encoder, windows": ("encoder", WINDOWED),
}


def put(repository, name, monkeypatch):
    """Lets `name` be the kernel of that folder, and nothing be left of it."""
    monkeypatch.setenv("LOCAL_KERNELS", f"{name}={repository}")
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    for interface in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        monkeypatch.setitem(interface._global_mapping, name, None)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("hub") / "flash-attn2")


@pytest.mark.parametrize(("family", "options"), CASES.values(), ids=CASES)
def test_every_way_is_eagers_number(family, options, repository, monkeypatch):
    put(repository, KERNEL, monkeypatch)
    entry = ALL_FAMILIES[family]
    reference, model = (entry.make("text", attention, **options) for attention in ("eager", KERNEL))
    assert model.config._attn_implementation == KERNEL
    head, documents = entry.heads["text"], [asked(d) for d in entry.documents()]
    with torch.no_grad():
        expected = torch.cat([real(reference(**alone(d)), head) for d in documents])
        for side in ("right", "left"):
            batch = padded(documents, side)
            torch.testing.assert_close(real(model(**batch), head, mask_of(batch)), expected, **entry.logits)
        torch.testing.assert_close(real(model(**packed(documents)), head), expected, **entry.logits)
        model.config.padding_free = False
        torch.testing.assert_close(real(model(**batch), head, mask_of(batch)), expected, **entry.logits)
        model.config.padding_free = True

    batch, found = padded(entry.documents()), []
    for trained in (reference, model):
        trained.train()(**batch).loss.backward()
        found.append(gradients(trained))
    assert_same(found[1], found[0])


def test_from_one_text_to_another(repository, monkeypatch):
    """Without padding. transformers would cut the source's mask, and knows the documents of one side only."""
    put(repository, KERNEL, monkeypatch)
    entry = ALL_FAMILIES["encoder-decoder"]
    reference, model = (entry.make("text", attention, encoder_layers=2) for attention in ("eager", KERNEL))
    for document in entry.documents():
        results = [each(**alone(document)).logits for each in (model, reference)]
        torch.testing.assert_close(*results, **entry.logits)
    documents = [asked(d) for d in entry.documents()]
    for batch in (padded(documents), packed(documents)):
        with pytest.raises(
            ValueError, match=r"attn_implementation='kernels-community/flash-attn2' can't .* in "
        ) as caught:
            model(**batch)
        assert "\n" not in str(caught.value)


def test_generation_goes_on_from_its_cache(repository, monkeypatch):
    put(repository, KERNEL, monkeypatch)
    options = {**WINDOWED, "attn_logit_softcapping": 2.0, "num_key_value_heads": 2}
    batch = padded([{"input_ids": tokens(1, n, seed=n)[0]} for n in (9, 5)], "left")
    texts = [
        ALL_FAMILIES["decoder"].make("text", attention, **options).generate(**batch, max_new_tokens=6, do_sample=False)
        for attention in ("eager", KERNEL)
    ]
    assert texts[0].tolist() == texts[1].tolist()


@pytest.mark.parametrize("name", [KERNEL, "someone/attention"])
@pytest.mark.parametrize("options", [{"attention_sinks": True}, {"position_embedding_type": "alibi"}], ids=str)
def test_what_no_flash_function_computes_is_refused(name, options, repository, monkeypatch):
    """Whatever the kernel's name: transformers would call it all the same."""
    put(repository, name, monkeypatch)
    with pytest.raises(ValueError, match=f"attn_implementation='{name}' does not support") as caught:
        ALL_FAMILIES["decoder"].make("text", name, **options)
    assert "\n" not in str(caught.value)


def test_a_name_by_which_no_mask_would_be_right_is_refused(repository, monkeypatch):
    put(repository, "someone/attention", monkeypatch)
    with pytest.raises(
        ValueError, match="attn_implementation='someone/attention': has the functions of flash"
    ) as caught:
        ALL_FAMILIES["decoder"].make("text", "someone/attention")
    assert "\n" not in str(caught.value)


def test_our_own_kernels_as_an_attention(tmp_path, monkeypatch):
    """Under Triton's interpreter where there is no CUDA device."""
    pytest.importorskip("triton", reason="triton is not installed")
    put(write_kernel_repository(tmp_path / "own", OWN), OWN, monkeypatch)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    entry, batch = ALL_FAMILIES["decoder"], padded(ALL_FAMILIES["decoder"].documents(lengths=(6, 9)), "left")
    batch = {name: value.to(device) for name, value in batch.items()}
    options = {**WINDOWED, "num_key_value_heads": 2, "attn_logit_softcapping": 2.0}
    found, logits = [], []
    for attention in ("eager", OWN):
        model = entry.make("text", attention, **options).to(device).train()
        out = model(**batch, skip_logits=False)
        out.loss.backward()
        logits.append(out.logits[batch["attention_mask"].bool()])
        found.append(gradients(model))
    torch.testing.assert_close(*logits, **LOGITS)
    assert_same(found[1], found[0])
