import pytest
import torch
from objectives.packed_text import EOS, PAD, VOCAB_SIZE, equal_batches, make_documents, pack, split_row

from hf_ext.objectives import CausalCollator, FillInTheMiddleCollator


PREFIX, MIDDLE, SUFFIX = 20, 21, 22
IDS = {"prefix_token_id": PREFIX, "middle_token_id": MIDDLE, "suffix_token_id": SUFFIX, "eos_token_id": EOS}
# five standard deviations of a share among n draws
SIGMAS = 5


def _collator(**settings) -> FillInTheMiddleCollator:
    return FillInTheMiddleCollator(**{"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, **IDS, **settings})


def _restore(tokens: list[int]) -> list[int]:
    """The document that was reordered, without its end token and what it gave up. SPM's prefix stands before its middle."""
    assert tokens[0] == PREFIX
    assert tokens[-1] == EOS
    suffix_at, middle_at = tokens.index(SUFFIX), tokens.index(MIDDLE)
    prefix, suffix, middle = tokens[1:suffix_at], tokens[suffix_at + 1 : middle_at], tokens[middle_at + 1 : -1]
    return prefix + middle + suffix


@pytest.mark.parametrize("spm_rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_every_document_comes_back(seed, spm_rate):
    documents = make_documents(seed)
    rows = [pack(documents[:5], num_padding=4), pack(documents[5:])]
    batch = _collator(seed=seed, fim_rate=1.0, spm_rate=spm_rate)(rows)
    causal = CausalCollator(VOCAB_SIZE, PAD)(rows)
    assert set(batch) == set(causal)
    assert torch.equal(batch["position_ids"], causal["position_ids"])
    for row, originals in enumerate((documents[:5], documents[5:])):
        segments = split_row(batch["input_ids"][row], batch["position_ids"][row])
        labels = batch["labels"][row].split([len(segment) for segment in segments])
        for original, segment, label in zip(originals, segments, labels, strict=False):
            assert len(segment) == len(original)
            assert label.tolist() == [-100, *segment[1:]]
            if len(original) <= 4:
                assert segment == original
                continue
            assert _restore(segment) == original[: len(original) - 4]
            if spm_rate == 1.0:
                assert segment[1] == SUFFIX
        for segment, label in list(zip(segments, labels, strict=True))[len(originals) :]:
            assert set(segment) == {PAD}
            assert set(label.tolist()) == {-100}


def test_a_document_with_its_end_token_loses_three_and_one_without_four():
    for document, rest in (([50, 51, 52, 53, 54, EOS], [50, 51]), ([50, 51, 52, 53, 54, 55], [50, 51])):
        for seed in range(10):
            batch = _collator(seed=seed, fim_rate=1.0)([{"input_ids": document}])
            assert _restore(batch["input_ids"][0].tolist()) == rest


def test_rates_and_cuts():
    n = 4000
    rows = [{"input_ids": [*range(50, 60), EOS]}] * n  # 7 tokens to cut: 8 places
    batch = _collator(seed=0, fim_rate=0.7, spm_rate=0.4)(rows)
    taken = batch["input_ids"][batch["input_ids"][:, 0] == PREFIX]
    assert abs(len(taken) - 0.7 * n) < SIGMAS * (0.21 * n) ** 0.5
    # a prefix is empty if either cut falls on the first of 8 places: PSM then begins as SPM does
    swapped = 0.4 + 0.6 * (1 - (7 / 8) ** 2)
    count = int((taken[:, 1] == SUFFIX).sum())
    assert abs(count - swapped * len(taken)) < SIGMAS * (swapped * (1 - swapped) * len(taken)) ** 0.5
    no_suffix = 1 - (7 / 8) ** 2  # either cut falls on the last place
    count = int(((taken[:, :-1] == SUFFIX) & (taken[:, 1:] == MIDDLE)).sum())
    assert abs(count - no_suffix * len(taken)) < SIGMAS * (no_suffix * (1 - no_suffix) * len(taken)) ** 0.5
    left_alone = batch["input_ids"][batch["input_ids"][:, 0] != PREFIX]
    assert (left_alone == torch.tensor(rows[0]["input_ids"])).all()


def test_no_rate_is_the_causal_objective_and_labels_go_with_their_tokens():
    rows = [pack(make_documents(0), num_padding=3)]
    assert equal_batches(_collator(fim_rate=0.0)(rows), CausalCollator(VOCAB_SIZE, PAD)(rows))
    row = {"input_ids": [*range(50, 60), EOS], "labels": [-100, -100, -100, *range(53, 60), EOS]}
    for seed in range(20):
        batch = _collator(seed=seed, fim_rate=1.0)([row])
        unlabelled = batch["input_ids"][batch["labels"] == -100]
        # the sentinel at the beginning, and those that the row left out; but not the document's first token
        assert sorted(unlabelled.tolist()) == [PREFIX, 51, 52]


def test_a_seed_gives_the_same_sequence():
    rows = [pack(make_documents(0))]
    one, other = _collator(seed=3), _collator(seed=3)
    first, second = one(rows), one(rows)
    assert equal_batches(first, other(rows))
    assert equal_batches(second, other(rows))
    assert not equal_batches(first, second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fim_rate": 1.5}, "fim_rate: 1.5 must be from 0 to 1"),
        ({"spm_rate": -0.1}, "spm_rate: -0.1"),
        ({"suffix_token_id": PREFIX}, "suffix_token_id, eos_token_id: .* has an id twice"),
        ({"suffix_token_id": VOCAB_SIZE}, f"suffix_token_id: {VOCAB_SIZE} is outside"),
        ({"pad_token_id": PREFIX}, "pad_token_id: 20 is a sentinel too"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        _collator(**settings)
    assert "\n" not in str(caught.value)


def test_a_sentinel_in_the_text_is_refused():
    with pytest.raises(ValueError, match=f"input_ids: {MIDDLE} in row 1 at position 2 is among prefix_token_id"):
        _collator()([{"input_ids": [50, 51]}, {"input_ids": [50, 51, MIDDLE]}])
