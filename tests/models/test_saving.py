"""Save and reload: same checksum, same outputs, buffers recomputed; another architecture's weights are refused."""

import hashlib

import pytest
import torch
from models.grid import FAMILIES, cases, padded, scores, typical_heads
from transformers import AutoConfig, AutoModel, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto import modeling_auto

import hf_ext  # noqa: F401  registers the Auto classes
from hf_ext.registry import FAMILIES as AUTO_CLASSES


SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
OF_OTHERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
}
# transformers' table of names -> the head that stands there
TABLES = {
    "MODEL_MAPPING_NAMES": "body",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "sequence",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "token",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "question",
    "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES": "choice",
}
TEXT_TABLES = {"decoder": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "encoder": "MODEL_FOR_MASKED_LM_MAPPING_NAMES"}

over_families = pytest.mark.parametrize("family", FAMILIES)


def make(family: str, head: str = "text", **options):
    return FAMILIES[family].make(head, **options)


def auto_class_of(model_class: type):
    config_class = model_class.config_class
    return next(auto for auto, model in AUTO_CLASSES[config_class] if model is model_class)


def batch_for(family: str, head: str = "text") -> dict:
    documents = FAMILIES[family].documents(head)
    inputs = [{name: value for name, value in d.items() if name.endswith("input_ids")} for d in documents]
    return padded(inputs)


def checksum(model) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def assert_reloads(model, folder, batch: dict):
    reloaded = auto_class_of(type(model)).from_pretrained(folder)
    assert type(reloaded) is type(model)
    assert reloaded.dtype == model.dtype
    assert not reloaded.training
    assert checksum(reloaded) == checksum(model)
    assert torch.equal(scores(reloaded(**batch)), scores(model(**batch)))
    for (name, buffer), (_, other) in zip(model.named_buffers(), reloaded.named_buffers(), strict=True):
        assert buffer.dtype == other.dtype == torch.float32, name
        assert torch.equal(buffer, other), name
    return reloaded


@pytest.mark.parametrize(("family", "name"), list(dict.fromkeys((case.values[0], case.values[1]) for case in cases())))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_reload_is_the_same_model(family, name, dtype, tmp_path):
    for tied in (False, True):
        for max_shard_size in ("5GB", "20KB"):
            folder = tmp_path / f"{tied}-{max_shard_size}"
            model = make(family, **{**FAMILIES[family].variants[name], "tie_word_embeddings": tied}).to(dtype)
            model.save_pretrained(folder, max_shard_size=max_shard_size)
            assert (folder / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")
            reloaded = assert_reloads(model, folder, batch_for(family))
            inputs, outputs = reloaded.get_input_embeddings(), reloaded.get_output_embeddings()
            assert (inputs.weight.data_ptr() == outputs.weight.data_ptr()) == tied


@pytest.mark.parametrize(("family", "name", "head"), typical_heads())
@torch.no_grad()
def test_every_head(family, name, head, tmp_path):
    options = FAMILIES[family].variants[name]
    model = make(family, head, **options)
    model.save_pretrained(tmp_path / "whole")
    reloaded = assert_reloads(model, tmp_path / "whole", batch_for(family, head))
    assert reloaded.config.to_dict() | {"_name_or_path": ""} == AutoConfig.from_pretrained(
        tmp_path / "whole"
    ).to_dict() | {"_name_or_path": ""}

    # its body alone, and a body under it: the head is new then, and nothing else is
    body = AutoModel.from_pretrained(tmp_path / "whole")
    assert type(body) is FAMILIES[family].heads["body"].model_class
    assert checksum(body) == checksum(model.base_model)
    body.save_pretrained(tmp_path / "body")
    with_new_head = type(model).from_pretrained(tmp_path / "body")
    assert checksum(with_new_head.base_model) == checksum(body)
    # what a language model has learnt, under another head
    text = make(family, **options)
    text.save_pretrained(tmp_path / "text")
    num_labels = {} if head in ("text", "question", "choice") else {"num_labels": 5}
    with_new_head = type(model).from_pretrained(tmp_path / "text", **num_labels)
    assert checksum(with_new_head.base_model) == checksum(text.base_model)
    if num_labels:
        assert scores(with_new_head(**batch_for(family, head))).shape[-1] == 5


@pytest.mark.parametrize("saved", OF_OTHERS)
@over_families
def test_another_model_type_is_refused(family, saved, tmp_path):
    OF_OTHERS[saved]().save_pretrained(tmp_path)
    for head in FAMILIES[family].heads.values():
        model_type = head.model_class.config_class.model_type
        with pytest.raises(ValueError, match=rf"model_type '{saved}'.*'{model_type}'"):
            head.model_class.from_pretrained(tmp_path)


@over_families
def test_another_family_s_model_is_refused(family, tmp_path):
    make(family).save_pretrained(tmp_path)
    for other, entry in FAMILIES.items():
        if other != family:
            with pytest.raises(ValueError, match="holds a model of model_type"):
                entry.heads["text"].model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("saved", "asked", "missing"),
    [
        (
            {},
            {"qk_norm": "head"},
            r"4 of its weights are not there \(first: (model\.)?layers.0.self_attn.k_norm.weight\)",
        ),
        ({"qk_norm": "head"}, {}, r"4 weights there are not its own \(first: model.layers.0.self_attn.k_norm.weight\)"),
        ({}, {"num_hidden_layers": 3}, r"\d+ of its weights are not there"),
        ({"num_hidden_layers": 3}, {}, r"\d+ weights there are not its own"),
        ({}, {"mlp_type": "plain"}, "2 weights there are not its own"),
    ],
    ids=str,
)
@over_families
def test_weights_that_don_t_match_the_config_are_refused(family, saved, asked, missing, tmp_path):
    make(family, **saved).save_pretrained(tmp_path)
    config = make(family, **asked).config
    for head in ("text", "body", "token"):
        with pytest.raises(ValueError, match=missing):
            FAMILIES[family].heads[head].model_class.from_pretrained(tmp_path, config=config)


