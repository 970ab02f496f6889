"""An export scored on a file by its task's metrics: the numbers are the model's own, head by head."""

import json
from pathlib import Path

import pytest
import torch
from cli.command_line import hf_ext_command
from cli.saved_models import TEXT, save_tiny_decoder, tiny_tokenizer
from transformers import AutoModelForCausalLM

from hf_ext import (
    HfxEncoderConfig,
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderForMaskedLM,
    HfxEncoderForQuestionAnswering,
    HfxEncoderForSequenceClassification,
    HfxEncoderForTokenClassification,
)
from hf_ext.cli.loading import load_model
from hf_ext.export import HfxExportedModelForSequenceClassification
from hf_ext.hub.model_source import ModelSource
from hf_ext.objectives import PrefixLMCollator
from hf_ext.tasks.document_scores import documents_of


pytest.importorskip("onnxruntime")
RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 96}
TAGS = ["O", *(f"{side}-{kind}" for kind in ("DAY", "ORGANIZATION", "PERSON", "PLACE") for side in "BI")]
# kind -> (class, configuration, sections of the recipe, file of rows)
HEADS = {
    "sequence classification": (
        HfxEncoderForSequenceClassification,
        HfxEncoderConfig(**SIZES, vocab_size=300, id2label={0: "negative", 1: "positive"}),
        {"data": {"columns": {"label": "sentiment"}}},
        RECIPES / "text_classification" / "debug.jsonl",
    ),
    "token classification": (
        HfxEncoderForTokenClassification,
        HfxEncoderConfig(**SIZES, vocab_size=300, id2label=dict(enumerate(TAGS))),
        {},
        RECIPES / "token_classification" / "debug.jsonl",
    ),
    "question answering": (
        HfxEncoderForQuestionAnswering,
        HfxEncoderConfig(**SIZES, vocab_size=300, type_vocab_size=2),
        {"question_answering": {"max_length": 64, "stride": 16, "max_answer_length": 12, "null_answers": True}},
        RECIPES / "question_answering" / "debug.jsonl",
    ),
    "translation": (
        HfxEncoderDecoderForConditionalGeneration,
        HfxEncoderDecoderConfig(**SIZES, vocab_size=300, encoder_layers=1),
        {"translation": {"directions": ["en-de"]}, "generation": {"num_beams": 2, "max_new_tokens": 6}},
        RECIPES / "translation" / "debug.jsonl",
    ),
}


