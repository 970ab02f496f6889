"""The table of models, from folders alone."""

import json

import pytest
import torch
from models.grid import ALL_FAMILIES

from hf_ext.data.tokenizer_training import train_tokenizer
from hf_ext.quantization import quantize, save_quantized
from hf_ext.quantization.__main__ import main
from hf_ext.quantization.evaluation import (
    IGNORED,
    compare,
    greedy_tokens,
    load_saved,
    make_batch,
    predictions,
    read_rows,
)


TEXTS = ["The quick brown fox jumps over the lazy dog.", "import os\n\ndef f(x):\n    return x", "A short one."]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=262, model_max_length=64, mask_token="<|mask|>")


def make(family: str, head: str, tokenizer):
    return ALL_FAMILIES[family].make(head, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)


CASES = [
    ("decoder", "text"),
    ("encoder", "text"),
    ("encoder-decoder", "text"),
    ("encoder", "sequence"),
    ("encoder", "token"),
]


@pytest.mark.parametrize(("family", "head"), CASES, ids=str)
def test_metric_by_hand(family, head, tokenizer):
    model = make(family, head, tokenizer)
    rows = [{"text": text, "label": "LABEL_1"} for text in TEXTS]
    batch = make_batch(model, tokenizer, rows)
    logits, metric = predictions(model, batch)
    if head == "token":
        assert metric is None
        assert logits.shape[0] == int(batch["attention_mask"].sum())
        return
    if head == "sequence":
        assert metric == ("accuracy", float((logits.argmax(-1) == 1).float().mean()))
        return
    with torch.no_grad():
        every = model(**{k: v for k, v in batch.items() if k != "labels"}, **_decoder(family, model, batch)).logits
    labels = batch["labels"][:, 1:] if family == "decoder" else batch["labels"]
    every = every[:, :-1] if family == "decoder" else every
    loss = torch.nn.functional.cross_entropy(every[labels != IGNORED], labels[labels != IGNORED])
    assert metric[0] == "perplexity"
    assert metric[1] == pytest.approx(loss.exp().item(), rel=1e-4)
    if family == "encoder":
        hidden = batch["labels"] != IGNORED
        assert (batch["input_ids"][hidden] == tokenizer.mask_token_id).all()
        assert 0.1 < hidden.sum() / batch["attention_mask"].sum() < 0.2


def _decoder(family: str, model, batch: dict) -> dict:
    if family != "encoder-decoder":
        return {}
    return {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(batch["labels"])}


def test_greedy_text_is_generates(tokenizer):
    model = make("decoder", "text", tokenizer)
    rows = [{"text": text} for text in TEXTS]
    written = greedy_tokens(model, tokenizer, rows)
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    ids = ids[:, : ids.shape[1] // 2]
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(written[0, :8], model.generate(ids, **options)[0, ids.shape[1] :])
    assert greedy_tokens(make("encoder", "text", tokenizer), tokenizer, rows) is None


def save_two(tmp_path, tokenizer):
    model = make("decoder", "text", tokenizer)
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    save_quantized(quantize(model, "int2", group_size=16), tmp_path / "small", tokenizer)
    (tmp_path / "texts.txt").write_text("\n".join(text.splitlines()[0] for text in TEXTS))


@pytest.mark.heavy
def test_table(tmp_path, tokenizer, capsys):
    save_two(tmp_path, tokenizer)
    folders = [str(tmp_path / name) for name in ("plain", "small")]
    main(["compare", *folders, "--texts", str(tmp_path / "texts.txt")])
    head, plain, small = capsys.readouterr().out.splitlines()[-3:]
    assert head.split("  ")[0] == "folder"
    assert "perplexity" in head
    plain, small = plain.split(), small.split()
    assert plain[:2] == ["plain", "-"]
    assert small[:2] == ["small", "int2"]
    assert float(small[2]) < float(plain[2])  # MB on disk
    assert plain[-4:] == ["0.00", "%", "100.0", "%"]
    assert float(small[-4]) > 5
    assert float(small[-2]) < 100
    assert all(float(cell) > 0 for cell in plain[4:7])


def test_quantize_from_the_command_line(tmp_path, tokenizer, capsys):
    save_two(tmp_path, tokenizer)
    plain, out = str(tmp_path / "plain"), str(tmp_path / "static")
    options = ["--method", "int8_static", "--calibration", str(tmp_path / "texts.txt"), "--observer", "percentile"]
    main(["quantize", plain, out, *options])
    assert "14 layers in the same, inputs to 8 bits over calibrated ranges" in capsys.readouterr().out
    assert load_saved(out).quantized_with["options"] == {"observer": "percentile"}
    with pytest.raises(ValueError, match="exists already"):
        main(["quantize", plain, out, *options])


def test_nonsense(tmp_path, tokenizer):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"txt": "a"}))
    (tmp_path / "good.txt").write_text("a text")
    cases = {
        r"holds no text": lambda: read_rows(tmp_path / "empty.txt"),
        r'row 0 has no "text"': lambda: read_rows(tmp_path / "bad.jsonl"),
        r"holds no model \(no config.json\)": lambda: load_saved(tmp_path),
        r"^label: 'x' is none of the model's, LABEL_0": lambda: make_batch(
            make("encoder", "sequence", tokenizer), tokenizer, [{"text": "a", "label": "x"}]
        ),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.heavy
def test_a_folder_that_fails_in_its_process_is_one_line(tmp_path):
    (tmp_path / "good.txt").write_text("a text")
    with pytest.raises(ValueError, match=r"^.*: folder='.*': holds no model") as error:
        compare([str(tmp_path)], str(tmp_path / "good.txt"))
    assert "\n" not in str(error.value)
