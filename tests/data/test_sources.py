import json
from dataclasses import fields
from pathlib import Path

import datasets
import huggingface_hub.constants
import pandas as pd
import pytest
from datasets import Dataset, IterableDataset
from transformers import HfArgumentParser

from hf_ext.data import DataArguments, load_documents, resolve_data_files


DOCUMENTS = [f'document "{index}"\n\tof Unicode é 日本' for index in range(100)]
both_ways = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(autouse=True)
def own_cache_offline_and_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path / "files")


def _texts(dataset):
    assert dataset.column_names in (["text"], None)
    return [example["text"] for example in dataset]


def _load(**settings):
    return load_documents(DataArguments(**settings), seed=0)


def _refused(error, message, **settings):
    with pytest.raises(error, match=message) as caught:
        _load(**settings)
    assert "\n" not in str(caught.value)


def _write_jsonl(name, texts, column="text"):
    Path(name).write_text("".join(json.dumps({column: text, "number": 1}) + "\n" for text in texts))


def _write_format(name):
    frame = pd.DataFrame({"body": DOCUMENTS, "number": range(len(DOCUMENTS))})
    if name.endswith(".parquet"):
        frame.to_parquet(name)
    elif name.endswith(".csv"):
        frame.to_csv(name, index=False)
    elif name.endswith(".jsonl"):
        frame.to_json(name, orient="records", lines=True)
    elif name.endswith(".json"):
        frame.to_json(name, orient="records")


@both_ways
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_each_format_of_columns_loads(name, streaming):
    _write_format(name)
    train, validation = _load(data_files=name, text_column="body", streaming=streaming)
    assert isinstance(train, IterableDataset if streaming else Dataset)
    assert isinstance(validation, type(train))
    assert sorted(_texts(train) + _texts(validation)) == sorted(DOCUMENTS)
    assert 0 < len(_texts(validation)) < 20


@both_ways
def test_tsv_without_header_keeps_stray_quotes_and_missing_value_words(streaming):
    texts = [*(f'"sentence {index}' for index in range(98)), "NA", "null"]
    Path("a.tsv").write_text("".join(f"{text}\t1\n" for text in texts))
    train, validation = _load(data_files="a.tsv", column_names=["text", "label"], streaming=streaming)
    assert sorted(_texts(train) + _texts(validation)) == sorted(texts)


@both_ways
@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("document", ["one\ntwo\n\nthree\n", "four"]),
        ("paragraph", ["one\ntwo", "three\n", "four"]),
        ("line", ["one", "two", "three", "four"]),
    ],
)
def test_text_files_give_documents_paragraphs_or_lines(sample_by, expected, streaming):
    Path("a.txt").write_text("one\ntwo\n\nthree\n")
    Path("b.txt").write_text("four")
    Path("held_out.txt").write_text("other")
    files = {"train": "[ab].txt", "validation": ["held_out.txt"]}
    train, validation = _load(data_files=files, validation_split="validation", sample_by=sample_by, streaming=streaming)
    assert _texts(train) == expected
    assert _texts(validation) == ["other"]


def test_a_name_with_glob_characters_is_a_file():
    _write_jsonl("a[1].jsonl", DOCUMENTS)
    train, validation = _load(data_files="a[1].jsonl")
    assert len(train) + len(validation) == 100


@both_ways
def test_hub_loader_reads_a_local_data_set_folder(streaming):
    Path("folder").mkdir()
    _write_jsonl("folder/train.jsonl", DOCUMENTS)
    _write_jsonl("folder/validation.jsonl", ["held out"])
    settings = {"dataset_name": "folder", "streaming": streaming}
    train, validation = _load(validation_split="validation", **settings)
    assert (_texts(train), _texts(validation)) == (DOCUMENTS, ["held out"])
    _refused(
        ValueError, "dataset_name: 'folder' .* check dataset_config_name, train_split", train_split="no", **settings
    )


@both_ways
def test_python_library(streaming):
    train, validation = _load(dataset_name="python_library", streaming=streaming, max_train_documents=30)
    assert len(_texts(train)) == 30
    assert len(_texts(validation)) >= 10
    assert not set(_texts(train)) & set(_texts(validation))


def test_held_out_documents_depend_on_their_text_only():
    _write_jsonl("a.jsonl", DOCUMENTS)
    _write_jsonl("b.jsonl", [*DOCUMENTS[::-1], "more", *DOCUMENTS[:10]])
    _, validation = _load(data_files="a.jsonl", validation_fraction=0.3)
    other_train, other_validation = load_documents(DataArguments(data_files="b.jsonl", validation_fraction=0.3), seed=7)
    assert set(_texts(validation)) == set(_texts(other_validation)) - {"more"}
    assert not set(_texts(other_train)) & set(_texts(other_validation)), "copies stay on one side"
    _, streamed = _load(data_files="a.jsonl", validation_fraction=0.3, streaming=True)
    assert _texts(streamed) == _texts(validation)
    assert 15 <= len(validation) <= 45


