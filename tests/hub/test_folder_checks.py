"""Every way in which a folder isn't what it says is one line, and what is right passes."""

import json

import pytest
import torch
from models.decoder_grid import make_model
from safetensors.torch import save_file

from hf_ext.hub.folder_checks import check_folder


def check(folder, repo_type="model"):
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()]
    check_folder(folder, names, repo_type)


def change(folder, name, **fields):
    content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(content | fields))


def test_a_saved_model_passes_whole_and_in_parts(folder):
    check(folder)
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="50KB")
    check(folder)


def cut_weights(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-4])


def lengthen_weights(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")


def link_out(folder):
    (folder.parent / "secret.txt").write_text("x")
    (folder / "notes.txt").symlink_to(folder.parent / "secret.txt")


def link_folder_out(folder):
    (folder.parent / "else").mkdir()
    (folder / "sub").symlink_to(folder.parent / "else")


def lose_a_shard(folder):
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="50KB")
    next(folder.glob("model-00002*")).unlink()


def swap_shards(folder):
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="50KB")
    one, two, *_ = sorted(folder.glob("model-*"))
    one.write_bytes(two.read_bytes())


def code(folder, source, reference="modeling_mine.Mine"):
    (folder / "modeling_mine.py").write_text(source)
    change(folder, "config.json", auto_map={"AutoModel": reference})


def adapter(folder, base="me/base", rank=4, rows=4, weights=True):
    if weights:
        save_file({"x.q_proj.lora_A.weight": torch.zeros(rows, 8)}, folder / "adapter_model.safetensors")
    change(folder, "adapter_config.json", peft_type="LORA", r=rank, base_model_name_or_path=base)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut_weights, "model.safetensors: is no whole safetensors file"),
        (lengthen_weights, "model.safetensors: is no whole safetensors file"),
        (lambda f: save_file({}, f / "model.safetensors"), "model.safetensors: holds no tensor"),
        (lambda f: (f / "model.safetensors").unlink(), "config.json: is there, but no weights are"),
        (lose_a_shard, "index.json: names model-00002-of-.*, which isn't there"),
        (swap_shards, "index.json: model-00001-of-.* doesn't hold"),
        (link_out, "notes.txt: is a link out of the folder"),
        (link_folder_out, "sub: is no plain file"),
        (lambda f: (f / "x").symlink_to("nowhere"), "x: can't be read, or is a link to nowhere"),
        (lambda f: (f / "a:b").write_text("x"), "'a:b': no safe name"),
        (lambda f: (f / "model.pt").write_bytes(b"x"), "model.pt: pickles"),
        (lambda f: (f / "MODEL.PKL").write_bytes(b"x"), "MODEL.PKL: pickles"),
        (lambda f: change(f, "config.json", num_attention_heads=3), "config.json: .*num_attention_heads"),
        (lambda f: change(f, "config.json", hidden_size="wide"), "config.json: "),
        (
            lambda f: change(f, "config.json", model_type="nobodys", auto_map={}),
            "'nobodys' is no architecture that is registered",
        ),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: must be a mapping"),
        (lambda f: change(f, "generation_config.json", max_new_tokens=-1), "generation_config.json: .*max_new_tokens"),
        (lambda f: change(f, "tokenizer.json", model={"type": "BPE"}), "tokenizer.json: is no tokenizer"),
        (lambda f: (f / "loss.png").unlink(), "README.md: shows loss.png, which isn't there"),
        (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "README.md: its metadata isn't valid"),
        (
            lambda f: (f / "README.md").write_text("---\nmodel-index: {a: 1}\n---\n"),
            "README.md: its metadata isn't valid",
        ),
        (lambda f: change(f, "config.json", auto_map={"AutoModel": "gone.Mine"}), "but gone.py isn't there"),
        (
            lambda f: code(f, "class Other: ..."),
            "modeling_mine.Mine for AutoModel, which modeling_mine.py doesn't define",
        ),
        (lambda f: code(f, "class Mine:"), "modeling_mine.py: is no Python"),
        (
            lambda f: code(f, "from .nowhere import x\nclass Mine: ..."),
            "modeling_mine.py: imports .nowhere, but nowhere.py",
        ),
        (
            lambda f: code(f, "from . import nowhere\nclass Mine: ..."),
            "modeling_mine.py: imports .nowhere, but nowhere.py",
        ),
        (lambda f: adapter(f, weights=False), "but adapter_model.safetensors isn't"),
        (lambda f: adapter(f, rows=8), "has rank 8, adapter_config.json says 4"),
        (lambda f: adapter(f, base=None), "base_model_name_or_path=None: is nothing that others can load"),
        (lambda f: adapter(f, base="/data/base"), "base_model_name_or_path='/data/base': is nothing that others"),
        (lambda f: adapter(f, base=str(f)), "is nothing that others can load"),
    ],
)
def test_what_is_not_right_is_one_line(folder, spoil, said):
    spoil(folder)
    with pytest.raises(ValueError, match=said) as caught:
        check(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "extend",
    [
        lambda f: (f / "inside.txt").symlink_to("README.md"),
        lambda f: code(f, "from .nowhere import x\nclass Mine: ...") or (f / "nowhere.py").write_text("x = 1"),
        lambda f: code(f, "class Other: ...", "somebody/else--modeling.Mine"),
        lambda f: adapter(f),
        lambda f: (f / "openvino_model.xml").write_text("<net/>") and (f / "openvino_model.bin").write_bytes(b"plain"),
        lambda f: (f / "README.md").write_text("no metadata, ![](https://example.com/a.png)"),
    ],
)
def test_what_is_right_passes(folder, extend):
    extend(folder)
    check(folder)


def test_a_pickle_beside_an_xml_is_still_one(folder):
    (folder / "openvino_model.xml").write_text("<net/>")
    torch.save({"x": torch.zeros(1)}, folder / "openvino_model.bin")
    with pytest.raises(ValueError, match=r"openvino_model.bin: is a pickle"):
        check(folder)


def test_data_sets(tmp_path):
    with pytest.raises(ValueError, match="no file to push"):
        check(tmp_path, "dataset")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(ValueError, match="no data"):
        check(tmp_path, "dataset")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"x.parquet: is no whole parquet file"):
        check(tmp_path, "dataset")
