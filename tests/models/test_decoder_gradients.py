"""The causal language model's loss and gradients against someone else's; its labels."""

import pytest
import torch
from models.decoder_grid import VARIANTS, make_model, tokens
from models.grid import LOSS, assert_same, gradients


def batch():
    """Rows of 13, 9, 6 and 11 tokens, padded on the right; labels without the padding."""
    ids, lengths = tokens(B=4, T=13), torch.tensor([13, 9, 6, 11])
    mask = (torch.arange(13) < lengths[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, 3:5] = -100
    return ids * mask, mask, labels


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