@both_ways
@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_ends_are_cut_from_every_document(fraction, streaming):
    texts = ["".join(map(str, range(97))), "é日" * 50]
    _write_jsonl("a.jsonl", texts)
    train, validation = (
        _texts(d)
        for d in _load(data_files="a.jsonl", held_out="ends", validation_fraction=fraction, streaming=streaming)
    )
    assert [begin + end for begin, end in zip(train, validation, strict=True)] == texts
    assert [len(begin) for begin in train] == [int(len(text) * (1 - fraction)) for text in texts]


@both_ways
def test_blank_documents_are_dropped_and_counted(streaming, caplog):
    _write_jsonl("train.jsonl", ["", "one", " \n\t\u3000", None, "two"])
    _write_jsonl("validation.jsonl", ["held out"])
    files = {"train": "train.jsonl", "validation": "validation.jsonl"}
    train, _ = _load(data_files=files, validation_split="validation", streaming=streaming)
    assert _texts(train) == ["one", "two"]
    message = "train: 1 documents of white space" if streaming else "train: 3 documents of white space"
    assert message in caplog.text
    assert "validation:" not in caplog.text


@both_ways
def test_numbers_of_documents_are_bounded(streaming):
    _write_jsonl("a.jsonl", DOCUMENTS)
    settings = {"data_files": "a.jsonl", "validation_fraction": 0.5, "streaming": streaming}
    whole_train, whole_validation = _load(**settings)
    train, validation = _load(max_train_documents=7, max_validation_documents=3, **settings)
    assert _texts(train) == _texts(whole_train)[:7]
    assert _texts(validation) == _texts(whole_validation)[:3]


def test_streaming_shuffle_follows_the_seed():
    _write_jsonl("a.jsonl", DOCUMENTS)
    arguments = DataArguments(data_files="a.jsonl", streaming=True, shuffle_buffer_size=50, max_train_documents=60)
    orders = [_texts(load_documents(arguments, seed=seed)[0]) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]), "the same first documents, in another order"


@pytest.mark.heavy
def test_processes_change_nothing():
    _write_jsonl("a.jsonl", [*DOCUMENTS, " "])
    alone = [_texts(side) for side in _load(data_files="a.jsonl")]
    assert [_texts(side) for side in _load(data_files="a.jsonl", num_proc=2)] == alone


def test_empty_files_among_others_are_left_out(caplog):
    Path("empty.jsonl").touch()
    _write_jsonl("a.jsonl", DOCUMENTS)
    assert resolve_data_files(DataArguments(data_files="*.jsonl")) == {"train": ["a.jsonl"]}
    assert "1 empty files of split 'train' left out" in caplog.text


@both_ways
def test_bad_files_are_refused(streaming):
    Path("empty.txt").touch()
    Path("blank.txt").write_text(" \n\t")
    Path("note.md").write_text("text")
    Path("text.txt").write_text("text")
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    _write_jsonl("a.jsonl", DOCUMENTS, column="body")
    expected = [
        (FileNotFoundError, "data_files: 'absent.txt' does not exist", {"data_files": "absent.txt"}),
        (FileNotFoundError, r"data_files: '\*.csv' matches no file", {"data_files": ["text.txt", "*.csv"]}),
        (FileNotFoundError, "data_files: '.' is a folder", {"data_files": "."}),
        (ValueError, "data_files: 'empty.txt' of split 'train' is empty", {"data_files": "empty.txt"}),
        (ValueError, "no documents for train: all are white space", {"data_files": "blank.txt"}),
        (ValueError, "data_files: no documents for .*sample_by: paragraph", {"data_files": "text.txt"}),
        (ValueError, "'note.md' ends in '.md', known are .json, .jsonl", {"data_files": "note.md"}),
        (ValueError, "formats are mixed: text .* json", {"data_files": ["text.txt", "a.jsonl"]}),
        (ValueError, "'broken.jsonl' could not be read", {"data_files": "broken.jsonl"}),
        (ValueError, r"text_column: 'text' is not among the columns \['body', 'number'\]", {"data_files": "a.jsonl"}),
        (ValueError, "text_column: 'number' .* int64, not text", {"data_files": "a.jsonl", "text_column": "number"}),
        (ValueError, "sample_by: 'line' is for txt", {"data_files": "a.jsonl", "sample_by": "line"}),
        (ValueError, "column_names: .* csv and tsv", {"data_files": "a.jsonl", "column_names": ["text"]}),
        (ValueError, "split 'train' names no file", {"data_files": {"train": []}}),
    ]
    for error, message, settings in expected:
        _refused(error, message, streaming=streaming, **settings)


