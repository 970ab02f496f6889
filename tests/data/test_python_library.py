import itertools
import sysconfig

import pytest

from hf_ext.data import iter_python_library
from hf_ext.data.python_library import python_library_fingerprint


@pytest.fixture(scope="module")
def documents():
    return list(iter_python_library())


def test_holds_megabytes_of_sources_and_documentation(documents):
    assert sum(len(document["text"].encode("utf-8")) for document in documents) >= 5_000_000
    paths = {document["path"] for document in documents}
    assert len(paths) == len(documents)
    assert {"argparse.py", "json/decoder.py", "pydoc_data/topics/assert.txt"} <= paths


def test_paths_are_relative_and_tests_are_left_out(documents):
    for document in documents:
        folders = document["path"].split("/")[:-1]
        assert not document["path"].startswith("/")
        assert not {"test", "tests", "idle_test", "site-packages"} & set(folders), document["path"]
        assert "_sysconfigdata" not in document["path"], "it names this machine's folders"


def test_order_is_fixed_and_lazy(documents):
    assert list(itertools.islice(iter_python_library(), 20)) == documents[:20]
    assert python_library_fingerprint() == python_library_fingerprint()


def test_max_bytes_takes_a_prefix(documents):
    limited = list(iter_python_library(max_bytes=100_000))
    size = sum(len(document["text"].encode("utf-8")) for document in limited)
    assert limited == documents[: len(limited)]
    assert size <= 100_000 < size + len(documents[len(limited)]["text"].encode("utf-8"))


def test_other_encodings_are_left_out(tmp_path, monkeypatch):
    (tmp_path / "argparse.py").write_text("text = 'é'\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\n'\xe9'\n")
    (tmp_path / "blank.py").write_text("")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    sources = [document for document in iter_python_library() if not document["path"].startswith("pydoc_data/topics/")]
    assert sources == [{"text": "text = 'é'\n", "path": "argparse.py"}]


def test_missing_or_zipped_library_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(FileNotFoundError, match=r"python_library.*zipped or stripped") as caught:
        iter_python_library()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("max_bytes", "message"), [(0, "max_bytes: 0"), (1, "max_bytes: 1 is below")])
def test_max_bytes_too_small(max_bytes, message):
    with pytest.raises(ValueError, match=message):
        next(iter_python_library(max_bytes=max_bytes))
