"""What the libraries do with malicious files, where hf_ext leans on it: a version that changes this turns a test red."""

import json
from pathlib import Path

import pytest
import safetensors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_ext import HfxDecoderConfig
from hf_ext.data import RowArguments, load_rows
from hf_ext.hub.card_text import check_card_text
from hf_ext.hub.folder_checks import check_folder


def test_transformers_still_reads_code_by_name_from_a_config_json(tmp_path):
    """Why we refuse it: of another family it goes on to the model, where it would be fetched. CVE-2026-4372's own field is
    left out since 5.3."""
    fields = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"attn_implementation": "someone/kernel"}))
    assert AutoConfig.from_pretrained(tmp_path)._attn_implementation == "someone/kernel"
    (tmp_path / "config.json").write_text(json.dumps(fields | {"_attn_implementation_internal": "someone/kernel"}))
    assert AutoConfig.from_pretrained(tmp_path)._attn_implementation is None


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation_internal", "experts_implementation"])
def test_ours_refuses_it_whatever_loads_it(field, tmp_path):
    HfxDecoderConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path, bundle=False)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: "someone/kernel"}))
    for load in (AutoConfig.from_pretrained, HfxDecoderConfig.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=f"config.json: {field}='someone/kernel' names code on the Hub"):
            load(tmp_path)
    assert AutoConfig.from_pretrained  # and a program's own word is taken
    HfxDecoderConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, attn_implementation="sdpa")


def test_code_beside_a_config_runs_with_trust_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(
        "from transformers import PretrainedConfig\nopen('ran', 'w')\n"
        "class Config(PretrainedConfig):\n    model_type = 'evil'\n"
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    assert not (tmp_path / "ran").exists()
    AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_a_tokenizers_code_runs_with_trust_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w')\n")
    names = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": names}))
    with pytest.raises((ValueError, OSError, KeyError, AttributeError)):
        AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert not (tmp_path / "ran").exists()


def test_data_sets_run_no_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text("open('ran', 'w')\n")
    with pytest.raises((ValueError, OSError, RuntimeError)):
        load_rows(RowArguments(dataset_name=str(folder)), None)
    with pytest.raises((ValueError, OSError, RuntimeError)):
        load_rows(RowArguments(dataset_name=str(folder / "rows.py")), None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("length", [2**62, 2**31, 10**8 + 1, 100])
def test_a_header_of_absurd_length_is_refused(length, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(safetensors.SafetensorError, match=r"(?i)header"), safetensors.safe_open(path, framework="pt"):
        pass


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]},
        {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [2**63, 4]},
    ],
)
def test_tensors_that_lead_out_of_their_file_are_refused(entry, tmp_path):
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00" * 4)
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, framework="pt"):
        pass


CARDS = {
    "an object": "model_name: !!python/object/apply:os.system ['touch ran']",
    "levels without end": "tags: " + "[" * 3000,
    "a number of 5,000 digits": "tags: " + "9" * 5000,
    "an alias": "a: &a [x]\ntags: *a",
}


@pytest.mark.parametrize("name", CARDS)
def test_a_cards_metadata_makes_no_objects(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(f"---\n{CARDS[name]}\n---\n\nA card.\n")
    with pytest.raises(ValueError, match=r"README.md: its metadata isn't valid") as caught:
        check_folder(tmp_path, ["README.md"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "<script>fetch('https://example.com')</script>",
        "< SCRIPT src=x>",
        "<iframe src='https://example.com'></iframe>",
        "<img src=x onerror=alert(1)>",
        "[more](javascript:alert(1))",
        "<form action='https://example.com'>",
    ],
)
def test_a_card_that_a_page_would_run_is_refused(text):
    with pytest.raises(ValueError, match=r"README.md: holds .* which a page may run"):
        check_card_text(f"---\nlicense: mit\n---\n\n{text}\n")
    check_card_text(f"---\nlicense: mit\n---\n\n```html\n{text}\n```\n\nand `{text}`\n")


def test_the_cards_that_come_along_pass():
    for path in (Path(__file__).parents[2] / "model_cards").glob("*.md"):
        check_card_text(path.read_text(encoding="utf-8"))
