"""Every probability acts in training and not in evaluation, under every head that has the place."""

import pytest
import torch
from models.grid import FAMILIES, padded, scores


PLACES = ("attention_dropout", "hidden_dropout", "embedding_dropout", "activation_dropout")
CASES = [(family, place, "token") for family in FAMILIES for place in PLACES]
CASES += [("encoder", "classifier_dropout", head) for head in ("sequence", "token", "choice")]


@pytest.mark.parametrize("mlp_type", ["plain", "gated"])
@pytest.mark.parametrize(("family", "place", "head"), CASES)
def test_changes_training_and_not_evaluation(family, place, head, mlp_type):
    entry = FAMILIES[family]
    batch = padded([{"input_ids": d["input_ids"]} for d in entry.documents(head)])
    plain = entry.make(head, "sdpa", mlp_type=mlp_type)
    model = entry.make(head, "sdpa", mlp_type=mlp_type, **{place: 0.5})
    assert torch.equal(scores(model(**batch)), scores(plain(**batch)))
    torch.manual_seed(0)
    first, second = (scores(model.train()(**batch)) for _ in range(2))
    assert (first - second).abs().max() > 0.1
    torch.manual_seed(0)
    assert torch.equal(scores(model(**batch)), first)
    assert torch.equal(scores(plain.train()(**batch)), scores(plain.eval()(**batch)))
