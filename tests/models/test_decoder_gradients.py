"""Gradients: whole batch = accumulated = packed = checkpointed, and the same under every attention."""

import pytest
import torch
from models.decoder_grid import VARIANTS, attentions_for, make_model, tokens


# fp32: losses of order 5, gradients of order 0.1 to 1, summed in another order
LOSS = {"atol": 1e-5, "rtol": 1e-5}
GRADIENT = {"atol": 1e-5, "rtol": 1e-4}

over_variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def gradients(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], **GRADIENT, msg=lambda m, n=name: f"{n}: {m}")


def batch():
    """Rows of 13, 9, 6 and 11 tokens, padded on the right; labels without the padding."""
    ids, lengths = tokens(B=4, T=13), torch.tensor([13, 9, 6, 11])
    mask = (torch.arange(13) < lengths[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, 3:5] = -100
    return ids * mask, mask, labels


@over_variants
def test_whole_equals_accumulated_equals_packed_equals_checkpointed(options):
    model = make_model(**options).train()
    ids, mask, labels = batch()
    scored = int((labels[:, 1:] != -100).sum())

    loss = model(ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    expected = gradients(model)
    assert max(g.abs().max() for g in expected.values()) > 0.05  # not a flat place where all agree

    total = 0.0
    for row in range(4):
        part = model(
            ids[row : row + 1],
            attention_mask=mask[row : row + 1],
            labels=labels[row : row + 1],
            num_items_in_batch=scored,
        ).loss
        part.backward()
        total += part.item()
    torch.testing.assert_close(total, loss.item(), **LOSS)
    assert_same(gradients(model), expected)

    lengths = mask.sum(1).tolist()
    packed_labels = labels.clone()
    packed_labels[:, 0] = -100  # no document predicts the first token of the next
    packed = {
        "input_ids": torch.cat([ids[r, :n] for r, n in enumerate(lengths)])[None],
        "labels": torch.cat([packed_labels[r, :n] for r, n in enumerate(lengths)])[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
    }
    packed_loss = model(**packed).loss
    torch.testing.assert_close(packed_loss, loss, **LOSS)
    packed_loss.backward()
    assert_same(gradients(model), expected)

    model.gradient_checkpointing_enable()
    model(ids, attention_mask=mask, labels=labels).loss.backward()
    assert_same(gradients(model), expected)


@over_variants
def test_every_attention_gives_the_same_loss_and_gradients(options):
    ids, mask, labels = batch()
    for padding in ("right", "left"):
        if padding == "left":
            ids, mask, labels = (t.flip(-1) for t in (ids, mask, labels))
        results = {}
        for attention in attentions_for(options):
            model = make_model(attention, **options).train()
            out = model(ids, attention_mask=mask, labels=labels, skip_logits=False)
            out.loss.backward()
            results[attention] = (out.logits[mask.bool()].detach(), gradients(model))
        logits, expected = results["eager"]
        for attention in results:
            torch.testing.assert_close(results[attention][0], logits, **LOSS)
            assert_same(results[attention][1], expected)


@pytest.mark.parametrize("extra", [{}, {"label_smoothing": 0.1}, {"z_loss_weight": 1e-2}], ids=str)
def test_chunked_loss_equals_the_loss_of_whole_logits(extra):
    options = VARIANTS["sandwich, GeGLU, QK-norm by projection, softcap, tied"]
    ids, mask, labels = batch()
    results = []
    for skip_logits in (True, False):
        model = make_model(**options).train()
        out = model(ids, attention_mask=mask, labels=labels, skip_logits=skip_logits, **extra)
        assert (out.logits is None) == skip_logits
        out.loss.backward()
        results.append((out.loss.detach(), gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0], **LOSS)
    assert_same(results[0][1], results[1][1])


def test_loss_is_transformers_own():
    """Against transformers' loss function on the same logits."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    model = make_model().eval()
    ids, mask, labels = batch()
    for num_items in (None, 57):
        out = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=num_items)
        expected = ForCausalLMLoss(out.logits, labels, vocab_size=97, num_items_in_batch=num_items)
        torch.testing.assert_close(out.loss, expected, **LOSS)
        kept = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=num_items, logits_to_keep=2)
        torch.testing.assert_close(kept.loss, expected, **LOSS)
        torch.testing.assert_close(kept.logits, out.logits[:, -2:], **LOSS)


def test_custom_loss_function_is_used():
    model = make_model().train()
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.square().mean()
    out = model(tokens(), labels=tokens())
    torch.testing.assert_close(out.loss, out.logits.square().mean())


def test_llama_with_the_same_weights():
    """Someone else's implementation: the default decoder is a Llama, weight by weight."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = make_model(num_key_value_heads=2, rope_parameters=VARIANTS["llama3"]["rope_parameters"]).train()
    config = ours.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            **{k: getattr(config, k) for k in LlamaConfig().to_dict() if hasattr(config, k) and k != "model_type"},
            rms_norm_eps=config.norm_eps,
        )
    ).train()
    theirs.load_state_dict(ours.state_dict())
    ids, mask, labels = batch()
    results = []
    for model in (ours, theirs):
        loss = model(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        results.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0], **LOSS)
    assert_same(results[0][1], results[1][1])


@pytest.mark.parametrize("training", [True, False])
def test_labels_shifted_already_stand_in_for_the_others(training):
    model, ids = make_model().train(training), tokens()
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    expected = model(ids, labels=ids).loss
    torch.testing.assert_close(model(ids, shift_labels=shifted).loss, expected, rtol=0, atol=0)
    # as transformers' sequence parallelism passes them: both
    torch.testing.assert_close(model(ids, labels=shifted, shift_labels=shifted).loss, expected, rtol=0, atol=0)