@pytest.mark.parametrize(
    ("content", "line", "offset"),
    [
        (b"caf\xe9 au lait", 1, 3),
        # The bad byte, and an incomplete character, on either side of the border between two blocks.
        (b"a" * (2**20 - 1) + "é".encode() + b"\xff", 1, 2**20 + 1),
        (b"a" * (2**20 - 1) + b"\xc3(", 1, 2**20 - 1),
        (b"abc\xe6\x97", 1, 3),
        (b"one\ntwo\nthr\xe9e\nfour", 3, 11),
        (b"a\n" * 2**20 + b"\xff\n", 2**20 + 1, 2**21),
    ],
)
@both_ways
def test_text_that_is_not_utf8_is_refused_with_its_place(content, line, offset, streaming):
    Path("a.txt").write_bytes(content)
    message = f"'a.txt' is not UTF-8 in line {line}, at byte {offset} "
    _refused(ValueError, message, data_files="a.txt", streaming=streaming)


def test_hub_name_while_offline_is_refused_with_the_remedy():
    _refused(FileNotFoundError, "dataset_name: 'owner/absent' .*HF_HUB_OFFLINE unset", dataset_name="owner/absent")
    _refused(FileNotFoundError, "did you mean 'python_library'", dataset_name="python_libary")


FILES = {"data_files": "a.txt"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "dataset_name, data_files: neither is given"),
        ({"dataset_name": "a", **FILES}, "dataset_name, data_files: both are given"),
        ({"data_files": []}, r"data_files: \[\] names no file"),
        ({"dataset_name": ""}, "dataset_name: '' is empty"),
        ({"validation_fraction": 0.0, **FILES}, "validation_fraction: 0.0 must be a number between 0 and 1"),
        ({"validation_fraction": "5e-2", **FILES}, "validation_fraction: '5e-2' must be a number"),
        ({"validation_fraction": 1.0, **FILES}, "validation_fraction: 1.0"),
        ({"sample_by": "word", **FILES}, "sample_by: 'word' is not one of document, line, paragraph"),
        ({"held_out": "end", **FILES}, "held_out: 'end' is not one of documents, ends"),
        (
            {"held_out": "ends", "data_files": {"train": "a", "dev": "b"}, "validation_split": "dev"},
            "held_out: 'ends' has no effect with validation_split 'dev'",
        ),
        ({"max_train_documents": 0, **FILES}, "max_train_documents: 0"),
        ({"max_validation_documents": 1e3, **FILES}, "max_validation_documents: 1000.0 must be a whole number"),
        ({"validation_split": "train", **FILES}, "validation_split: 'train' is also train_split"),
        ({"validation_split": "test", **FILES}, "validation_split: 'test' needs data_files as a mapping"),
        ({"data_files": {"train": "a", "dev": "b"}}, "split 'dev' is never read"),
        ({"data_files": {"dev": "b"}, "validation_split": "dev"}, "train_split: 'train' is not among"),
        ({"shuffle_buffer_size": 10, **FILES}, "shuffle_buffer_size: 10 needs streaming: true"),
        ({"num_proc": 2, "streaming": True, **FILES}, "num_proc: 2 has no effect"),
        ({"dataset_config_name": "en", **FILES}, "dataset_config_name: 'en' is for a Hub data set"),
        ({"dataset_name": "python_library", "validation_split": "test"}, "python_library has only 'train'"),
        ({"dataset_name": "a", "sample_by": "line"}, "sample_by: 'line' is for data_files only"),
        ({"dataset_name": "a", "column_names": ["text"]}, "column_names: .* is for data_files only"),
    ],
)
def test_bad_arguments_are_refused_before_any_data(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        DataArguments(**settings)
    assert "\n" not in str(caught.value)


def test_every_field_has_a_line_of_help_and_parses():
    assert all(field.metadata["help"] for field in fields(DataArguments))
    parser = HfArgumentParser(DataArguments)
    (arguments,) = parser.parse_args_into_dataclasses(["--data_files", "a.txt", "--max_train_documents", "3"])
    assert (arguments.data_files, arguments.max_train_documents) == ("a.txt", 3)
    (arguments,) = parser.parse_dict({"data_files": {"train": ["a.txt"], "dev": "b.txt"}, "validation_split": "dev"})
    assert arguments.data_files["train"] == ["a.txt"]


def test_the_usual_split_of_tinyshakespeare(real_data):
    """The first 90 % of the characters train, as in every public run."""
    path = real_data / "tinyshakespeare" / "input.txt"
    text = path.read_text(encoding="utf-8")
    (train,), (validation,) = (_texts(d) for d in _load(data_files=str(path), held_out="ends", validation_fraction=0.1))
    assert train + validation == text
    assert (len(train), len(validation)) == (1_003_854, 111_540)


def test_real_files(real_data):
    files = {"train": str(real_data / "sst2/train.tsv"), "dev": str(real_data / "sst2/dev.tsv")}
    train, dev = _load(data_files=files, validation_split="dev", column_names=["text", "label"])
    assert (len(train), len(dev)) == (6920, 872)
    train, validation = _load(data_files=str(real_data / "gsm8k/train.jsonl"), text_column="question")
    assert 0.03 < len(validation) / (len(train) + len(validation)) < 0.07
