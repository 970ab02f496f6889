import json
import math
import os
import random
import subprocess
import sys

import datasets
import pytest
from datasets import Dataset, IterableDataset

from hf_ext.data import pack_dataset, pack_documents, train_tokenizer, utf8_bytes


EOS, PAD, BOS = 0, 1, 2
ROW_LENGTH = 16
TEXTS = [f"document {index}\n" + "word " * (index % 23) + "\tend é" for index in range(57)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, kind="byte_level_bpe", vocab_size=300, model_max_length=64)


def _random_documents(seed, num_documents=200, row_length=ROW_LENGTH):
    generator = random.Random(seed)
    lengths = [0, 1, row_length - 2, row_length - 1, row_length, row_length + 1, 5 * row_length, 5 * row_length - 1]
    lengths += [generator.randrange(0, 3 * row_length) for _ in range(num_documents)]
    generator.shuffle(lengths)
    # Every token of the run is different, so that "exactly once" can be read from the ids.
    ids = iter(range(10, 10**9))
    return [[next(ids) for _ in range(length)] for length in lengths]


def _pack(documents, strategy, **settings):
    arguments = {"row_length": ROW_LENGTH, "eos_token_id": EOS, "pad_token_id": PAD, **settings}
    return list(pack_documents(documents, strategy=strategy, **arguments))


