"""What flash kernels are given of a padded batch: its real tokens in one row, and where its documents begin. By a stand-in
that reads these and nothing else, for no kernel is here."""

from itertools import pairwise

import pytest
import torch
from models.grid import FAMILIES, LENGTHS, LOGITS, assert_same, gradients, padded, scores
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_ext.ops.eager_attention import eager_attention


ENCODER = FAMILIES["encoder"]
VARIANTS = (
    "llama",
    "sliding window, reordered norm, biases",
    "ModernBERT: local and global, no first norm, mean, head on tokens",
)


def by_documents(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **kwargs):
    """Attention within cu_seq_lens alone: (1, H, N, D) -> (1, N, H, D)."""
    starts = kwargs["cu_seq_lens_q"].tolist()
    assert attention_mask is None
    assert starts == kwargs["cu_seq_lens_k"].tolist() == [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    assert kwargs["cu_seq_lens_q"].dtype == torch.int32
    assert kwargs["max_length_q"] == kwargs["max_length_k"] == max(LENGTHS)
    assert kwargs["position_ids"].tolist()[0] == [position for n in LENGTHS for position in range(n)]
    assert query.shape[2] == starts[-1]
    outputs = []
    for begin, end in pairwise(starts):
        distance = (torch.arange(end - begin)[:, None] - torch.arange(end - begin)).abs()
        mask = None if sliding_window is None else distance < sliding_window
        part = [states[:, :, begin:end] for states in (query, key, value)]
        outputs.append(eager_attention(*part, mask=mask, scaling=scaling)[0])
    return torch.cat(outputs, dim=2).transpose(1, 2), None


@pytest.fixture
def flash(monkeypatch):
    """Makes a model take the stand-in for flash attention."""

    def take(model):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", by_documents)
        model.config._attn_implementation_internal = "flash_attention_2"
        return model

    return take


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", VARIANTS)
def test_flash_attention(name, side, flash):
    batch = padded(ENCODER.documents(), side)
    real = batch["attention_mask"].bool()
    results = []
    for prepare in (lambda model: model, flash):
        model = prepare(ENCODER.make("text", "eager", **ENCODER.variants[name]).train())
        out = model(**batch, skip_logits=False)
        with torch.no_grad():
            logits = scores(model(**{key: batch[key] for key in ("input_ids", "attention_mask")}))[real]
        out.loss.backward()
        results.append((out.loss.detach(), logits, gradients(model)))
    (loss, logits, grads), expected = results[1], results[0]
    torch.testing.assert_close(loss, expected[0], **LOGITS)
    torch.testing.assert_close(logits, expected[1], **LOGITS)
    assert_same(grads, expected[2])


@torch.no_grad()
def test_nothing_is_computed_for_padding():
    """The feed-forward sees the real tokens alone; with padding_free=False, all."""
    model = ENCODER.make("body", "sdpa")
    seen = []
    model.layers[0].mlp.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[:2])))
    batch = padded([{"input_ids": d["input_ids"]} for d in ENCODER.documents()])
    out = model(**batch).last_hidden_state
    assert not out[batch["attention_mask"] == 0].any()
    model.config.padding_free = False
    model(**batch)
    model.config.padding_free = True
    model(batch["input_ids"])  # no mask, no padding
    model(batch["input_ids"], attention_mask=torch.ones_like(batch["attention_mask"]))
    whole = tuple(batch["input_ids"].shape)
    assert seen == [(1, sum(LENGTHS)), whole, whole, whole]
