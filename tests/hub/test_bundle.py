"""Models as somebody has them who has transformers but not hf_ext, and what becomes of the same files where it is installed.

$HF_EXT_PYTHONS names the Python interpreters of clean environments (`make test-versions` makes some); without it, it is this
one, kept from seeing hf_ext.
"""

import getpass
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub.without_hf_ext import LABELS, answers
from huggingface_hub import ModelCard
from models.grid import ALL_FAMILIES, padded
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import PushToHubMixin

import hf_ext
from hf_ext import HfxDecoderConfig, HfxDecoderForCausalLM
from hf_ext.hub import bundle, bundle_of, check_bundle
from hf_ext.models.saved_code import saving_code
from hf_ext.registry import FAMILIES


ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("without_hf_ext.py")
# -S: site-packages as they lie, without what a development install adds to the path
UNSEEN = """import runpy, sys
sys.path.append({site!r})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BIASED = {
    "decoder": {"position_embedding_type": "alibi"},
    "encoder": {"position_embedding_type": "relative"},
    "encoder-decoder": {"position_embedding_type": "relative"},
}
RICH = {  # parts that the heads' cases leave out
    "experts, further tokens": {"num_experts": 4, "num_nextn_predict_layers": 1, "router_balance_bias": True},
    "latent attention": {"attention_type": "latent"},
    "differential attention": {"attention_type": "differential", "num_key_value_heads": 2},
    "rotary by layer type": {
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": None, "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}},
    },
}
over_families = pytest.mark.parametrize("config_class", FAMILIES, ids=lambda c: c.model_type)


def auto_class_of(model_class: type) -> str:
    return next(auto.__name__ for auto, model in FAMILIES[model_class.config_class] if model is model_class)


def write_cases(folder: Path) -> None:
    """Every head of every family, its own attention where there are biases; the parts that these leave out."""
    cases = [("decoder", "text", "sdpa", {}, "sdpa")]
    cases += [
        (family, head, "sdpa" if i % 2 else "eager", {}, head)
        for family, entry in ALL_FAMILIES.items()
        for i, head in enumerate(entry.heads)
    ]
    cases += [(family, "text", "hfx_tiled", options, "biased") for family, options in BIASED.items()]
    cases += [("decoder", "text", "eager", options, name) for name, options in RICH.items()]
    for number, (family, head, attention, options, name) in enumerate(cases):
        entry = ALL_FAMILIES[family]
        model = entry.make(head, attention, **options)
        saved = folder / str(number) / entry.config_class.model_type
        model.save_pretrained(saved)
        batch = padded(entry.documents(head))
        if head == "body":  # which has no loss
            batch = {name: value for name, value in batch.items() if name not in LABELS}
        torch.save(
            {
                "name": f"{family}: {name}",
                "auto_class": auto_class_of(type(model)),
                "folder": saved.name,
                "attention": attention,
                "batch": batch,
                "expected": answers(model, batch),
            },
            folder / str(number) / "case.pt",
        )


def run(python: str, script: Path, *arguments: str | Path, cache: Path) -> subprocess.CompletedProcess:
    """In an empty folder of its own, without what the environment adds to the path."""
    unseen = [] if python != sys.executable else ["-S", "-c", UNSEEN.format(site=sysconfig.get_path("purelib"))]
    return subprocess.run(
        [python, "-I", *unseen, script, *arguments],
        env={
            **{name: value for name, value in os.environ.items() if name != "HF_HUB_CACHE"},
            "HF_HOME": str(cache),
            "HF_MODULES_CACHE": str(cache / "modules"),
        },
        cwd=cache,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    write_cases(folder)
    return folder


def name_of_environment(python: str) -> str:
    return Path(python).parents[1].name


@pytest.mark.heavy
@pytest.mark.parametrize("python", os.environ.get("HF_EXT_PYTHONS", sys.executable).split(), ids=name_of_environment)
def test_the_same_without_hf_ext(python, cases, tmp_path):
    done = run(python, SCRIPT, cases, cache=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{len(list(cases.glob('*/case.pt')))} models without hf_ext" in done.stdout


def save(folder: Path, **options) -> HfxDecoderForCausalLM:
    model = ALL_FAMILIES["decoder"].make("text")
    model.save_pretrained(folder, **options)
    return model


def test_where_hf_ext_is_imported_its_own_classes_are_taken(tmp_path):
    saved = save(tmp_path)
    for options in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
        assert type(AutoConfig.from_pretrained(tmp_path, **options)) is HfxDecoderConfig
        model = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
        assert type(model) is HfxDecoderForCausalLM
    assert torch.equal(model.lm_head.weight, saved.lm_head.weight)


def test_where_hf_ext_is_installed_the_entry_takes_its_classes(tmp_path, monkeypatch):
    save(tmp_path)
    found = get_class_from_dynamic_module("hfx_decoder.HfxDecoderForCausalLM", tmp_path)
    assert found is HfxDecoderForCausalLM
    # as transformers does with what it has loaded: ours must not be saved its way, by the one file
    found.register_for_auto_class("AutoModelForCausalLM")
    HfxDecoderConfig.register_for_auto_class()
    assert found._auto_class is HfxDecoderConfig._auto_class is None
    entry = sys.modules[
        next(name for name in sys.modules if name.startswith("transformers_modules.") and "hfx" in name)
    ]
    monkeypatch.setattr(entry, "version", lambda name: "0.0.1")
    with pytest.raises(ImportError, match=r"hf_ext==0\.0\.1: older than the code of this model"):
        entry.is_installed()


def test_asking_for_the_commit_writes_nothing(tmp_path, monkeypatch):
    """Else a run that is killed meanwhile leaves a lock, and git refuses to work in the checkout."""
    monkeypatch.setattr(bundle, "PACKAGE", tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    (tmp_path / "code.py").write_text("x = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "m"]):
        subprocess.run([*git, *words], check=True)
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    os.utime(tmp_path / "code.py", (1, 1))  # as git doesn't know it: it would look, and note what it saw
    assert bundle._git("status", "--porcelain") == ""
    assert index.read_bytes() == before


@over_families
def test_stamped_with_version_licence_and_commit_and_no_more(config_class):
    files = bundle_of(config_class)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for name, text in files.items():
        head = text.splitlines()[:2]
        assert head[0] == "# SPDX-License-Identifier: Apache-2.0", name
        assert head[1].startswith(f"# Part of hf_ext {hf_ext.__version__}: hf_ext/"), name
        assert commit.strip() in head[1], name
        assert str(ROOT) not in text, name
        assert getpass.getuser() not in "".join(head), name
    assert f"modeling_{config_class.model_type.removeprefix('hfx_')}.py" in files
    assert f"configuration_{config_class.model_type.removeprefix('hfx_')}.py" in files


@over_families
def test_the_same_files_each_time(config_class):
    before = bundle_of(config_class)
    bundle_of.cache_clear()
    assert bundle_of(config_class) == before


def test_comments_and_lines_stay_as_they_are():
    own = (ROOT / "hf_ext" / "layers" / "attention.py").read_text().splitlines()
    flat = bundle_of(HfxDecoderConfig)["attention.py"].splitlines()[3:]
    assert len(own) == len(flat)
    changed = [(a, b) for a, b in zip(own, flat, strict=True) if a != b]
    assert changed
    for a, b in changed:
        assert a.startswith("from hf_ext."), a
        assert b.startswith("from ."), b


@over_families
def test_a_missing_file_is_found(config_class):
    files = bundle_of(config_class)
    for name in files:
        if name != f"{config_class.model_type}.py":
            with pytest.raises(ValueError, match="which is not in the bundle"):
                check_bundle({other: text for other, text in files.items() if other != name})


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("from hf_ext.layers import norms\n", "imports hf_ext in line 1"),
        ("def f():\n    import hf_ext.ops\n", "imports hf_ext in line 2"),
        ("from . import b\n", "which is not in the bundle"),
        ("from ..b import x\n", "which is not in the bundle"),
        ("from .b import y\n", "imports y, which b.py does not define"),
        ('"""\nfrom .b import x\n"""\n', "must not look like an import"),
        ("from .b import x as\n", "a.py: not Python in line 1"),
    ],
)
def test_what_a_bundle_must_not_hold(text, refusal):
    check_bundle({"a.py": "from .b import x\n", "b.py": "if True:\n    x: int = 1\n"})
    with pytest.raises(ValueError, match=refusal):
        check_bundle({"a.py": text, "b.py": "x = 1\n"})


def test_thin_form(tmp_path):
    model = save(tmp_path / "with")
    assert json.loads((tmp_path / "with" / "config.json").read_text())["auto_map"]["AutoConfig"]
    assert not hasattr(model.config, "auto_map")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "with")
    for number, again in enumerate((model, loaded)):
        again.save_pretrained(tmp_path / f"thin {number}", bundle=False)
        with saving_code(False):
            again.config.save_pretrained(tmp_path / f"thin {number} config")
        for folder in (tmp_path / f"thin {number}", tmp_path / f"thin {number} config"):
            assert "auto_map" not in json.loads((folder / "config.json").read_text())
            assert not list(folder.glob("*.py"))
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "thin 0")) is HfxDecoderForCausalLM


@pytest.fixture
def pushed(monkeypatch) -> dict[str, str]:
    """The files that would be uploaded, in place of doing so: those that are new or newer than the call."""
    files = {}

    def upload(self, working_dir, repo_id, files_timestamps, *args, **kwargs):
        for path in Path(working_dir).iterdir():
            if path.suffix != ".safetensors" and path.stat().st_mtime > files_timestamps.get(path.name, 0):
                files[path.name] = path.read_text()

    api = SimpleNamespace(create_repo=lambda *args, **kwargs: SimpleNamespace(repo_id="me/mine"))
    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: ModelCard("mine"))
    for module in ("utils.hub", "modeling_utils", "configuration_utils"):
        monkeypatch.setattr(f"transformers.{module}.hf_api", lambda: api, raising=False)
    return files


def push_at_once(model, folder, **options):
    model.push_to_hub("me/mine", **options)


def push_what_is_saved(model, folder, **options):
    model.save_pretrained(folder)  # the code lies there already, and must be pushed all the same
    model.save_pretrained(folder, push_to_hub=True, repo_id="me/mine", **options)


@pytest.mark.parametrize("push", [push_at_once, push_what_is_saved])
@pytest.mark.parametrize("part", ["model", "config"])
@pytest.mark.parametrize("bundle", [True, False])
def test_pushed_with_code(push, part, bundle, pushed, tmp_path):
    model = ALL_FAMILIES["decoder"].make("text")
    push(model if part == "model" else model.config, tmp_path, **({} if bundle else {"bundle": False}))
    assert ("auto_map" in json.loads(pushed["config.json"])) == bundle
    code = {name: text for name, text in pushed.items() if name.endswith(".py")}
    assert code == (bundle_of(HfxDecoderConfig) if bundle else {})


class OwnConfig(HfxDecoderConfig):
    model_type = "of_somebody_else"


def test_a_derived_class_is_saved_without_code_of_ours(tmp_path):
    fields = ALL_FAMILIES["decoder"].make_config().to_dict()
    OwnConfig(**fields | {"model_type": OwnConfig.model_type}).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    OwnConfig.register_for_auto_class()
    assert OwnConfig._auto_class == "AutoConfig"
