import numpy as np
import pytest
import torch

from hf_ext.objectives import CausalCollator


def _collate(rows, **settings):
    return CausalCollator(**{"vocab_size": 10, "pad_token_id": 1, **settings})(rows)


PACKED = {"input_ids": [5, 6, 0, 7, 0, 1], "position_ids": [0, 1, 2, 0, 1, 0], "labels": [-100, 6, 0, -100, 0, -100]}


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_packed_rows_are_stacked_unchanged(convert):
    row = {name: convert(values) for name, values in PACKED.items()}
    batch = _collate([row, row])
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    for name, values in batch.items():
        assert values.dtype == torch.long
        assert values.tolist() == [PACKED[name]] * 2


def test_labels_are_made_from_the_segments():
    row = {name: PACKED[name] for name in ("input_ids", "position_ids")}
    assert _collate([row])["labels"].tolist() == [PACKED["labels"]]


def test_a_plain_row_is_one_document():
    batch = _collate([{"input_ids": [5, 6, 7], "text": "left out", "attention_mask": [1, 1, 1]}])
    assert batch["position_ids"].tolist() == [[0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 6, 7]]


def test_an_end_token_that_is_also_the_padding_stays_a_label():
    row = {"input_ids": [5, 6, 0, 7, 0, 0, 0], "position_ids": [0, 1, 2, 0, 1, 0, 1]}
    assert _collate([row], pad_token_id=0)["labels"].tolist() == [[-100, 6, 0, -100, 0, -100, -100]]


def test_shorter_rows_are_padded_on_the_right():
    batch = _collate([{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 0]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 0, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, 8], [-100, 0, -100, -100]]


def test_given_labels_stay():
    assert _collate([{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}])["labels"].tolist() == [[-100, -100, 7]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows: none given"),
        ([{"input_ids": [5, 6]}, {"input_ids": []}], "input_ids: row 1 is empty"),
        ([{"input_ids": [5, 6]}, {"input_ids": [5, 6, 10]}], r"input_ids: 10 in row 1 at position 2 .* 0\.\.9"),
        ([{"input_ids": [5, -1]}], "input_ids: -1 in row 0 at position 1"),
        ([{"input_ids": [5, 6], "labels": [-100, 12]}], "labels: 12 in row 0 at position 1"),
        ([{"input_ids": [5, 6], "labels": [-100, -1]}], "labels: -1 in row 0 at position 1"),
        ([{"input_ids": [5, 6], "labels": [-100, -100]}], "labels: all of the 1 rows' labels are -100"),
        ([{"input_ids": [5, 6], "labels": [5, -100]}], "labels: all of"),
        ([{"input_ids": [5]}], "labels: all of"),
        ([{"input_ids": [5, 6], "labels": [6]}], "labels: row 0 has shape"),
        ([{"input_ids": [5, 6], "position_ids": [0]}], "position_ids: row 0 has shape"),
        ([{"input_ids": [5, 6, 1], "attention_mask": [1, 1, 0]}], "attention_mask: row 0 has padding"),
        ([{"text": "raw"}], r"input_ids: row 0 has only \['text'\]"),
    ],
)
def test_bad_rows_are_refused_in_one_line(rows, message):
    with pytest.raises(ValueError, match=message) as caught:
        _collate(rows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"vocab_size": 0}, {"pad_token_id": 10}, {"pad_token_id": -1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        _collate([PACKED], **settings)
