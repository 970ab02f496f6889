"""Heads: against someone else's on the same weights, in their Auto classes and pipelines, accumulated = whole."""

import pytest
import torch
from models.decoder_grid import SIZES, VARIANTS, make_config, tokens
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    pipeline,
)

import hf_ext  # noqa: F401  registers the Auto classes
from hf_ext.data import train_tokenizer


# fp32: two layers, sums in another order
FP32 = {"atol": 1e-5, "rtol": 1e-5}
GRADIENT = {"atol": 1e-5, "rtol": 1e-4}

AUTO = {
    "sequence": (AutoModelForSequenceClassification, LlamaForSequenceClassification),
    "token": (AutoModelForTokenClassification, LlamaForTokenClassification),
    "question": (AutoModelForQuestionAnswering, LlamaForQuestionAnswering),
}


def make(head: str, seed=0, **options):
    torch.manual_seed(seed)
    return AUTO[head][0].from_config(make_config(num_labels=3, **options)).eval()


def padded_batch():
    ids, lengths = tokens(B=4, T=13), torch.tensor([13, 9, 6, 11])
    mask = (torch.arange(13) < lengths[:, None]).long()
    return ids * mask, mask


def labels_for(head: str, kind: str = "classes"):
    generator = torch.Generator().manual_seed(5)
    if head == "token":
        labels = torch.randint(0, 3, (4, 13), generator=generator).masked_fill(padded_batch()[1] == 0, -100)
        labels[1, 2:] = -100
        return {"labels": labels}
    if head == "question":
        return {"start_positions": torch.tensor([1, 0, 3, 2]), "end_positions": torch.tensor([4, 13, 5, 3])}
    if kind == "classes":
        return {"labels": torch.tensor([0, 2, 1, 2])}
    return {"labels": torch.rand(4, 3, generator=generator).round() if kind == "several" else torch.randn(4, 3)}


def logits_of(out):
    return torch.stack((out.start_logits, out.end_logits)) if "start_logits" in out else out.logits


@pytest.mark.parametrize("kind", ["classes", "several", "numbers"])
@pytest.mark.parametrize("head", AUTO)
def test_heads_are_llama_s(head, kind):
    ours = make(head)
    if kind != "classes" and head != "sequence":
        return
    config = LlamaConfig(**SIZES, num_labels=3, rms_norm_eps=1e-6)
    theirs = AUTO[head][1](config).eval()
    weights = {
        k.replace("model.", "transformer.", 1) if head == "question" else k: v for k, v in ours.state_dict().items()
    }
    theirs.load_state_dict(weights)
    for model in (ours, theirs):
        model.config.problem_type = {"numbers": "regression", "several": "multi_label_classification"}.get(kind)
    ids, mask = padded_batch()
    if head == "question":  # there, padding competes for the answer
        ids, mask = tokens(B=4, T=13), torch.ones(4, 13, dtype=torch.long)
    labels = labels_for(head, kind)
    results = []
    for model in (ours, theirs):
        out = model(ids, attention_mask=mask, **labels)
        out.loss.backward()
        logits = logits_of(out).detach()
        if head != "sequence":  # what stands on padding is nobody's
            logits = logits.movedim(0, -1)[mask.bool()] if head == "question" else logits[mask.bool()]
        results.append((logits, out.loss.detach(), model.get_input_embeddings().weight.grad))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **FP32)


@pytest.mark.parametrize("head", ["sequence", "token"])
@pytest.mark.parametrize("kind", ["classes", "several", "numbers"])
def test_accumulated_equals_whole(head, kind):
    model = make(head).train()
    model.config.problem_type = {"numbers": "regression"}.get(kind)
    ids, mask = padded_batch()
    labels = labels_for(head, kind)["labels"]
    model(ids, attention_mask=mask, labels=labels).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    num_items = int((labels != -100).sum())
    for row in range(4):
        part = slice(row, row + 1)
        model(ids[part], attention_mask=mask[part], labels=labels[part], num_items_in_batch=num_items).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], **GRADIENT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["llama", "ALiBi, norm after the embeddings", "learned positions"])
