import pickle

import pytest
import torch
from objectives.packed_text import (
    BOS,
    EOS,
    MASK,
    NUM_SPECIAL,
    PAD,
    VOCAB_SIZE,
    equal_batches,
    make_document,
    make_documents,
    pack,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from hf_ext.data import train_tokenizer
from hf_ext.objectives import MaskedCollator


SPECIAL = list(range(NUM_SPECIAL))
# A share among n independent draws stays within five standard deviations: about 1 in 2 million misses.
SIGMAS = 5


def _collator(**settings) -> MaskedCollator:
    ids = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "mask_token_id": MASK, "special_token_ids": SPECIAL}
    return MaskedCollator(**{**ids, **settings})


def _is_share(count, num_draws, probability) -> bool:
    return abs(int(count) - num_draws * probability) < SIGMAS * (num_draws * probability * (1 - probability)) ** 0.5


def _ordinary_rows(num_rows: int, length: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(NUM_SPECIAL, VOCAB_SIZE, (num_rows, length), generator=generator)
    return [{"input_ids": row} for row in rows]


def _wordpiece(words_and_pieces: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words_and_pieces]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{f"{n}_token": token for n, token in names.items()})


def _word_settings(tokenizer) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "special_token_ids": tokenizer.all_special_ids,
        "tokenizer": tokenizer,
    }


@pytest.mark.parametrize("unit", ["token", "span"])
@pytest.mark.parametrize("seed", range(10))
def test_the_text_comes_back_and_special_tokens_are_untouched(seed, unit):
    documents = [[BOS, *document] for document in make_documents(seed)]
    packed = [pack(documents[:5], num_padding=4), pack(documents[5:])]
    plain = [{"input_ids": document, "labels": document} for document in documents]
    for rows, columns in ((packed, {"position_ids"}), (plain, {"attention_mask"})):
        batch = _collator(seed=seed, unit=unit, mask_probability=0.4)(rows)
        assert set(batch) == {"input_ids", "labels", *columns}
        chosen = batch["labels"] != -100
        restored = torch.where(chosen, batch["labels"], batch["input_ids"])
        assert chosen.any()
        for index, row in enumerate(rows):
            tokens = torch.tensor(row["input_ids"])
            assert torch.equal(restored[index, : len(tokens)], tokens)
            assert (restored[index, len(tokens) :] == PAD).all()
        assert (batch["labels"][chosen] >= NUM_SPECIAL).all()
        replaced = batch["input_ids"][chosen]
        assert ((replaced == MASK) | (replaced >= NUM_SPECIAL)).all()  # no special token is drawn
        if columns == {"attention_mask"}:
            lengths = batch["attention_mask"].sum(-1).tolist()
            assert lengths == [len(document) for document in documents]


@pytest.mark.parametrize("unit", ["token", "span"])
def test_shares(unit):
    batch = _collator(seed=0, unit=unit)(_ordinary_rows(400, 100))
    chosen = batch["labels"] != -100
    num_chosen, num_tokens = int(chosen.sum()), chosen.numel()
    if unit == "token":
        assert _is_share(num_chosen, num_tokens, 0.15)
    else:
        assert (chosen.sum(-1) == 15).all()  # the budget, exactly
    inputs, labels = batch["input_ids"][chosen], batch["labels"][chosen]
    # all tokens of a span share one draw: a span of 3.8 tokens in the mean counts as one, up to 10 of them
    slack = 1 if unit == "token" else 2.5
    for count, share in (
        ((inputs == MASK).sum(), 0.8),
        ((inputs == labels).sum(), 0.1 + 0.1 / (VOCAB_SIZE - NUM_SPECIAL)),
        (((inputs != MASK) & (inputs != labels)).sum(), 0.1 * (1 - 1 / (VOCAB_SIZE - NUM_SPECIAL))),
    ):
        assert abs(int(count) - share * num_chosen) < slack * SIGMAS * (share * (1 - share) * num_chosen) ** 0.5


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_shares_at_their_ends(mask_share, random_share):
    batch = _collator(seed=0, mask_share=mask_share, random_share=random_share)(_ordinary_rows(50, 100))
    chosen = batch["labels"] != -100
    inputs, labels = batch["input_ids"][chosen], batch["labels"][chosen]
    assert (inputs == MASK).all() == (mask_share == 1)
    assert (inputs == labels).all() == (mask_share == random_share)
    assert (
        batch["input_ids"][~chosen] == torch.stack([r["input_ids"] for r in _ordinary_rows(50, 100)])[~chosen]
    ).all()


