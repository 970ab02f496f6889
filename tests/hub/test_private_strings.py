"""Canaries: a token, a name or a path of this machine in any file stops the push, and the token is never repeated."""

import getpass
import socket
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import save_file
from torch import zeros

from hf_ext.hub import private_strings
from hf_ext.hub.private_strings import check_nothing_private


TOKEN = "hf_" + "C4naryT0" * 4


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A user with a home of their own, a token and a key."""
    home = tmp_path / "home" / "canaryuser"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "canaryuser")
    monkeypatch.setenv("HF_TOKEN", "not-shaped-like-a-token")
    monkeypatch.setenv("SOME_API_KEY", "k3y-of-somebody")
    monkeypatch.setattr(socket, "gethostname", lambda: "canaryhost")
    assert Path.home() == home
    assert getpass.getuser() == "canaryuser"
    return home


def check(folder, **options):
    check_nothing_private(
        folder, [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()], **options
    )


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "pushed").mkdir()
    return tmp_path / "pushed"


@pytest.mark.parametrize("name", ["README.md", "config.json", "run.log", "sub/recipe.yaml", "tokenizer.json", "x.bin"])
@pytest.mark.parametrize("secret", [TOKEN, "not-shaped-like-a-token", "k3y-of-somebody"])
def test_tokens_and_keys_are_found_anywhere(machine, empty, name, secret):
    (empty / name).parent.mkdir(exist_ok=True)
    (empty / name).write_text(f"x={secret}\n")
    with pytest.raises(ValueError, match=f"{name}: holds a token or key") as caught:
        check(empty, allowed=(secret,), data=True)
    assert secret not in str(caught.value)
    (empty / name).write_text("x=given-to-the-call")
    check(empty)
    with pytest.raises(ValueError, match=f"{name}: holds a token or key"):
        check(empty, token="given-to-the-call")


def test_a_token_in_the_metadata_of_weights(machine, empty):
    save_file({"x": zeros(1)}, empty / "model.safetensors", metadata={"by": TOKEN})
    with pytest.raises(ValueError, match=r"model.safetensors: holds a token"):
        check(empty)


def test_a_token_in_the_rows_of_a_parquet_file(machine, empty):
    rows = Dataset.from_dict({"x": [["a", f"b {TOKEN}"], ["c", "c"]] * 500})
    rows.to_parquet(empty / "x.parquet")
    with pytest.raises(ValueError, match=r"x.parquet: holds a token"):
        check(empty, data=True)


@pytest.mark.parametrize("name", ["README.md", "trainer_state.json", "run.log", "recipe.yaml", "modeling.py"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("by canaryuser today", "name 'canaryuser'"),
        ("on canaryhost", "name 'canaryhost'"),
        ("from {home}/data", "path of this machine, '{home}'"),
        ("from {parent}/x", "path of this machine"),
        ("in {cwd}/outputs", "path of this machine, '{cwd}'"),
    ],
)
def test_names_and_paths_are_found_in_what_a_run_writes(machine, empty, name, text, said):
    known = {"home": machine, "parent": machine.parent, "cwd": Path.cwd()}
    (empty / name).write_text(text.format(**known))
    with pytest.raises(ValueError, match=f"{name}: holds (the|a) {said.format(**known)}"):
        check(empty)


def test_what_lies_across_two_blocks_is_found(machine, empty, monkeypatch):
    monkeypatch.setattr(private_strings, "BLOCK", 1000)
    for start in range(960, 1010, 7):
        (empty / "x.bin").write_bytes(b"." * start + TOKEN.encode() + b"." * 3000)
        with pytest.raises(ValueError, match=r"x.bin: holds a token"):
            check(empty)
    (empty / "x.bin").write_bytes(b"." * 990 + b"hf_" + b"." * 3000)
    check(empty)


def test_a_file_may_not_be_named_after_the_machine(machine, empty):
    (empty / "events.canaryhost.log").write_text("x")
    with pytest.raises(ValueError, match="holds the name 'canaryhost'"):
        check(empty)


def test_what_is_nobodys_passes(machine, empty):
    (empty / "README.md").write_text(
        "The root of a user's model: https://huggingface.co/home/root, hf_ext, hf_hub_download, recipes/a/b.yaml, "
        "#!/usr/bin/env python, /no/such/path/anywhere, canaryusers"
    )
    (empty / "tokenizer.json").write_text('{"canaryuser": 1, "/home/": 2}')  # a word that the texts have
    (empty / "empty.txt").write_text("")
    check(empty)
    (empty / "rows.json").write_text('[{"text": "canaryuser"}]')
    check(empty, data=True)
    with pytest.raises(ValueError, match="canaryuser"):
        check(empty)


def test_the_owner_and_what_is_allowed_may_be_named(machine, empty):
    (empty / "README.md").write_text("by canaryuser")
    check(empty, owner="canaryuser")
    check(empty, allowed=("canaryuser",))
    (empty / "README.md").write_text(f"by canaryuser in {machine}")
    with pytest.raises(ValueError, match="path of this machine"):
        check(empty, owner="canaryuser")
    check(empty, owner="canaryuser", allowed=(str(machine),))
