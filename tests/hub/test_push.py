"""Over HTTP, with the real client: one commit, complete or not at all; what is refused is refused in one line."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from hub.conftest import CARD, make_tokenizer
from hub.loopback_hub import LoopbackHub
from huggingface_hub import ModelCard, constants
from models.decoder_grid import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from hf_ext.hub import HubError, push


NAME = "me/mine"


def push_quietly(source, repo_id=NAME, **options):
    return push(source, repo_id, **{"tell": lambda line: None, **options})


def on_disk(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_one_private_commit_holds_the_folder(hub, folder):
    whole = on_disk(folder)
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").write_bytes(b"x")
    lines = []
    info = push(folder, NAME, tell=lines.append)
    repository = hub.repository(NAME)
    assert repository.private
    assert repository.messages == ["initial commit", "Push by hf_ext"]
    assert hub.files(NAME) == whole
    assert info.oid == hub.head(NAME)
    assert "private model, main" in lines[0]
    assert f"{len(whole)} files" in lines[0]
    assert "1 files left out" in lines[0]
    assert info.oid in lines[1]
    assert hub.token not in "".join(lines)


def test_what_has_not_changed_is_neither_sent_nor_committed(hub, folder):
    first = push_quietly(folder)
    sent = len(hub.asked("PUT", "/objects/"))
    assert sent == 2  # the weights and the picture lie apart
    assert push_quietly(folder).oid == first.oid
    assert len(hub.repository(NAME).messages) == 2
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    second = push_quietly(folder)
    assert len(hub.asked("PUT", "/objects/")) == sent
    repository = hub.repository(NAME)
    before, after = repository.commits[first.oid], repository.commits[second.oid]
    assert {name for name in after if after[name] is not before.get(name)} == {"README.md"}


def test_files_in_parts_and_trees_in_pages_arrive_whole(hub, folder):
    hub.part_size, hub.page_size = 1000, 2
    push_quietly(folder)
    assert len(hub.asked("PUT", "/objects/")) > 10
    assert hub.files(NAME) == on_disk(folder)


# ---- nothing is sent before everything here is right


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("training_args.bin", b"\x80\x04", "training_args.bin: pickles"),
        ("sub/x.pkl", b"\x80\x04", "sub/x.pkl: pickles"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}", "no whole safetensors file"),
        ("config.json", b"{", "config.json: is no JSON"),
        ("README.md", CARD.replace("tags: [hf_ext]", "tags: [hf_ext").encode(), "its metadata isn't valid"),
        ("results.txt", b"token hf_" + b"abcDEF12" * 4, "results.txt: holds a token or key"),
    ],
)
def test_a_folder_that_is_not_right_reaches_no_server(hub, folder, name, content, said):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        push_quietly(folder)
    assert "\n" not in str(caught.value)
    assert "abcDEF12" not in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repo_type": "kernel"}, "repo_type='kernel': must be one of"),
        ({"repo_id": "a/b/c"}, "repo_id='a/b/c'"),
        ({"leave_out": "*.log"}, "leave_out='.*': takes several"),
        ({"source": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_nonsense_reaches_no_server(hub, folder, options, said):
    with pytest.raises(ValueError, match=said):
        push_quietly(**{"source": folder, **options})
    assert hub.requests == []


# ---- parents, branches, tags, who may


def test_a_stale_parent_is_one_line_and_nothing_is_sent(hub, folder):
    first = push_quietly(folder).oid
    (folder / "notes.txt").write_text("one")
    second = push_quietly(folder, parent_commit=first).oid
    (folder / "notes.txt").write_text("two")
    asked = len(hub.requests)
    with pytest.raises(HubError, match=f"main has moved on from {first[:12]}, its head is {second[:12]}"):
        push_quietly(folder, parent_commit=first)
    assert not [path for method, path in hub.requests[asked:] if method == "POST" or method == "PUT"]
    assert hub.head(NAME) == second


def test_somebody_elses_commit_during_the_upload_is_not_covered(hub, folder, tmp_path):
    push_quietly(folder)
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "notes.txt").write_text("theirs")
    (folder / "notes.txt").write_text("ours")
    theirs = []

    def meanwhile(line):  # after the head was asked for, before the commit
        if not theirs:
            theirs.append(push_quietly(other).oid)

    with pytest.raises(HubError, match=r"main has moved on from .* meanwhile") as caught:
        push_quietly(folder, tell=meanwhile)
    assert caught.value.status == 412
    assert hub.head(NAME) == theirs[0]
    assert hub.files(NAME)["notes.txt"] == b"theirs"


def test_branches_and_tags(hub, folder):
    main = push_quietly(folder, tag="v1").oid
    (folder / "notes.txt").write_text("an experiment")
    branched = push_quietly(folder, revision="a/b", tag="v2").oid
    assert (hub.head(NAME), hub.head(NAME, "a/b")) == (main, branched)
    assert hub.repository(NAME).tags == {"v1": main, "v2": branched}
    assert "notes.txt" not in hub.files(NAME, "v1")
    assert hub.files(NAME, "v2")["notes.txt"] == b"an experiment"
    push_quietly(folder, "me/other", revision="b")
    assert set(hub.repository("me/other").branches) == {"main", "b"}
    assert hub.files("me/other") == {}
    assert hub.files("me/other", "b") == on_disk(folder)
    with pytest.raises(ValueError, match=r"tag='v1': is .* already"):
        push_quietly(folder, tag="v1")
    with pytest.raises(ValueError, match="revision='v1': is a tag"):
        push_quietly(folder, revision="v1")
    with pytest.raises(ValueError, match="is a commit; a push goes to a branch"):
        push_quietly(folder, revision=main)


def test_public_only_where_it_was_said(hub, folder):
    push_quietly(folder, private=False)
    assert not hub.repository(NAME).private
    with pytest.raises(ValueError, match="is public; say private=False"):
        push_quietly(folder)


@pytest.mark.parametrize(
    ("environment", "repo_id", "said"),
    [
        ("hf_" + "Wr0ngOne" * 4, NAME, "the token isn't accepted .401"),
        (None, NAME, "there is no token; run `hf auth login`, or set HF_TOKEN"),
        (LoopbackHub.token, "they/mine", "the token may not do this .403"),
    ],
)
def test_who_may_not_is_told_so(hub, folder, monkeypatch, tmp_path, environment, repo_id, said):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_login"))
    monkeypatch.delenv("HF_TOKEN")
    if environment is not None:
        monkeypatch.setenv("HF_TOKEN", environment)
    with pytest.raises(HubError, match=said) as caught:
        push_quietly(folder, repo_id)
    assert "\n" not in str(caught.value)
    assert "hf_" not in str(caught.value)
    assert hub.repositories == {}


def test_offline_is_told_so(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE=1"):
        push_quietly(folder)
    assert hub.requests == []


# ---- a server that breaks


def test_a_server_that_dies_in_an_upload_has_no_commit_and_the_next_push_sends_the_rest(hub, folder):
    hub.fault("PUT", "/objects/", "die half way", after=1)
    with pytest.raises(HubError, match=r"the upload failed: the connection broke.*the new repository stays"):
        push_quietly(folder)
    repository = hub.repository(NAME)
    assert repository.messages == ["initial commit"]
    (arrived,) = repository.objects
    hub.requests.clear()
    hub.start()
    push_quietly(folder)
    (sent,) = hub.asked("PUT", "/objects/")
    assert arrived not in sent
    assert hub.files(NAME) == on_disk(folder)
    assert repository.messages == ["initial commit", "Push by hf_ext"]


def test_a_dropped_connection_is_tried_again(hub, folder):
    hub.fault("PUT", "/objects/", "drop", times=2)
    hub.fault("POST", "/preupload/", 503)
    push_quietly(folder)
    assert hub.files(NAME) == on_disk(folder)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, folder):
    hub.fault("POST", "/commit/", "die after")
    with pytest.raises(HubError, match="the commit failed: the connection broke"):
        push_quietly(folder)
    made = hub.head(NAME)
    hub.start()
    assert push_quietly(folder, tag="v1").oid == made
    assert len(hub.repository(NAME).messages) == 2
    assert hub.repository(NAME).tags == {"v1": made}


@pytest.mark.parametrize("status", [400, 403, 409])
def test_what_was_made_for_a_refused_push_is_deleted_again(hub, folder, status):
    hub.fault("POST", "/commit/", status)
    with pytest.raises(HubError, match="the new repository is deleted again") as caught:
        push_quietly(folder)
    assert str(caught.value).count(NAME) == 1
    assert hub.repositories == {}
    first = push_quietly(folder).oid
    (folder / "notes.txt").write_text("x")
    hub.fault("POST", "/commit/", status)
    with pytest.raises(HubError, match="the new branch other is deleted again"):
        push_quietly(folder, revision="other")
    assert hub.repository(NAME).branches == {"main": first}
    hub.fault("POST", "/commit/", status)
    with pytest.raises(HubError, match=NAME):  # what was there before stays
        push_quietly(folder)
    assert hub.head(NAME) == first


def test_a_tag_that_fails_says_that_the_commit_is_there(hub, folder):
    hub.fault("POST", "/tag/", 403)
    with pytest.raises(HubError, match=r"committed as .*, but the tag v1 couldn't be made"):
        push_quietly(folder, tag="v1")
    assert hub.files(NAME) == on_disk(folder)


def test_a_gitignore_there_hides_nothing(hub, folder):
    (folder / ".gitignore").write_text("loss.png\nall_results.json\n")
    push_quietly(folder)
    (folder / "all_results.json").write_text('{"eval_loss": 2.0}\n')
    push_quietly(folder)
    assert hub.files(NAME) == on_disk(folder)


# ---- what else can be pushed


def test_older_parts_of_the_same_weights_go_in_the_same_commit(hub, folder):
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="50KB")
    sharded = on_disk(folder)
    push_quietly(folder)
    assert hub.files(NAME) == sharded
    for part in [*folder.glob("model-*"), folder / "model.safetensors.index.json"]:
        part.unlink()
    make_model().save_pretrained(folder)
    lines = []
    push(folder, NAME, tell=lines.append)
    assert "takes the place of model-00001-of-" in lines[0]
    assert hub.files(NAME) == on_disk(folder)
    assert len(hub.repository(NAME).messages) == 3


def test_objects_become_one_commit(hub):
    card = ModelCard("---\nlicense: apache-2.0\n---\n\n# Mine\n")
    push_quietly([card, make_model(), make_tokenizer(), GenerationConfig(max_new_tokens=7)], "mine")
    files = hub.files(NAME)
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"} <= set(files)
    assert json.loads(files["generation_config.json"])["max_new_tokens"] == 7
    assert b"# Mine" in files["README.md"]
    assert len(hub.repository(NAME).messages) == 2


def test_what_was_loaded_from_this_disk_does_not_say_where(hub, folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    push_quietly([model, AutoTokenizer.from_pretrained(folder), GenerationConfig.from_pretrained(folder)])
    assert not [name for name, content in hub.files(NAME).items() if str(folder.parent).encode() in content]


def test_an_adapter_goes_with_the_name_of_its_base(hub):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make_model(), peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"]))
    card = ModelCard("---\nbase_model: me/base\n---\n\n# Adapter\n")
    with pytest.raises(ValueError, match=r"base_model_name_or_path=.*: is nothing that others can load"):
        push_quietly([model, card])
    assert hub.requests == []
    model.peft_config["default"].base_model_name_or_path = "me/base"
    push_quietly([model, card])
    assert set(hub.files(NAME)) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert hub.files(NAME)["README.md"].endswith(b"# Adapter\n")


def test_data_sets(hub, tmp_path):
    rows = DatasetDict(train=Dataset.from_dict({"x": [1, 2, 3]}), test=Dataset.from_dict({"x": [4]}))
    push_quietly(rows, "me/rows", repo_type="dataset")
    for name, content in hub.files("me/rows", repo_type="dataset").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    read = load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {split: some["x"] for split, some in read.items()} == {"train": [1, 2, 3], "test": [4]}
    with pytest.raises(ValueError, match="a DatasetDict goes to a repo_type='dataset'"):
        push_quietly(rows)
    with pytest.raises(ValueError, match="goes to a repo_type='model'"):
        push_quietly(make_tokenizer(), repo_type="dataset")
    with pytest.raises(ValueError, match="a dict can't be pushed"):
        push_quietly({"x": 1})


def test_a_folder_of_rows(hub, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "/home/somebody/x and root"}\n')
    push_quietly(tmp_path, "me/rows", repo_type="dataset")
    assert hub.files("me/rows", repo_type="dataset") == on_disk(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": \n')
    with pytest.raises(ValueError, match=r"train.jsonl: line 1 is no JSON object"):
        push_quietly(tmp_path, "me/rows", repo_type="dataset")


LOAD = """
import hf_ext, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("me/mine", revision="v1").eval()
tokenizer = AutoTokenizer.from_pretrained("me/mine", revision="v1")
print("logits", model(**tokenizer("a b c", return_tensors="pt")).logits.double().sum().item())
"""


@pytest.mark.heavy
def test_a_fresh_process_loads_what_was_pushed(hub, folder, tmp_path):
    """With the client as it is: HF_ENDPOINT and HF_TOKEN, nothing replaced."""
    push_quietly(folder, tag="v1")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = make_model()(**make_tokenizer()("a b c", return_tensors="pt")).logits.double().sum().item()
    assert float(done.stdout.split("logits")[1]) == pytest.approx(expected, abs=1e-4)
