"""Someone else's encoders: transformers' own architectures, weight by weight, as configurations of ours, with every head.

Each case says how their config reads as ours and how their names read as ours; logits and gradients must agree.
"""

import copy

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    RobertaConfig,
)

from hf_ext.models import HfxEncoderConfig


# fp32: the same products, summed in another order where attention or norms are written differently
LOGITS = {"atol": 1e-5, "rtol": 1e-5}
GRADIENT = {"atol": 1e-5, "rtol": 1e-4}

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
    "pad_token_id": 1,
}
THEIR_SIZES = SIZES | {"num_labels": 3, "max_position_embeddings": 66}
# BERT's block and embeddings, which RoBERTa and DistilBERT share
BERT = {
    "block_type": "post_norm",
    "norm_bias": True,
    "norm_eps": 1e-12,
    "mlp_type": "plain",
    "mlp_bias": True,
    "attention_bias": True,
    "position_embedding_type": "learned",
    "type_vocab_size": 2,
}
BERT_NAMES = {
    ".encoder.layer.": ".layers.",
    "embeddings.word_embeddings": "embed_tokens",
    "embeddings.position_embeddings": "embed_positions",
    "embeddings.token_type_embeddings": "embed_segments",
    "embeddings.LayerNorm": "embedding_norm",
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.o_proj",
    "attention.output.LayerNorm": "post_attention_layernorm",
    "intermediate.dense": "mlp.up_proj",
    "output.dense": "mlp.down_proj",
    "output.LayerNorm": "post_feedforward_layernorm",
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions.decoder": "lm_head",
    "bert.pooler.dense": "head.dense",
    "bert.": "model.",
}
ROBERTA_NAMES = {
    "lm_head.dense": "head.dense",
    "lm_head.layer_norm": "head.norm",
    "lm_head.decoder": "lm_head",
    "classifier.dense": "head.dense",
    "classifier.out_proj": "classifier",
    "roberta.pooler.dense": "head.dense",
    "roberta.": "bert.",
} | BERT_NAMES
DISTILBERT_NAMES = {
    "transformer.layer": "layers",
    "embeddings.word_embeddings": "embed_tokens",
    "embeddings.position_embeddings": "embed_positions",
    "embeddings.LayerNorm": "embedding_norm",
    "attention.q_lin": "self_attn.q_proj",
    "attention.k_lin": "self_attn.k_proj",
    "attention.v_lin": "self_attn.v_proj",
    "attention.out_lin": "self_attn.o_proj",
    "sa_layer_norm": "post_attention_layernorm",
    "ffn.lin1": "mlp.up_proj",
    "ffn.lin2": "mlp.down_proj",
    "output_layer_norm": "post_feedforward_layernorm",
    "vocab_transform": "head.dense",
    "vocab_layer_norm": "head.norm",
    "vocab_projector": "lm_head",
    "pre_classifier": "head.dense",
    "distilbert.": "model.",
}
MODERNBERT_NAMES = {
    "embeddings.tok_embeddings": "embed_tokens",
    "embeddings.norm": "embedding_norm",
    "final_norm": "norm",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attn.Wo": "self_attn.o_proj",
    "mlp.Wo": "mlp.down_proj",
    "decoder.": "lm_head.",
}


def drop_offset(weights: dict) -> dict:
    """RoBERTa's positions begin after the padding token's id: at 2."""
    return {n: w[2:] if n.endswith("embed_positions.weight") else w for n, w in weights.items()}


def shorten_positions(weights: dict) -> dict:
    return {n: w[:64] if n.endswith("embed_positions.weight") else w for n, w in weights.items()}


def unfuse_modernbert(weights: dict) -> dict:
    """ModernBERT keeps queries, keys and values together, and gate and up; its question answering head is `classifier`."""
    result = {}
    for name, weight in weights.items():
        if "attn.Wqkv" in name:
            for letter, part in zip("qkv", weight.chunk(3), strict=True):
                result[name.replace("attn.Wqkv", f"self_attn.{letter}_proj")] = part
        elif "mlp.Wi" in name:
            for letter, part in zip(("gate", "up"), weight.chunk(2), strict=True):
                result[name.replace("Wi", f"{letter}_proj")] = part
        else:
            result[name] = weight
    return result


