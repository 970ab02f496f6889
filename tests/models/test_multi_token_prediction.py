"""Further tokens: the chain of blocks against its equation, and documents that don't see into each other."""

import torch
from models.decoder_grid import make_model, tokens


def by_hand(model, ids, depth):
    """Mean loss of the chain's link `depth` on one row, cut to the tokens that have a target: eq. 21 to 24."""
    states = model.model(ids).last_hidden_state
    for k in range(1, depth + 1):
        layer = model.mtp.layers[k - 1]
        states = states[:, :-1]  # the last token's next is not there
        embeddings = model.model.embed_tokens(ids[:, k:])
        joined = layer.eh_proj(torch.cat((layer.enorm(embeddings), layer.hnorm(states)), dim=-1))
        angles = model.model.rotary_emb["full_attention"](torch.arange(states.shape[1])[None])
        states = layer.post_norm(layer.mtp_block(joined, position_embeddings=angles))
    logits = model.lm_head(states[:, :-1])
    return torch.nn.functional.cross_entropy(logits[0], ids[0, depth + 1 :], reduction="sum")


def test_loss_is_the_papers():
    ids, T = tokens(B=1), 13
    model = make_model(num_nextn_predict_layers=2, mtp_loss_weight=0.5)
    plain = model.eval()(ids, labels=ids).loss
    expected = plain + 0.5 * sum(by_hand(model, ids, depth) / (T - 1) for depth in (1, 2)) / 2
    torch.testing.assert_close(model.train()(ids, labels=ids).loss, expected, atol=1e-5, rtol=1e-5)


def test_targets_stay_in_their_document():
    """A token whose further token belongs to the next document has no target: changing that document changes nothing."""
    model = make_model(num_nextn_predict_layers=2, tie_word_embeddings=True).train()
    ids = tokens(B=1)
    positions = torch.cat((torch.arange(6), torch.arange(7)))[None]
    losses = []
    for last in (5, 50):
        labels = ids.clone()
        labels[0, 6:] = -100
        changed = ids.clone()
        changed[0, 6:] = last
        losses.append(model(changed, labels=labels, position_ids=positions).loss)
    torch.testing.assert_close(losses[0], losses[1])


def test_generation_does_not_need_them():
    with_chain = make_model(num_nextn_predict_layers=1)
    plain = make_model()
    plain.load_state_dict({k: v for k, v in with_chain.state_dict().items() if not k.startswith("mtp.")})
    ids = tokens()
    assert torch.equal(with_chain(ids).logits, plain(ids).logits)
