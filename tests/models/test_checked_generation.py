"""What `generate` can't do exactly is refused before the first token, and nothing else is."""

import pytest
import torch
from models.decoder_grid import VARIANTS, make_model, tokens


GREEDY = {"do_sample": False, "eos_token_id": None}
RULES = ("dynamic", "longrope")  # 8 tokens in the grid, then other frequencies
DRAFTING = {
    "assistant": lambda: {"assistant_model": make_model()},
    "lookup": lambda: {"prompt_lookup_num_tokens": 3},
    "early exit": lambda: {"assistant_early_exit": 1},
}


def refused(call) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared as text
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("drafting", DRAFTING)
@pytest.mark.parametrize("rule", RULES)
def test_drafted_tokens_at_other_frequencies(rule, drafting):
    """Without the refusal `dynamic` gives another text than without drafts."""
    model, ids = make_model(**VARIANTS[rule]), tokens(B=1, T=5)
    message = f"assisted generation: rope_type='{rule}' changes its frequencies between 5 and 17 tokens"
    assert message in refused(lambda: model.generate(ids, max_new_tokens=12, **DRAFTING[drafting](), **GREEDY))
    # up to the trained length nothing changes, and with longrope nothing after it either
    prompts = [(ids, 3)] + ([(tokens(B=1, T=9), 6)] if rule == "longrope" else [])
    for prompt, new_tokens in prompts:
        expected = model.generate(prompt, max_new_tokens=new_tokens, use_cache=False, **GREEDY)
        got = model.generate(prompt, max_new_tokens=new_tokens, **DRAFTING[drafting](), **GREEDY)
        assert torch.equal(got, expected)


def test_padding_does_not_count_for_drafts():
    model = make_model(**VARIANTS["longrope"])
    ids = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens(B=1, T=5)], dim=1)
    options = {"attention_mask": (ids != 0).long(), "prompt_lookup_num_tokens": 2, "max_new_tokens": 5, **GREEDY}
    assert "between 5 and 10 tokens" in refused(lambda: model.generate(ids, **options))


@pytest.mark.parametrize("rule", RULES)
def test_chunks_at_other_frequencies(rule):
    model, ids = make_model(**VARIANTS[rule]), tokens(T=13)
    options = {"max_new_tokens": 4, **GREEDY}
    message = f"prefill_chunk_size=4: rope_type='{rule}' changes its frequencies within the prompt of 13 tokens"
    assert message in refused(lambda: model.generate(ids, prefill_chunk_size=4, **options))
    # a prompt in one chunk; one within the trained length; and padding, of which the row has more than it seems
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), ids[:, :8]], dim=1)
    for prompt, chunk in ((ids, 13), (ids[:, :8], 4), (padded, 4)):
        inputs = {"input_ids": prompt, "attention_mask": (prompt != 0).long()}
        expected = model.generate(**inputs, use_cache=False, **options)
        assert torch.equal(model.generate(**inputs, prefill_chunk_size=chunk, **options), expected)


def test_rows_of_padding_alone():
    """A chunk may be padding alone, a prompt may not."""
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[1] = 0
    for chunked in ({}, {"prefill_chunk_size": 4}):
        message = refused(
            lambda chunked=chunked: make_model().generate(tokens(), attention_mask=mask, max_new_tokens=2, **chunked)
        )
        assert message == "attention_mask: row 1 has no token; drop the row or unmask at least one token"


@pytest.mark.parametrize("name", ["llama", "two further tokens predicted"])
def test_further_tokens_are_not_for_drafts(name):
    message = refused(lambda: make_model(**VARIANTS[name]).generate(tokens(B=1), max_new_tokens=2, use_mtp=True))
    assert "use_mtp=True: the blocks that predict further tokens serve training only" in message