@torch.no_grad()
def test_class_does_not_depend_on_the_padding(name):
    model = make("sequence", **VARIANTS[name])
    ids, mask = padded_batch()
    alone = torch.cat([model(ids[r : r + 1, : mask[r].sum()]).logits for r in range(4)])
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, alone, **FP32)
    left = torch.stack([row.roll(13 - int(n)) for row, n in zip(ids, mask.sum(1), strict=True)])
    left_mask = mask.flip(-1)
    torch.testing.assert_close(model(left, attention_mask=left_mask).logits, alone, **FP32)
    torch.testing.assert_close(model(ids).logits, alone, **FP32)  # told by the padding token


@torch.no_grad()
def test_answer_does_not_depend_on_the_padding():
    model = make("question")
    ids, mask = padded_batch()
    spans = {"start_positions": torch.tensor([1, 0, 3, 2]), "end_positions": torch.tensor([4, 8, 5, 3])}
    alone = [
        model(ids[r : r + 1, : mask[r].sum()], **{k: v[r : r + 1] for k, v in spans.items()}).loss for r in range(4)
    ]
    torch.testing.assert_close(model(ids, attention_mask=mask, **spans).loss, torch.stack(alone).mean(), **FP32)


@pytest.mark.parametrize("head", AUTO)
@torch.no_grad()
def test_save_and_reload(head, tmp_path):
    model = make(head)
    model.save_pretrained(tmp_path)
    reloaded = AUTO[head][0].from_pretrained(tmp_path)
    assert type(reloaded) is type(model)
    assert torch.equal(logits_of(reloaded(tokens())), logits_of(model(tokens())))


def test_transformers_knows_by_name_what_each_class_is_for():
    from transformers.models.auto import modeling_auto

    for table, model_class in {
        "MODEL_MAPPING_NAMES": "HfxDecoderModel",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "HfxDecoderForCausalLM",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "HfxDecoderForSequenceClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "HfxDecoderForTokenClassification",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "HfxDecoderForQuestionAnswering",
    }.items():
        assert getattr(modeling_auto, table)["hfx_decoder"] == model_class


def test_a_language_model_s_body_under_a_new_head(tmp_path):
    from models.decoder_grid import make_model

    language_model = make_model()
    language_model.save_pretrained(tmp_path)
    for auto, _ in AUTO.values():
        with_head = auto.from_pretrained(tmp_path, num_labels=3)
        assert torch.equal(with_head.model.embed_tokens.weight, language_model.model.embed_tokens.weight)


def test_pipelines():
    tokenizer = train_tokenizer(
        ["the quick brown fox jumps over the lazy dog. where is the fox?"] * 4, vocab_size=300, model_max_length=64
    )
    options = {"vocab_size": len(tokenizer), "pad_token_id": 1, "eos_token_id": 0}
    texts = ["the quick fox", "the dog"]
    classes = pipeline("text-classification", model=make("sequence", **options), tokenizer=tokenizer)(
        texts, batch_size=2
    )
    assert [set(c) for c in classes] == [{"label", "score"}] * 2
    single = pipeline("text-classification", model=make("sequence", **options), tokenizer=tokenizer)(texts)
    assert [c["score"] for c in classes] == pytest.approx([c["score"] for c in single], abs=1e-5)
    entities = pipeline("token-classification", model=make("token", **options), tokenizer=tokenizer)(texts[0])
    assert {"entity", "score", "index", "word"} <= set(entities[0])


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        ("sequence", torch.tensor([0, 3, 1, 1]), "labels: 3 is none of the classes 0..2; set config.num_labels"),
        ("sequence", torch.tensor([0, 1]), r"labels: shape \(2,\) must be \(4,\)"),
        ("sequence", torch.rand(4, 2), r"labels: shape \(4, 2\) must be \(4, 3\) for problem_type='multi_label"),
        ("token", torch.full((4, 13), -100), "labels: every one is -100"),
        ("token", torch.zeros(4, 12, dtype=torch.long), r"labels: shape \(4, 12\) must be \(4, 13\)"),
    ],
)
def test_nonsense(head, labels, message):
    with pytest.raises(ValueError, match=message):
        make(head)(*padded_batch(), labels=labels)


def test_rows_without_an_end_are_refused():
    with pytest.raises(ValueError, match="attention_mask: missing for 2 rows, and there is no pad_token_id"):
        make("sequence", pad_token_id=None)(tokens())
    with pytest.raises(ValueError, match="problem_type='sorting': must be one of"):
        make("sequence", problem_type="sorting")