def _segments(row):
    """The row's real segments, cut where the position ids restart; the padding, known by its labels, is left out."""
    starts = [index for index, position in enumerate(row["position_ids"]) if position == 0]
    segments = [row["input_ids"][start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    return [segment for segment in segments if set(segment) != {PAD}]


@pytest.mark.parametrize("strategy", ["split", "best_fit"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_are_exact_and_labelled(strategy, seed):
    for row in _pack(_random_documents(seed), strategy, buffer_size=37):
        assert [len(row[name]) for name in ("input_ids", "position_ids", "labels")] == [ROW_LENGTH] * 3
        assert row["position_ids"][0] == 0
        for index in range(1, ROW_LENGTH):
            assert row["position_ids"][index] in (0, row["position_ids"][index - 1] + 1)
        for token, position, label in zip(row["input_ids"], row["position_ids"], row["labels"], strict=True):
            assert label == (-100 if token == PAD or position == 0 else token)
        padding = [token == PAD for token in row["input_ids"]]
        assert padding == sorted(padding), "padding comes last"
        if any(padding):
            assert row["position_ids"][padding.index(True)] == 0, "padding is a segment of its own"


@pytest.mark.parametrize("bos_token_id", [None, BOS])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_keeps_every_token_in_order(seed, bos_token_id):
    documents = _random_documents(seed)
    rows = _pack(documents, "split", bos_token_id=bos_token_id)
    start = [] if bos_token_id is None else [bos_token_id]
    expected = [token for document in documents for token in (*start, *document, EOS)]
    stream = [token for row in rows for segment in _segments(row) for token in segment]
    assert stream == expected
    assert len(rows) == math.ceil(len(expected) / ROW_LENGTH), "only the last row is padded"


@pytest.mark.parametrize("buffer_size", [1, 10, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_best_fit_cuts_long_documents_only(seed, buffer_size):
    documents = _random_documents(seed)
    segments = [tuple(s) for row in _pack(documents, "best_fit", buffer_size=buffer_size) for s in _segments(row)]
    expected = []
    for document in documents:
        whole = [*document, EOS]
        expected += [tuple(whole[start : start + ROW_LENGTH]) for start in range(0, len(whole), ROW_LENGTH)]
    if buffer_size == 1:  # each piece in a row of its own: one of an end token alone predicts nothing and is left out
        expected = [segment for segment in expected if len(segment) > 1]
    assert sorted(segments) == sorted(expected)


@pytest.mark.parametrize("strategy", ["split", "best_fit"])
def test_rows_that_predict_nothing_are_left_out(strategy):
    """A document that fills its row exactly leaves its end token for a row of its own."""
    rows = _pack([[5] * ROW_LENGTH], strategy)
    assert [row["input_ids"] for row in rows] == [[5] * ROW_LENGTH]
    assert list(_pack([[]], strategy)) == []


@pytest.mark.parametrize("overlap", [1, 5, ROW_LENGTH - 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_with_overlap_every_token_but_a_first_is_predicted_once(seed, overlap):
    documents = _random_documents(seed, num_documents=50)
    where = {token: (document, place) for document in documents for place, token in enumerate(document)}
    predicted, ends = [], 0
    for row in _pack(documents, "split", overlap=overlap):
        for token, position, label in zip(row["input_ids"], row["position_ids"], row["labels"], strict=True):
            if label == -100:
                continue
            assert label == token
            ends += token == EOS
            if token != EOS:
                predicted.append(token)
                place = where[token][1]
                assert min(place, overlap) <= position <= place  # so many tokens of the document it is predicted from
    assert sorted(predicted) == sorted(token for document in documents for token in document[1:])
    assert ends == sum(len(document) > 0 for document in documents)


def test_overlap_as_rows():
    rows = _pack([[10, 11, 12, 13, 14, 15, 16], [20, 21, 22]], "split", row_length=4, overlap=2)
    assert [row["input_ids"] for row in rows] == [
        [10, 11, 12, 13],
        [12, 13, 14, 15],
        [14, 15, 16, EOS],
        [20, 21, 22, EOS],
    ]
    assert [row["labels"] for row in rows] == [
        [-100, 11, 12, 13],
        [-100, -100, 14, 15],
        [-100, -100, 16, EOS],
        [-100, 21, 22, EOS],
    ]


def test_best_fit_takes_the_tightest_row():
    # Sorted: 9, 7, 6, 5, 4 with their end tokens. 9 opens a row (space 7), 7 closes it, 6 opens one, 5 and 4 follow.
    documents = [[10] * 4, [11] * 8, [12] * 3, [13] * 6, [14] * 5]
    rows = _pack(documents, "best_fit")
    assert [[segment[0] for segment in _segments(row)] for row in rows] == [[10, 12, 14], [11, 13]]


def test_best_fit_pads_little():
    generator = random.Random(0)
    documents = [[7] * generator.randrange(1, 60) for _ in range(2000)]
    num_tokens = sum(len(document) + 1 for document in documents)
    rows = _pack(documents, "best_fit", row_length=128, buffer_size=2000)
    assert len(rows) * 128 < 1.005 * num_tokens + 128


@pytest.mark.parametrize("strategy", ["split", "best_fit"])
def test_documents_are_pulled_as_rows_are_asked_for(strategy):
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            assert pulled < 1000, "the whole source is read"
            yield [7] * 7

    arguments = {"row_length": 16, "eos_token_id": EOS, "pad_token_id": PAD, "buffer_size": 10}
    rows = pack_documents(endless(), strategy=strategy, **arguments)
    assert pulled == 0
    for num_rows in range(1, 50):
        next(rows)
        assert pulled <= 2 * num_rows + (0 if strategy == "split" else 10)


def test_no_documents_give_no_rows():
    assert _pack([], "split") == _pack([], "best_fit") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"row_length": 1}, "row_length: 1"),
        ({"strategy": "greedy"}, "strategy: 'greedy' is not one of split, best_fit"),
        ({"buffer_size": 0}, "buffer_size: 0"),
        ({"overlap": 16}, "overlap: 16 must be at least 0 tokens and below row_length 16"),
        ({"overlap": -1}, "overlap: -1 must be"),
        ({"overlap": 1, "strategy": "best_fit"}, "overlap: 1 is for strategy split only"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(settings, message):
    arguments = {"row_length": 16, "eos_token_id": EOS, "pad_token_id": PAD, **settings}
    with pytest.raises(ValueError, match=message):
        pack_documents([[7]], **arguments)


def _rows(dataset):
    return [{name: row[name] for name in ("input_ids", "position_ids", "labels")} for row in dataset]


@pytest.mark.parametrize("add_bos_token", [False, True])
@pytest.mark.parametrize("strategy", ["split", "best_fit"])
def test_text_is_recovered_from_the_rows(tokenizer, strategy, add_bos_token):
    dataset = Dataset.from_dict({"text": TEXTS, "other": list(range(len(TEXTS)))})
    packed = pack_dataset(
        dataset, tokenizer, row_length=64, strategy=strategy, add_bos_token=add_bos_token, batch_size=20
    )
    assert packed.column_names == ["input_ids", "position_ids", "labels"]
    segments = [segment for row in packed for segment in _segments(row)]
    if strategy == "split":
        stream = tokenizer.decode([token for segment in segments for token in segment])
        texts = stream.replace("<|endoftext|><|endoftext|>", "<|endoftext|>").removeprefix("<|endoftext|>")
        assert texts.split("<|endoftext|>")[: len(TEXTS)] == TEXTS
    else:
        texts = [tokenizer.decode(segment, skip_special_tokens=True) for segment in segments]
        whole = [text for text in TEXTS if len(tokenizer(text)["input_ids"]) <= 62]
        assert len(whole) > 20
        assert set(whole) <= set(texts)


def test_every_token_after_a_bos_is_predicted(tokenizer):
    """Then the labels spell the whole text: what makes bits per byte exact."""
    dataset = Dataset.from_dict({"text": TEXTS[:5]})
    packed = pack_dataset(dataset, tokenizer, row_length=64, strategy="best_fit", add_bos_token=True)
    predicted = [label for row in packed for label in row["labels"] if label not in (-100, EOS)]
    assert len(tokenizer.decode(predicted).encode("utf-8")) == utf8_bytes(dataset)


@pytest.mark.parametrize("strategy", ["split", "best_fit"])
def test_streaming_gives_the_same_rows(tokenizer, strategy):
    dataset = Dataset.from_dict({"body": TEXTS})
    settings = {"row_length": 32, "strategy": strategy, "text_column": "body", "batch_size": 10}
    streamed = pack_dataset(dataset.to_iterable_dataset(), tokenizer, **settings)
    assert isinstance(streamed, IterableDataset)
    expected = _rows(pack_dataset(dataset, tokenizer, **settings))
    assert _rows(streamed) == expected
    assert _rows(streamed) == expected, "a second pass gives them again"


def test_streaming_is_lazy(tokenizer):
    pulled = []

    def endless():
        index = 0
        while True:
            pulled.append(index)
            assert index < 1000, "the whole source is read"
            yield {"text": f"document {index}"}
            index += 1

    dataset = IterableDataset.from_generator(endless, features=datasets.Features({"text": datasets.Value("string")}))
    rows = iter(pack_dataset(dataset, tokenizer, row_length=16, batch_size=8))
    for _ in range(3):
        next(rows)
    assert len(pulled) <= 16


def test_columns_of_a_stream_may_be_unknown(tokenizer):
    dataset = IterableDataset.from_generator(lambda: iter([{"text": "abc", "extra": 1}]))
    assert dataset.column_names is None
    assert len(_rows(pack_dataset(dataset, tokenizer, row_length=16))) == 1
    assert utf8_bytes(dataset) == 3


@pytest.mark.heavy
def test_num_proc_gives_the_same_rows(tokenizer):
    dataset = Dataset.from_dict({"text": TEXTS})
    settings = {"row_length": 32, "strategy": "split", "batch_size": 10}
    two = pack_dataset(dataset, tokenizer, num_proc=2, **settings)
    assert _rows(two) == _rows(pack_dataset(dataset, tokenizer, **settings))


def test_a_document_cannot_forge_an_end(tokenizer):
    text = "before<|endoftext|>after"
    packed = pack_dataset(Dataset.from_dict({"text": [text]}), tokenizer, row_length=64)
    segment = _segments(packed[0])[0]
    assert segment.count(EOS) == 1
    assert tokenizer.decode(segment[:-1]) == text


CACHE_SCRIPT = """
import json, sys
import datasets
from transformers import AutoTokenizer
from hf_ext.data import DataArguments, load_documents, pack_dataset, packing

calls = 0
tokenize = packing._tokenize
def counted(*args, **kwargs):
    global calls
    calls += 1
    return tokenize(*args, **kwargs)
packing._tokenize = counted

folder = sys.argv[1]
result = []
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
for settings in ({"row_length": 32}, {"row_length": 32}, {"row_length": 16}):
    arguments = DataArguments(data_files=folder + "/train.jsonl", validation_fraction=0.2)
    train, validation = load_documents(arguments, seed=0)
    calls = 0
    packed = pack_dataset(train, tokenizer, strategy="best_fit", **settings)
    result.append([calls, packed._fingerprint, len(packed)])
    tokenizer("use it", padding="max_length", truncation=True, max_length=8)
print(json.dumps(result))
"""


@pytest.mark.heavy
def test_the_same_call_is_found_in_the_cache_by_another_process(tokenizer, tmp_path):
    folders = {"1": tmp_path / "tokenizer", "2": tmp_path / "copy_of_it"}
    for folder in folders.values():
        tokenizer.save_pretrained(folder)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_DATASETS_CACHE", None)
    results = []
    for hash_seed, folder in folders.items():
        run = subprocess.run(
            [sys.executable, "-c", CACHE_SCRIPT, tmp_path, folder],
            capture_output=True,
            text=True,
            env={**env, "PYTHONHASHSEED": hash_seed},
        )
        assert run.returncode == 0, run.stderr
        results.append(json.loads(run.stdout.splitlines()[-1]))
    first, second = results
    assert [calls for calls, _, _ in first] == [1, 0, 1], "same arguments hit, other arguments miss"
    assert [calls for calls, _, _ in second] == [0, 0, 0], "a new process hits both"
    assert [row[1:] for row in first] == [row[1:] for row in second]


def test_utf8_bytes_counts_bytes_of_documents():
    dataset = Dataset.from_dict({"body": ["aé", "日本", ""]})
    assert utf8_bytes(dataset, "body") == 3 + 6
    assert utf8_bytes(dataset.to_iterable_dataset(), "body") == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"row_length": 65}, "row_length: 65 exceeds the tokenizer's model_max_length 64"),
        ({"row_length": 1}, "row_length: 1"),
        ({"strategy": "bestfit"}, "strategy: 'bestfit'"),
        ({"text_column": "body"}, r"text_column: 'body' is not among the columns \['text'\]"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"overlap": 16}, "overlap: 16 must be"),
    ],
)
def test_bad_settings_are_refused_in_one_line(tokenizer, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        pack_dataset(Dataset.from_dict({"text": TEXTS}), tokenizer, **{"row_length": 16, **settings})
    assert "\n" not in str(caught.value)


def test_other_misfits_are_refused():
    tokenizer = train_tokenizer(TEXTS, kind="characters", model_max_length=64)
    dataset = Dataset.from_dict({"text": TEXTS})
    with pytest.raises(ValueError, match="num_proc: 2 has no meaning for a streaming"):
        pack_dataset(dataset.to_iterable_dataset(), tokenizer, row_length=16, num_proc=2)
    with pytest.raises(ValueError, match="text_column: 'body'"):
        utf8_bytes(dataset, "body")
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no pad_token"):
        pack_dataset(dataset, tokenizer, row_length=16)