def test_as_often_as_transformers_masks():
    tokenizer = _wordpiece([f"w{i}" for i in range(200)])
    rows = [{"input_ids": [2, *torch.randint(5, 205, (60,)).tolist(), 3]} for _ in range(300)]
    theirs = DataCollatorForLanguageModeling(tokenizer, seed=0)([dict(row) for row in rows])
    ids = {name: value for name, value in _word_settings(tokenizer).items() if name != "tokenizer"}
    ours = MaskedCollator(**ids, seed=0)(rows)
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"])

    def counts(batch):
        chosen = batch["labels"] != -100
        kept = (batch["input_ids"] == batch["labels"]).sum()
        return torch.stack([chosen.sum(), (batch["input_ids"][chosen] == tokenizer.mask_token_id).sum(), kept]).double()

    # the difference of two Poisson-like counts has the variance of their sum
    difference = counts(ours) - counts(theirs)
    assert (difference.abs() < SIGMAS * (counts(ours) + counts(theirs)).sqrt()).all()


@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_are_chosen_whole(unit):
    tokenizer = _wordpiece(["un", "##believ", "##able", "a", "story", "##line"])
    text = ["unbelievable", "a", "storyline", "a", "story", "unable"] * 30
    encoding = tokenizer(" ".join(text), return_offsets_mapping=True)
    row = {"input_ids": [2, *encoding["input_ids"], 3]}
    borders = torch.tensor([-1, *encoding.word_ids(), -1])
    for seed in range(10):
        batch = MaskedCollator(**_word_settings(tokenizer), unit=unit, seed=seed, mask_probability=0.3)([row])
        chosen = batch["labels"][0] != -100
        assert not chosen[[0, -1]].any()
        for word in range(len(text)):
            assert len(set(chosen[borders == word].tolist())) == 1
    # transformers finds the same words, from the offsets
    theirs = DataCollatorForLanguageModeling(
        tokenizer, whole_word_mask=True, mask_replace_prob=1, random_replace_prob=0
    )
    offsets = torch.tensor([[(0, 0), *encoding["offset_mapping"], (0, 0)]])
    word_ids, _ = theirs._calc_word_ids_and_prob_mask(offsets.numpy(), (borders < 0).long()[None].numpy())
    ours = MaskedCollator(**_word_settings(tokenizer), unit="word")._words(torch.tensor(row["input_ids"]))
    inner = slice(1, -1)
    assert torch.equal(ours[inner].cumsum(0), torch.from_numpy(word_ids[0]).long()[inner])


@pytest.mark.parametrize("unit", ["word", "span"])
def test_no_word_or_span_reaches_over_a_border(unit):
    tokenizer = _wordpiece(["a", "##b"])
    a, b, separator = tokenizer.convert_tokens_to_ids(["a", "##b", "[SEP]"])
    # a piece of a cut document begins inside of a word; a special token ends one too
    row = pack([[a, b, separator, b], [b, b]])
    together = [0, 0]
    for seed in range(60):
        batch = MaskedCollator(**_word_settings(tokenizer), unit=unit, seed=seed, mask_probability=0.5)([row])
        chosen = (batch["labels"][0] != -100).tolist()
        assert chosen[0] == chosen[1]
        assert chosen[4] == chosen[5]
        assert not chosen[2]
        together[0] += chosen[1] == chosen[3]
        together[1] += chosen[3] == chosen[4]
    assert all(0 < count < 60 for count in together)


def test_byte_level_words_begin_after_white_space(real_data):
    text = (real_data / "wikitext2" / "valid.txt").read_text(encoding="utf-8")[:60_000]
    tokenizer = train_tokenizer([text], vocab_size=800, model_max_length=512)
    tokens = torch.tensor(tokenizer(text)["input_ids"])
    settings = {"vocab_size": 800, "pad_token_id": 1, "mask_token_id": 0, "special_token_ids": [0, 1]}
    words = MaskedCollator(**settings, unit="word", tokenizer=tokenizer)._words
    assert words.kind == "byte-level"
    begins = words(tokens)
    begins[0] = True
    pieces = tokens.split(begins.nonzero().flatten().diff(append=torch.tensor([len(tokens)])).tolist())
    for piece in pieces[:3000]:
        word = tokenizer.decode(piece)
        assert len(word.split()) <= 1, word  # no word holds white space within
    assert sum(len(piece) > 1 for piece in pieces) > 100


