import pickle

import pytest
import torch
from objectives.packed_text import PAD, VOCAB_SIZE, equal_batches, make_documents, pack, split_row
from torch.utils.data import DataLoader

from hf_ext.objectives import CausalCollator, PrefixLMCollator


def _collator(**settings) -> PrefixLMCollator:
    return PrefixLMCollator(**{"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, **settings})


@pytest.mark.parametrize("seed", range(20))
def test_each_document_is_cut_once_and_its_rest_is_predicted(seed):
    documents = make_documents(seed)
    rows = [pack(documents[:4], num_padding=3), pack(documents[4:])]
    batch = _collator(seed=seed)(rows)
    causal = CausalCollator(VOCAB_SIZE, PAD)(rows)
    assert set(batch) == {*causal, "prefix_mask"}
    assert torch.equal(batch["input_ids"], causal["input_ids"])
    assert torch.equal(batch["position_ids"], causal["position_ids"])
    assert batch["prefix_mask"].dtype == torch.bool
    for row in range(2):
        places = split_row(torch.arange(batch["labels"].shape[1]), batch["position_ids"][row])
        for place in places:
            tokens, inside = batch["input_ids"][row, place], batch["prefix_mask"][row, place]
            if (tokens == PAD).all():
                assert not inside.any()
                continue
            cut = int(inside.sum())
            assert inside[:cut].all()  # a beginning, nothing else
            assert 1 <= cut < len(place) or (cut == 0 and len(place) == 1)
            expected = [-100] * max(cut, 1) + tokens[max(cut, 1) :].tolist()
            assert batch["labels"][row, place].tolist() == expected


def test_cuts_are_uniform():
    rows = [{"input_ids": list(range(50, 61))}] * 2000
    cuts = _collator(seed=0)(rows)["prefix_mask"].sum(-1)
    counts = torch.bincount(cuts, minlength=11)
    assert counts[0] == 0
    # 200 of 2,000 expected for each of 1..10; five standard deviations are 67
    assert (counts[1:] - 200).abs().max() < 67


def test_given_prefixes_are_taken_and_those_of_other_rows_drawn():
    rows = [
        {**pack([[50, 51, 52], [60, 61]], num_padding=2), "prefix_length": [2, 0]},
        {"input_ids": [70, 71, 72, 73], "prefix_length": 3},
        {"input_ids": [80, 81]},
    ]
    batch = _collator()(rows)
    assert batch["prefix_mask"].long().tolist() == [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0],
    ]
    assert batch["labels"].tolist() == [
        [-100, -100, 52, -100, 61, -100, -100],
        [-100, -100, -100, 73, -100, -100, -100],
        [-100, 81, -100, -100, -100, -100, -100],
    ]


def test_labels_that_packing_left_out_stay_left_out():
    row = {"input_ids": [50, 51, 52, 53], "labels": [-100, -100, -100, 53], "prefix_length": 1}
    assert _collator()([row])["labels"].tolist() == [[-100, -100, -100, 53]]


def test_a_seed_gives_the_same_sequence_and_the_global_generator_another():
    rows = [pack(make_documents(0))]
    one, other = _collator(seed=3), _collator(seed=3)
    first, second = one(rows), one(rows)
    assert equal_batches(first, other(rows))
    assert equal_batches(second, other(rows))
    assert not equal_batches(first, second)
    torch.manual_seed(5)
    unseeded = _collator()(rows)
    torch.manual_seed(5)
    assert equal_batches(unseeded, _collator()(rows))


def test_workers_draw_their_own_and_the_same_again():
    rows = [{"input_ids": list(range(50, 250))}] * 8
    collator = _collator(seed=1)
    first = collator(rows[:2])
    assert equal_batches(first, pickle.loads(pickle.dumps(_collator(seed=1)))(rows[:2]))
    batches = [list(DataLoader(rows, batch_size=2, num_workers=2, collate_fn=collator)) for _ in range(2)]
    for one, other in zip(*batches, strict=True):
        assert equal_batches(one, other)
    assert not equal_batches(batches[0][0], batches[0][1])  # of two workers


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [50, 51], "prefix_length": 2}, "prefix_length: 2 in row 0 for a document of 2 tokens"),
        ({"input_ids": [50, 51], "prefix_length": -1}, "prefix_length: -1 in row 0"),
        ({**pack([[50, 51], [52]]), "prefix_length": 1}, "prefix_length: row 0 gives 1 for 2 documents"),
        ({"input_ids": [50, 51, 52], "position_ids": [0, 1, 3]}, "position_ids: 3 in row 0 at position 2"),
        ({"input_ids": [50]}, "labels: all of the 1 rows' labels are -100"),
        ({"input_ids": [50, VOCAB_SIZE]}, f"input_ids: {VOCAB_SIZE} in row 0 at position 1"),
        ({"input_ids": [50.0, 51.0]}, "input_ids: row 0 holds torch.float32"),
    ],
)
def test_bad_rows_are_refused_in_one_line(row, message):
    with pytest.raises(ValueError, match=message) as caught:
        _collator()([row])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"seed": -1}, {"seed": 2**32}, {"pad_token_id": VOCAB_SIZE}, {"vocab_size": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        _collator(**settings)
