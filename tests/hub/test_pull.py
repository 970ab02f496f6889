"""A commit as a folder: verified, whole or not there, and nothing that leads out of it or runs code."""

import pytest
from hub.loopback_hub import File

from hf_ext.hub import HubError, pull, push


NAME = "me/mine"


def pull_quietly(folder, **options):
    return pull(NAME, folder, tell=lambda line: None, **options)


def on_disk(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def pushed(hub, folder):
    return push(folder, NAME, tag="v1", tell=lambda line: None).oid


def add(hub, name, content, sha256=None):
    """A commit by somebody else."""
    repository = hub.repository(NAME)
    files = repository.commits[repository.branches["main"]]
    file = File(len(content), content) if sha256 is None else File(len(content), sha256=sha256)
    return repository.commit("main", files | {name: file}, f"add {name}")


def test_pulled_is_pushed(hub, folder, pushed, tmp_path):
    later = add(hub, "later.txt", b"x")
    lines = []
    there = pull(NAME, tmp_path / "a" / "b", tell=lines.append)
    assert there.commit == later
    assert later in lines[0]
    assert on_disk(there.folder) == on_disk(folder) | {"later.txt": b"x"}
    for revision in ("v1", pushed):
        there = pull_quietly(tmp_path / revision, revision=revision)
        assert (there.commit, there.num_files) == (pushed, len(on_disk(folder)))
        assert there.num_bytes == sum(map(len, on_disk(folder).values()))
        assert on_disk(tmp_path / revision) == on_disk(folder)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"mine", "a", "v1", pushed}  # nothing unfinished


def test_a_folder_that_is_there_is_taken_only_as_it_should_be(hub, pushed, tmp_path):
    target = tmp_path / "pulled"
    target.mkdir()
    pull_quietly(target)
    asked = len(hub.asked("GET", "/resolve/|/objects/"))
    assert pull_quietly(target).commit == pushed
    assert len(hub.asked("GET", "/resolve/|/objects/")) == asked
    whole = on_disk(target)
    for name, content, how in (
        ("mine.txt", b"x", "isn't of it"),
        ("config.json", b"{}", "differs"),
        ("loss.png", None, "is missing"),
    ):
        if content is None:
            (target / name).unlink()
        else:
            (target / name).write_bytes(content)
        changed = on_disk(target)
        with pytest.raises(ValueError, match=rf"isn't me/mine at .* \({name} {how}\)"):
            pull_quietly(target)
        assert on_disk(target) == changed
        (target / name).unlink(missing_ok=True)
        if name in whole:
            (target / name).write_bytes(whole[name])
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        pull_quietly(tmp_path / "file")


@pytest.mark.parametrize(
    "name",
    ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "a\\b.txt", "c:x.txt", "a//b", ".git/config", "x\n.txt", "a/."],
)
def test_names_that_lead_elsewhere_are_refused(hub, pushed, tmp_path, name):
    add(hub, name, b"x")
    with pytest.raises(ValueError, match="nothing was written") as caught:
        pull_quietly(tmp_path / "pulled")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_pickles_are_refused(hub, pushed, tmp_path):
    add(hub, "pytorch_model.bin", b"\x80\x04x")
    with pytest.raises(ValueError, match=r"pytorch_model.bin: pickles .* aren't pulled"):
        pull_quietly(tmp_path / "pulled")
    there = pull_quietly(tmp_path / "pulled", leave_out=("*.bin", ".gitattributes"))
    assert not list(there.folder.glob("*.bin"))
    add(hub, "openvino.xml", b"<net/>")
    add(hub, "pytorch_model.bin", b"plain")
    add(hub, "pytorch_model.xml", b"<net/>")  # as OpenVINO's
    pull_quietly(tmp_path / "with_openvino")
    add(hub, "pytorch_model.bin", b"\x80\x04x")
    with pytest.raises(ValueError, match="is a pickle"):
        pull_quietly(tmp_path / "disguised")
    assert not (tmp_path / "disguised").exists()


def test_two_names_that_are_one_elsewhere(hub, pushed, tmp_path):
    add(hub, "README.MD", b"x")
    with pytest.raises(ValueError, match="one name but for upper case"):
        pull_quietly(tmp_path / "pulled")


def test_no_such_revision_or_repository(hub, pushed, tmp_path):
    with pytest.raises(ValueError, match="revision='v9': me/mine has no such"):
        pull_quietly(tmp_path / "pulled", revision="v9")
    with pytest.raises(HubError, match=r"me/none: .*404"):
        pull("me/none", tmp_path / "pulled")
    with pytest.raises(HubError, match="401"):
        pull_quietly(tmp_path / "pulled", token="hf_" + "Wr0ngOne" * 4)


def test_a_server_that_dies_leaves_no_folder_and_the_next_pull_fetches_the_rest(hub, folder, pushed, tmp_path):
    hub.fault("GET", "/objects/", "die half way")
    with pytest.raises(HubError, match=r"loss.png can't be downloaded: the connection broke"):
        pull_quietly(tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    fetched = len(hub.asked("GET", "/resolve/|/objects/"))
    assert fetched > 2
    hub.requests.clear()
    hub.start()
    pull_quietly(tmp_path / "pulled")
    assert on_disk(tmp_path / "pulled") == on_disk(folder)
    assert not hub.asked("GET", "/resolve/.*/(README.md|config.json)")


def test_what_is_not_what_the_hub_says_is_not_kept(hub, pushed, tmp_path):
    repository = hub.repository(NAME)
    weights = repository.commits[pushed]["model.safetensors"]
    good = repository.objects[weights.sha256]
    repository.objects[weights.sha256] = good[:-1] + b"!"
    with pytest.raises(HubError, match=r"model.safetensors isn't what the Hub says of it"):
        pull_quietly(tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    repository.objects[weights.sha256] = good
    pull_quietly(tmp_path / "pulled")
    assert (tmp_path / "pulled" / "model.safetensors").read_bytes() == good


def test_what_an_earlier_pull_left_is_checked_too(hub, folder, pushed, tmp_path):
    hub.fault("HEAD", "/resolve/.*/tokenizer.json", 403)
    with pytest.raises(HubError, match="403"):
        pull_quietly(tmp_path / "pulled")
    unfinished = next(tmp_path.glob(".pulled.pulling-*"))
    (unfinished / "config.json").write_bytes(b"broken")
    (unfinished / "of_nobody.txt").write_bytes(b"x")
    pull_quietly(tmp_path / "pulled")
    assert on_disk(tmp_path / "pulled") == on_disk(folder)