def test_sentencepiece_words_and_a_vocabulary_without_words():
    class Vocabulary:
        all_special_tokens, all_special_ids = [], []

        def __init__(self, *tokens):
            self.tokens = tokens

        def get_vocab(self):
            return {token: index for index, token in enumerate(self.tokens)}

    settings = {"vocab_size": 6, "pad_token_id": 5, "mask_token_id": 4, "special_token_ids": [], "unit": "word"}
    words = MaskedCollator(**settings, tokenizer=Vocabulary("▁a", "b", "▁", "c"))._words
    assert words(torch.tensor([0, 1, 2, 3, 1, 0])).tolist() == [True, False, True, True, False, True]
    with pytest.raises(ValueError, match="tokenizer: no token of its vocabulary begins with '##'"):
        MaskedCollator(**settings, tokenizer=Vocabulary("a", "b", " ", "c"))


def test_span_lengths_are_those_of_the_paper():
    lengths = _collator(seed=0, unit="span")._draw_span_lengths(50_000).double()
    weights = torch.tensor([0.2 * 0.8 ** (n - 1) for n in range(1, 11)], dtype=torch.float64)
    weights /= weights.sum()
    mean = float((weights * torch.arange(1, 11)).sum())
    assert round(mean, 1) == 3.8  # as the paper gives it
    counts = torch.bincount(lengths.long(), minlength=11)
    assert counts[0] == 0
    assert all(_is_share(counts[n], 50_000, float(weights[n - 1])) for n in range(1, 11))


def test_spans_of_a_long_document():
    generator = torch.Generator().manual_seed(0)
    row = {"input_ids": torch.randint(NUM_SPECIAL, VOCAB_SIZE, (50_000,), generator=generator)}
    batch = _collator(seed=0, unit="span")([row])
    chosen = batch["labels"][0] != -100
    assert int(chosen.sum()) == 7500
    runs = torch.diff(chosen.long(), prepend=torch.tensor([0]), append=torch.tensor([0]))
    begins, ends = (runs == 1).nonzero().flatten(), (runs == -1).nonzero().flatten()
    lengths = ends - begins
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        assert len(set((batch["input_ids"][0, begin:end] == MASK).tolist())) == 1  # a span's tokens share one fate
    assert lengths.max() <= 10
    # 7,500 tokens in spans of 3.797 with a standard deviation of 2.6: 5 sigma of the mean are 0.3
    assert abs(float(lengths.double().mean()) - 3.797) < 0.3


@pytest.mark.parametrize("unit", ["token", "span"])
def test_something_is_always_hidden(unit):
    for seed in range(50):
        batch = _collator(seed=seed, unit=unit, mask_probability=0.01)([{"input_ids": [BOS, 50, 51, EOS]}])
        assert (batch["labels"] != -100).sum() == 1


def test_what_is_hidden_changes_and_a_seed_brings_it_back():
    rows = [{"input_ids": make_document(200, torch.Generator().manual_seed(0))}] * 8
    for unit in ("token", "span"):
        one, other = _collator(seed=3, unit=unit), pickle.loads(pickle.dumps(_collator(seed=3, unit=unit)))
        first, second = one(rows), one(rows)
        assert equal_batches(first, other(rows))
        assert equal_batches(second, other(rows))
        assert not equal_batches(first, second)
    batches = [list(DataLoader(rows, batch_size=4, num_workers=2, collate_fn=_collator(seed=1))) for _ in range(2)]
    assert all(equal_batches(a, b) for a, b in zip(*batches, strict=True))
    assert not equal_batches(*batches[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_probability": 1.2}, "mask_probability: 1.2 must be from 0 to 1"),
        ({"mask_probability": 0}, "mask_probability: 0 hides nothing"),
        ({"mask_share": 0.8, "random_share": 0.3}, "mask_share, random_share: 0.8 \\+ 0.3"),
        ({"unit": "words"}, "unit: 'words' is not one of token, word, span"),
        ({"unit": "word"}, "tokenizer: None, but unit word"),
        ({"unit": "span", "mask_probability": 0.6}, "mask_probability: 0.6 is above 0.5"),
        ({"mask_token_id": VOCAB_SIZE}, "mask_token_id: 400 is outside"),
        ({"special_token_ids": [-1]}, "special_token_ids: -1 is outside"),
        ({"special_token_ids": range(VOCAB_SIZE)}, "special_token_ids: all of"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        _collator(**settings)
    assert "\n" not in str(caught.value)


def test_bad_rows_are_refused():
    with pytest.raises(ValueError, match="input_ids: all tokens of the batch are special"):
        _collator()([{"input_ids": [BOS, EOS]}])
    with pytest.raises(ValueError, match="tokenizer: given, but unit token"):
        _collator(tokenizer=_wordpiece(["a", "##b"]))
