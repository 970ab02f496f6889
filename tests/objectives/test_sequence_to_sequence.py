import pytest
import torch
from objectives.packed_text import EOS, PAD, VOCAB_SIZE, make_documents
from objectives.paired_text import START, read_packed, read_plain
from tokenizers import Tokenizer, models
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from hf_ext.objectives import SequenceToSequenceCollator


def _collate(rows, **settings):
    ids = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "decoder_start_token_id": START}
    return SequenceToSequenceCollator(**{**ids, **settings})(rows)


def _pairs(seed: int) -> list[dict]:
    sources, targets = make_documents(seed), make_documents(seed + 1)
    return [{"input_ids": source, "labels": target} for source, target in zip(sources, targets, strict=True)]


def _pack(pairs: list[dict]) -> dict:
    row = {"input_ids": [], "position_ids": [], "labels": [], "decoder_position_ids": []}
    for pair in pairs:
        for tokens, positions in (("input_ids", "position_ids"), ("labels", "decoder_position_ids")):
            row[tokens] += pair[tokens]
            row[positions] += range(len(pair[tokens]))
    return row


@pytest.mark.parametrize("seed", range(5))
def test_pairs_come_back(seed):
    pairs = _pairs(seed)
    expected = [(pair["input_ids"], pair["labels"]) for pair in pairs]
    assert read_plain(_collate(pairs)) == expected
    packed = read_packed(_collate([_pack(pairs[:3]), _pack(pairs[3:])]))
    assert packed[0] + packed[1] == expected


def test_as_transformers_pads():
    names = [f"t{i}" for i in range(VOCAB_SIZE)]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[5]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=names[PAD])
    rows = [{**pair, "attention_mask": [1] * len(pair["input_ids"])} for pair in _pairs(0)]
    theirs = DataCollatorForSeq2Seq(tokenizer)(rows)
    ours = _collate(_pairs(0))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_labels_that_are_not_predicted():
    pair = {"input_ids": [50, EOS], "labels": [-100, 60, EOS]}
    assert _collate([pair])["labels"].tolist() == [[-100, 60, EOS]]
    batch = _collate([_pack([pair, pair])])
    assert batch["labels"].tolist() == [[-100, 60, EOS] * 2]
    assert batch["decoder_input_ids"].tolist() == [[START, PAD, 60] * 2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [50]}, r"labels: row 0 has only \['input_ids'\]"),
        ({"input_ids": [50], "labels": []}, "labels: row 0 is empty"),
        ({"input_ids": [50], "labels": [VOCAB_SIZE]}, "labels: 400 in row 0 at position 0"),
        ({"input_ids": [50], "labels": [-1]}, "labels: -1 in row 0"),
        ({"input_ids": [-100], "labels": [50]}, "input_ids: -100 in row 0"),
        ({"input_ids": [50], "labels": [-100]}, "labels: all of the 1 rows' labels are -100"),
        ({"input_ids": [50], "position_ids": [0], "labels": [51]}, "row 0 has one of them alone"),
        (
            {**_pack(_pairs(0)), "labels": [50], "decoder_position_ids": [0]},
            "row 0 has 1 documents, its position_ids 10",
        ),
        (
            {"input_ids": [50, 51], "position_ids": [0, 1], "labels": [50, 51], "decoder_position_ids": [0, 2]},
            "decoder_position_ids: 2 in row 0",
        ),
        ({"input_ids": [50, PAD], "attention_mask": [1, 0], "labels": [51]}, "attention_mask: row 0 has padding"),
    ],
)
def test_bad_rows_are_refused_in_one_line(row, message):
    with pytest.raises(ValueError, match=message) as caught:
        _collate([row])
    assert "\n" not in str(caught.value)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="decoder_start_token_id: 400"):
        _collate([], decoder_start_token_id=VOCAB_SIZE)
