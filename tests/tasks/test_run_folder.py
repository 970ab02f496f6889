"""The folder of a run: whether it may be written to, known before anything is read or trained."""

import os
import tempfile

import pytest

from hf_ext.tasks.run_folder import check_writable


def test_a_folder_to_be_made_is_tried_where_it_would_be_made(tmp_path):
    check_writable(str(tmp_path / "a" / "b"))
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "texts.jsonl").touch()
    with pytest.raises(
        ValueError, match=r"training\.output_dir='.*run': texts\.jsonl is a file; choose another folder"
    ):
        check_writable(str(tmp_path / "texts.jsonl" / "run"))


def test_a_folder_that_permissions_promise_and_the_system_refuses(tmp_path, monkeypatch):
    """For root every folder is writable by its permissions, those of a read-only file system too."""

    def refused(*args, **kwargs):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(ValueError, match=r"can't be written to \(Read-only file system\); choose another folder"):
        check_writable(str(tmp_path / "run"))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
def test_a_system_folder():
    with pytest.raises(ValueError, match=r"proc can't be written to \(.*\); choose another folder"):
        check_writable("/proc/run")
