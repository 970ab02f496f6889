"""Data by what they are: every file's hash, whatever way it is named; the same file from another folder is the same."""

import hashlib
from types import SimpleNamespace

import pytest

from hf_ext.data import DataArguments, RowArguments, provenance
from hf_ext.data.provenance import data_sources, name_of_file
from hf_ext.data.python_library import python_library_fingerprint


@pytest.fixture
def files(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text(f"what {name} says")
    return tmp_path / "texts"


def sha256(path):
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("named", ["{}/*.txt", ["{}/a.txt", "{}/b.txt"]])
def test_files_by_pattern_and_by_list(files, named):
    named = [part.format(files) for part in named] if isinstance(named, list) else named.format(files)
    found = data_sources(DataArguments(data_files=named))
    assert [(s.name, s.split, s.num_bytes, s.identity) for s in found] == [
        (f"texts/{name}", "", 15, sha256(files / name)) for name in ("a.txt", "b.txt")
    ]


def test_files_by_split_and_by_column(files):
    a, b = str(files / "a.txt"), str(files / "b.txt")
    found = data_sources(DataArguments(data_files={"train": a, "held": [b]}, validation_split="held"))
    assert [(s.split, s.name) for s in found] == [("train", "texts/a.txt"), ("held", "texts/b.txt")]
    parallel = data_sources(RowArguments(data_files={"train": {"en": a, "de": b}}))
    assert [(s.split, s.name) for s in parallel] == [("train", "texts/a.txt"), ("train", "texts/b.txt")]


def test_a_changed_file_is_another(files):
    before = data_sources(DataArguments(data_files=str(files / "a.txt")))
    (files / "a.txt").write_text("what a.txt said")
    assert data_sources(DataArguments(data_files=str(files / "a.txt"))) != before


def test_a_folder_the_library_and_the_hub(files, monkeypatch):
    found = data_sources(RowArguments(dataset_name=str(files)))
    assert [source.identity for source in found] == [sha256(files / "a.txt"), sha256(files / "b.txt")]
    (library,) = data_sources(DataArguments(dataset_name="python_library"))
    assert library.name.startswith("python_library of Python 3.")
    assert library.identity == f"sha256 {python_library_fingerprint()}"
    monkeypatch.setattr(
        provenance, "load_dataset_builder", lambda name, config: SimpleNamespace(hash=f"{name}@{config}")
    )
    (hub,) = data_sources(RowArguments(dataset_name="me/rows", dataset_config_name="de"))
    assert (hub.name, hub.identity) == ("me/rows, de", "revision me/rows@de")


@pytest.mark.parametrize(
    ("path", "name"), [("/home/me/x/a.txt", "x/a.txt"), ("a.txt", "a.txt"), ("../a.txt", "a.txt"), ("/a.txt", "a.txt")]
)
def test_a_name_says_which_file_and_not_where(path, name):
    assert name_of_file(path) == name


def test_a_home_is_no_part_of_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "ann"))
    assert name_of_file(tmp_path / "ann" / "a.txt") == "a.txt"
    assert name_of_file("~/a.txt") == "a.txt"
    assert name_of_file(tmp_path / "ann" / "x" / "a.txt") == "x/a.txt"