@over_families
def test_weights_of_another_size_are_refused(family, tmp_path):
    make(family).save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match=r"size|mismatch"):
        FAMILIES[family].heads["text"].model_class.from_pretrained(tmp_path, config=make(family, hidden_size=16).config)


@over_families
def test_loading_info_is_still_given(family, tmp_path):
    model_class = FAMILIES[family].heads["text"].model_class
    make(family).save_pretrained(tmp_path)
    _, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    # and whoever asks for it is not refused
    config = make(family, num_hidden_layers=3).config
    _, info = model_class.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert len(info["missing_keys"]) == 9
    assert all(".layers.2." in name for name in info["missing_keys"])


@over_families
@torch.no_grad()
def test_other_sizes_start_anew_where_asked_for(family, tmp_path):
    saved = make(family, tie_word_embeddings=True)
    saved.save_pretrained(tmp_path)
    config = make(family, vocab_size=50, tie_word_embeddings=True).config
    for head in ("text", "body"):
        model = (
            FAMILIES[family]
            .heads[head]
            .model_class.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
        )
        assert model.get_input_embeddings().weight.shape[0] == 50
        assert torch.equal(model.base_model.layers[0].mlp.up_proj.weight, saved.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("tied", [False, True])
@over_families
@torch.no_grad()
def test_resized_embeddings(family, tied, tmp_path):
    """Rows that were there say the same; new ones can be read, predicted, trained and saved."""
    model = make(family, tie_word_embeddings=tied, lm_head_bias=True)
    batch = batch_for(family)
    expected = scores(model(**batch))
    model.resize_token_embeddings(103)
    assert model.config.vocab_size == 103
    assert model.lm_head.bias.shape == (103,)
    got = scores(model(**batch))
    assert got.shape[-1] == 103
    assert torch.equal(got[..., :97], expected)
    batch["input_ids"][0, 0] = 102
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.enable_grad():
        model.train()(**batch, labels=labels).loss.backward()
    assert model.lm_head.weight.grad[97:].abs().sum() > 0
    assert (model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()) == tied
    model.eval().save_pretrained(tmp_path)
    assert_reloads(model, tmp_path, batch)


@over_families
def test_transformers_knows_by_name_what_each_class_is_for(family):
    heads = FAMILIES[family].heads
    model_type = FAMILIES[family].config_class.model_type
    tables = {table: head for table, head in TABLES.items() if head in heads} | {TEXT_TABLES[family]: "text"}
    for table, head in tables.items():
        assert getattr(modeling_auto, table)[model_type] == heads[head].model_class.__name__
