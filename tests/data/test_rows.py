"""Rows of named columns: every way to give them, what is held out, and what is refused."""

import json

import pytest

from hf_ext.data import RowArguments, load_rows


ROWS = [{"sentence": f"text {i}", "label": i % 3, "other": i} for i in range(40)]


def write(folder, name="rows.jsonl", rows=ROWS):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_columns_have_the_tasks_names(tmp_path):
    arguments = RowArguments(data_files=write(tmp_path), columns={"text": "sentence"})
    rows = load_rows(arguments, ("text", "label"), ("text_pair",))
    assert set(rows) == {"train", "validation"}
    assert set(rows["train"].column_names) == {"text", "label"}
    both = [*rows["train"], *rows["validation"]]
    assert sorted((row["text"], row["label"]) for row in both) == sorted((r["sentence"], r["label"]) for r in ROWS)
    assert 0 < len(rows["validation"]) < len(rows["train"])
    everything = load_rows(RowArguments(data_files=write(tmp_path)), None)
    assert set(everything["train"].column_names) == {"sentence", "label", "other"}


def test_what_is_held_out_depends_on_the_row_alone(tmp_path):
    whole = load_rows(RowArguments(data_files=write(tmp_path), validation_fraction=0.3), None)["validation"]
    backwards = write(tmp_path, "backwards.jsonl", ROWS[::-1])
    other = load_rows(RowArguments(data_files=backwards, validation_fraction=0.3), None)["validation"]
    assert sorted(whole["sentence"]) == sorted(other["sentence"])


def test_splits_limits_and_formats(tmp_path):
    (tmp_path / "test.tsv").write_text('a "quoted text\t1\nb\t0\n', encoding="utf-8")
    (tmp_path / "train.tsv").write_text("c\t1\nd\t0\ne\t0\n", encoding="utf-8")
    arguments = RowArguments(
        data_files={"train": str(tmp_path / "train.tsv"), "final": str(tmp_path / "test.tsv")},
        column_names=["text", "label"],
        test_split="final",
        validation_fraction=0.5,
        max_test_rows=1,
    )
    rows = load_rows(arguments, ("text", "label"))
    assert rows["test"]["text"] == ['a "quoted text']
    nested = tmp_path / "nested.json"
    nested.write_text(json.dumps({"version": 1, "data": ROWS}), encoding="utf-8")
    assert len(load_rows(RowArguments(data_files=str(nested), json_field="data"), None)["train"]) > 20


def test_texts_in_parallel(tmp_path):
    for name, lines in (
        ("a.en", ["one", "two", "", "four"]),
        ("a.de", ["eins", "zwei", "", "vier"]),
        ("b.de", ["nur"]),
    ):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = {"source": str(tmp_path / "a.en"), "target": str(tmp_path / "a.de")}
    arguments = RowArguments(data_files={"train": files, "val": files}, validation_split="val")
    rows = load_rows(arguments, ("source", "target"))["train"]
    assert rows[:] == {"source": ["one", "two", "", "four"], "target": ["eins", "zwei", "", "vier"]}
    uneven = {"train": {**files, "target": str(tmp_path / "b.de")}}
    with pytest.raises(ValueError, match=r"'train' have {'source': 4, 'target': 1} lines; they must run in parallel"):
        load_rows(RowArguments(data_files=uneven), ("source", "target"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither is given; give exactly one"),
        ({"dataset_name": "a", "data_files": "b"}, "both are given"),
        ({"data_files": []}, "names no file"),
        ({"data_files": "a", "validation_fraction": 1.0}, "must be between 0 and 1"),
        ({"data_files": "a", "validation_split": "v"}, "needs data_files as a mapping"),
        ({"data_files": {"train": "a", "tset": "b"}, "test_split": "test"}, "no such field; did you mean 'test'?"),
        ({"data_files": {"train": "a"}, "test_split": "test"}, "has no split 'test'"),
        ({"data_files": {"train": "a", "v": {"x": "y"}}, "validation_split": "v"}, "write all one way"),
        ({"dataset_name": "a", "json_field": "data"}, "is for data_files only"),
        ({"dataset_name": "a", "test_split": "train"}, "is named twice"),
        ({"dataset_name": "a", "max_test_rows": 3}, "has no effect without test_split"),
        ({"dataset_name": "a", "max_train_rows": 0}, "must be a whole number from 1"),
        (
            {"dataset_name": "a", "validation_split": "v", "validation_fraction": 0.1},
            "has no effect with validation_split",
        ),
    ],
)
def test_nonsense_is_refused(given, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        RowArguments(**given)


def test_missing_columns_and_rows_are_named(tmp_path):
    path = write(tmp_path)
    with pytest.raises(ValueError, match=r"'text' \(the task's 'text'\) is not among the columns .* map it"):
        load_rows(RowArguments(data_files=path), ("text", "label"))
    with pytest.raises(ValueError, match=r"data.columns.txt: no such field; did you mean 'text'\?"):
        load_rows(RowArguments(data_files=path, columns={"txt": "sentence"}), ("text", "label"))
    with pytest.raises(ValueError, match=r"'sentense' .*; did you mean 'sentence'\?"):
        load_rows(RowArguments(data_files=path, columns={"text": "sentense"}), ("text", "label"))
    one = write(tmp_path, "one.jsonl", ROWS[:1])
    with pytest.raises(ValueError, match=r"no rows for (train|validation); give more rows"):
        load_rows(RowArguments(data_files=one), None)
    with pytest.raises(FileNotFoundError, match=r"'nowhere\.jsonl' does not exist"):
        load_rows(RowArguments(data_files="nowhere.jsonl"), None)


def test_splits_may_have_other_columns_beside_the_tasks(tmp_path):
    for name, extra in (("train", {}), ("test", {"second": "b"})):
        lines = [{"text": f"{name} {number}", "label": number % 2, **extra} for number in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    rows = load_rows(RowArguments(data_files=files, test_split="test"), ("text", "label"))
    assert rows["test"].column_names == ["text", "label"]
    assert rows["test"]["text"][:2] == ["test 0", "test 1"]


def test_the_python_library_as_rows():
    rows = load_rows(RowArguments(dataset_name="python_library", max_train_rows=3), ("text",))
    assert len(rows["train"]) == 3
    assert not set(rows["train"]["text"]) & set(rows["validation"]["text"])
    with pytest.raises(ValueError, match="test_split: 'test': python_library has the one split"):
        RowArguments(dataset_name="python_library", test_split="test")
