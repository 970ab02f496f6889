"""Over HTTP, with the real client: one commit, complete or not at all, and what is refused is refused in one line."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from hf_ext.hub import HubError, push


def pushed(hub, folder, **options):
    return push(folder, "me/mine", endpoint=hub.endpoint, tell=lambda line: None, **options)


def on_disk(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_one_private_commit_holds_the_folder(hub, folder):
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").write_bytes(b"x")
    lines = []
    info = push(folder, "me/mine", endpoint=hub.endpoint, tell=lines.append)
    shutil.rmtree(folder / "checkpoint-5")
    repository = hub.repository("me/mine")
    assert repository.private
    assert repository.messages == ["initial commit", "Push by hf_ext"]
    assert hub.files("me/mine") == on_disk(folder)
    assert info.oid == hub.head("me/mine")
    assert "private model, main" in lines[0]
    assert "1 files left out" in lines[0]
    assert info.oid in lines[1]
    assert hub.token not in "".join(lines)