def evaluate(capsys, folder, *words) -> dict[str, float]:
    done = hf_ext_command(capsys, "evaluate", folder, *words, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def export(capsys, folder: Path, out: Path) -> Path:
    done = hf_ext_command(capsys, "export", folder, out, "--to", "onnx")
    assert done.code == 0, done.err
    return out


def save(model_class, config, folder: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    config.vocab_size, config.decoder_start_token_id = len(tokenizer), tokenizer.bos_token_id
    torch.manual_seed(0)
    model = model_class(config)
    for parameter in model.parameters():  # logits that differ from one another, so that a wrong row would show
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder, bundle=False)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", HEADS)
def test_the_scores_of_a_task(head, tmp_path, capsys):
    model_class, config, sections, rows = HEADS[head]
    folder = save(model_class, config, tmp_path / "model")
    sections = sections | {"training": {"output_dir": str(folder)}}
    (folder / "recipe.yaml").write_text(json.dumps(sections))  # JSON is YAML; the export gets it too
    words = [rows, "--max_rows", "24", "--batch_size", "8"]
    expected = evaluate(capsys, folder, *words, "--predictions", tmp_path / "torch.jsonl")
    out = export(capsys, folder, tmp_path / "onnx")
    scores = evaluate(capsys, out, *words, "--predictions", tmp_path / "onnx.jsonl")
    assert scores == pytest.approx(expected, rel=1e-4)
    assert "output_dir: model" in (out / "recipe.yaml").read_text()  # nobody's folder is named
    assert ("loss" in scores) == (head != "translation")
    first, second = (
        [
            {name: value for name, value in json.loads(line).items() if not isinstance(value, float | dict)}
            for line in (tmp_path / f"{side}.jsonl").read_text().splitlines()
        ]
        for side in ("torch", "onnx")
    )
    assert first == second
    assert len(first) == 24


def test_the_perplexity_of_documents_packed_into_rows(tmp_path, capsys):
    """Some documents are shorter than a row, one is cut."""
    folder, texts = save_tiny_decoder(tmp_path / "model"), tmp_path / "texts.jsonl"
    documents = [TEXT * 3, "import os\n", "def", TEXT]
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    (tmp_path / "recipe.yaml").write_text("packing: {row_length: 48}\n")
    words = [texts, "--recipe", tmp_path / "recipe.yaml", "--batch_size", "2"]
    expected = evaluate(capsys, folder, *words)
    assert set(expected) == {"loss", "perplexity", "bits_per_byte", "tokens"}
    out = export(capsys, folder, tmp_path / "onnx")
    assert evaluate(capsys, out, *words) == pytest.approx(expected, rel=1e-5)
    # what is said of a model's place and kind was decided when it was exported
    assert evaluate(capsys, out, *words, "--device", "cpu") == pytest.approx(expected, rel=1e-5)
    line = hf_ext_command(capsys, "evaluate", out, texts, "--dtype", "bfloat16").line
    assert "--dtype bfloat16: has no effect on an export" in line
    with pytest.raises(ValueError, match="fetch it with hf-ext pull first"):
        load_model(ModelSource(out, "0" * 40, False), AutoModelForCausalLM)
    # and it writes
    words = ["import", "--max_new_tokens", "5"]
    assert hf_ext_command(capsys, "generate", out, *words).out == hf_ext_command(capsys, "generate", folder, *words).out


def test_the_pseudo_perplexity_of_masked_tokens(tmp_path, capsys):
    folder = save(HfxEncoderForMaskedLM, HfxEncoderConfig(**SIZES, vocab_size=300), tmp_path / "model")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in [TEXT * 3, "import os\n", TEXT]))
    (tmp_path / "recipe.yaml").write_text("packing: {row_length: 48}\n")
    words = [texts, "--recipe", tmp_path / "recipe.yaml"]
    expected = evaluate(capsys, folder, *words)
    assert evaluate(capsys, export(capsys, folder, tmp_path / "onnx"), *words) == pytest.approx(expected, rel=1e-5)


def test_documents_that_predict_nothing_are_left_out():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0]]),
        "position_ids": torch.tensor([[0, 1, 0, 1], [0, 1, 0, 1]]),
        "labels": torch.tensor([[-100, 6, -100, 8], [-100, 5, -100, -100]]),
    }
    found = list(documents_of(batch, pad_token_id=0, batch_size=2))
    assert [documents["input_ids"].tolist() for documents in found] == [[[5, 6], [7, 8]], [[9, 5]]]
    assert found[1]["attention_mask"].tolist() == [[1, 1]]


def test_an_objective_with_more_than_labels_is_refused():
    collator = PrefixLMCollator(vocab_size=16, pad_token_id=0, seed=0)
    batch = collator([{"input_ids": [3, 4, 5, 6]}])
    with pytest.raises(ValueError, match=r"^prefix_mask: an export is scored on documents by the objectives causal"):
        next(documents_of(batch, pad_token_id=0, batch_size=2))


def test_labels_of_another_shape_are_refused(tmp_path, capsys):
    folder = save(HEADS["sequence classification"][0], HEADS["sequence classification"][1], tmp_path / "model")
    model = HfxExportedModelForSequenceClassification.from_pretrained(export(capsys, folder, tmp_path / "onnx"))
    ids = torch.tensor([[5, 6, 7]])
    assert model(ids, labels=torch.tensor([1])).loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(model(ids).logits, torch.tensor([1])).item()
    )
    with pytest.raises(ValueError, match="is none of the classes"):
        model(ids, labels=torch.tensor([2]))