# name -> their config, our options, renames in their order, a change of their weights
CASES = {
    "bert": (BertConfig(**THEIR_SIZES), BERT, BERT_NAMES, shorten_positions),
    "bert, ReLU": (
        BertConfig(**THEIR_SIZES, hidden_act="relu"),
        BERT | {"hidden_act": "relu"},
        BERT_NAMES,
        shorten_positions,
    ),
    "roberta": (
        RobertaConfig(**THEIR_SIZES, type_vocab_size=1, layer_norm_eps=1e-5),
        BERT | {"type_vocab_size": 1, "norm_eps": 1e-5},
        ROBERTA_NAMES,
        drop_offset,
    ),
    "distilbert": (
        DistilBertConfig(
            vocab_size=97,
            dim=32,
            hidden_dim=48,
            n_layers=3,
            n_heads=4,
            max_position_embeddings=66,
            initializer_range=0.25,
            pad_token_id=1,
            num_labels=3,
        ),
        BERT | {"type_vocab_size": 0, "classifier_activation": "relu"},
        DISTILBERT_NAMES,
        shorten_positions,
    ),
    "modernbert": (
        ModernBertConfig(
            **THEIR_SIZES,
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
            local_attention=6,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        ),
        {
            "sliding_window": 4,  # 3 to each side, and itself
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
            "norm_before_first_layer": False,
            "classifier_activation": "gelu",
            "classifier_norm": True,
            "classifier_on_tokens": True,
            "head_bias": False,
        },
        MODERNBERT_NAMES,
        unfuse_modernbert,
    ),
    "modernbert, mean": (
        ModernBertConfig(
            **THEIR_SIZES,
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
            classifier_pooling="mean",
            layer_types=["full_attention"] * 3,
        ),
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 160_000.0},
            "norm_before_first_layer": False,
            "classifier_pooling": "mean",
            "classifier_activation": "gelu",
            "classifier_norm": True,
            "classifier_on_tokens": True,
            "head_bias": False,
        },
        MODERNBERT_NAMES,
        unfuse_modernbert,
    ),
}
HEADS = {
    "masked": AutoModelForMaskedLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "question": AutoModelForQuestionAnswering,
    "choice": AutoModelForMultipleChoice,
}


def translate(weights: dict, names: dict, change) -> dict:
    result = {}
    for name, weight in weights.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        result[name] = weight
    return change(result)


def load(case: str, head: str, attention: str):
    """Their model and ours with the same weights, in eval mode."""
    config, options, names, change = CASES[case]
    config = copy.deepcopy(config)
    config.num_labels = 2 if head == "question" else 3  # theirs reads the two scores of a token off it
    torch.manual_seed(0)
    theirs = HEADS[head].from_config(config, attn_implementation=attention).eval()
    for parameter in theirs.parameters():
        if parameter.ndim == 1:  # biases start at 0, norms at 1: of no use to tell them apart
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.min() == 1 else 0.0, std=0.2)
    ours = (
        HEADS[head]
        .from_config(HfxEncoderConfig(**SIZES, **options, num_labels=3, attn_implementation=attention))
        .eval()
    )
    weights = translate(dict(theirs.state_dict()), names, change)
    if head == "question" and case.startswith("modernbert"):
        weights = {n.replace("classifier.", "qa_outputs."): w for n, w in weights.items()}
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert not missing
    # what theirs has besides: a pooler that the head doesn't read, a second name of a tied bias
    assert all("position_ids" in n or "pooler" in n or n.endswith(("bias", "head.dense.weight")) for n in unexpected)
    return theirs, ours


def inputs(head: str) -> dict:
    """Padded on the right; with BERT's cls token's place first."""
    shape = (2, 3, 13) if head == "choice" else (4, 13)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 97, shape, generator=generator)
    lengths = torch.randint(5, 14, shape[:-1], generator=generator)
    mask = (torch.arange(13) < lengths[..., None]).long()
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask}


def scores(output, mask) -> list[torch.Tensor]:
    """What is predicted for rows, and for tokens that aren't padding."""
    found = [output[n] for n in ("logits", "start_logits", "end_logits") if output.get(n) is not None]
    return [s[mask.bool()] if s.shape[: mask.ndim] == mask.shape else s for s in found]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("case", CASES)
def test_same_numbers(case, head, attention):
    theirs, ours = load(case, head, attention)
    batch = inputs(head)
    if CASES[case][1].get("type_vocab_size") == 2:
        batch["token_type_ids"] = (batch["input_ids"] % 2) * batch["attention_mask"]
    expected, got = theirs(**batch), ours(**batch)
    for theirs_found, ours_found in zip(
        scores(expected, batch["attention_mask"]), scores(got, batch["attention_mask"]), strict=True
    ):
        assert theirs_found.std() > 0.1
        torch.testing.assert_close(ours_found, theirs_found, **LOGITS)
    sum(s.square().sum() for s in scores(expected, batch["attention_mask"])).backward()
    sum(s.square().sum() for s in scores(got, batch["attention_mask"])).backward()
    _, _, names, change = CASES[case]
    gradients = translate({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}, names, change)
    scale = max(float(g.abs().max()) for g in gradients.values())
    own = dict(ours.named_parameters())
    compared = 0
    for name, gradient in gradients.items():
        if name in own:
            torch.testing.assert_close(
                own[name].grad / scale, gradient / scale, **GRADIENT, msg=lambda m, n=name: f"{n}: {m}"
            )
            compared += 1
    assert compared > 0.9 * len(own) - 2
