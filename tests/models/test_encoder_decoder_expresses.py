"""Someone else's models: transformers' own encoder-decoders, weight by weight, as configurations of ours.

Each case says how their config reads as ours and how their names read as ours; logits, every gradient and texts must agree.
"""

import re

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_ext.models import (
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderDecoderForQuestionAnswering,
    HfxEncoderDecoderForSequenceClassification,
)


# fp32: the same products, summed in another order where attention or norms are written differently
LOGITS = {"atol": 1e-5, "rtol": 1e-5}
# gradients of order 0.1 to 10, through as many sums again
GRADIENT = {"atol": 1e-5, "rtol": 1e-4}

T5_SIZES = {"vocab_size": 97, "d_model": 32, "d_ff": 48, "num_heads": 4, "d_kv": 12, "num_layers": 3}
T5_SIZES |= {
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
T5_OURS = {
    "intermediate_size": 48,
    "head_dim": 12,
    "encoder_layers": 3,
    "num_hidden_layers": 2,
    "position_embedding_type": "relative",
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "query_pre_attn_scalar": 1,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
T5_NAMES = {
    r"^(encoder|decoder)\.": r"model.\1.",
    r"block\.0\.layer\.0\.SelfAttention\.relative_attention_bias": "position_bias.relative_attention_bias",
    r"\.block\.": ".layers.",
    r"layer\.0\.SelfAttention\.(\w)\b": r"self_attn.\1_proj",
    r"layer\.1\.EncDecAttention\.(\w)\b": r"cross_attn.\1_proj",
    r"layer\.0\.layer_norm": "input_layernorm",
    r"(model\.decoder.*)layer\.1\.layer_norm": r"\1pre_cross_attention_layernorm",
    r"layer\.[12]\.layer_norm": "post_attention_layernorm",
    r"layer\.[12]\.DenseReluDense\.wi_0": "mlp.gate_proj",
    r"layer\.[12]\.DenseReluDense\.wi(_1)?\b": "mlp.up_proj",
    r"layer\.[12]\.DenseReluDense\.wo": "mlp.down_proj",
    r"final_layer_norm": "norm",
}

BART_SIZES = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
    "init_std": 0.25,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}
BART_OURS = {
    "intermediate_size": 48,
    "encoder_layers": 2,
    "num_hidden_layers": 3,
    "norm_type": "layernorm",
    "norm_eps": 1e-5,
    "mlp_type": "plain",
    "hidden_act": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
    "lm_head_bias": True,
    "position_embedding_type": "learned",
    "max_position_embeddings": 40,
    "embedding_norm": True,
    "block_type": "post_norm",
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
BART_NAMES = {
    r"\.out_proj": ".o_proj",
    r"encoder_attn_layer_norm": "post_cross_attention_layernorm",
    r"encoder_attn\.": "cross_attn.",
    r"self_attn_layer_norm": "post_attention_layernorm",
    r"final_layer_norm": "post_feedforward_layernorm",
    r"\.fc1\.": ".mlp.up_proj.",
    r"\.fc2\.": ".mlp.down_proj.",
    r"layernorm_embedding": "embedding_norm",
    r"classification_head.dense": "head.dense",
    r"classification_head.o_proj": "classifier",
}
MBART_NAMES = BART_NAMES | {
    r"encoder_attn_layer_norm": "pre_cross_attention_layernorm",
    r"self_attn_layer_norm": "input_layernorm",
    r"final_layer_norm": "post_attention_layernorm",
    r"(encoder|decoder)\.layer_norm": r"\1.norm",
}

# name -> their class, their config, our options, renames in their order
CASES = {
    "t5": (
        T5ForConditionalGeneration,
        T5Config(**T5_SIZES),
        {**T5_OURS, "mlp_type": "plain", "hidden_act": "relu", "output_multiplier": 32**-0.5},
        T5_NAMES,
    ),
    "t5 v1.1": (
        T5ForConditionalGeneration,
        T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        {**T5_OURS, "hidden_act": "gelu_new"},
        T5_NAMES,
    ),
    "ul2": (
        T5ForConditionalGeneration,
        T5Config(**T5_SIZES, feed_forward_proj="gated-silu", tie_word_embeddings=False),
        T5_OURS,
        T5_NAMES,
    ),
    "mt5": (
        MT5ForConditionalGeneration,
        MT5Config(**T5_SIZES),
        {**T5_OURS, "hidden_act": "gelu_new"},
        T5_NAMES,
    ),
    "bart": (
        BartForConditionalGeneration,
        BartConfig(**BART_SIZES),
        {**BART_OURS, "decoder_start_token_id": 2},
        BART_NAMES,
    ),
    "mbart": (
        MBartForConditionalGeneration,
        MBartConfig(**BART_SIZES, scale_embedding=True, decoder_start_token_id=5),
        {
            **BART_OURS,
            "block_type": "pre_norm",
            "embedding_multiplier": 32**0.5,
            "decoder_start_token_id": 5,
        },
        MBART_NAMES,
    ),
    "marian": (
        MarianMTModel,
        MarianConfig(
            **BART_SIZES, scale_embedding=True, activation_function="silu", pad_token_id=96, decoder_start_token_id=96
        ),
        {
            **BART_OURS,
            "position_embedding_type": "sinusoidal",
            "sinusoidal_interleave": False,
            "embedding_norm": False,
            "embedding_multiplier": 32**0.5,
            "hidden_act": "silu",
            "pad_token_id": 96,
            "eos_token_id": 0,
        },
        BART_NAMES,
    ),
    "marian, two vocabularies": (
        MarianMTModel,
        MarianConfig(
            **{**BART_SIZES, "vocab_size": 80},
            decoder_vocab_size=90,
            share_encoder_decoder_embeddings=False,
            scale_embedding=True,
            activation_function="silu",
            pad_token_id=70,
            decoder_start_token_id=70,
        ),
        {
            **BART_OURS,
            "vocab_size": 90,
            "encoder_vocab_size": 80,
            "share_embeddings": False,
            "position_embedding_type": "sinusoidal",
            "sinusoidal_interleave": False,
            "embedding_norm": False,
            "embedding_multiplier": 32**0.5,
            "hidden_act": "silu",
            "pad_token_id": 70,
            "eos_token_id": 0,
        },
        BART_NAMES,
    ),
}


def our_names(weights: dict, renames: dict) -> dict:
    """Their names as ours; one that ours doesn't have is left out."""
    result = {}
    for name, weight in weights.items():
        if name == "final_logits_bias":
            result["lm_head.bias"] = weight[0]
            continue
        for old, new in renames.items():
            name = re.sub(old, new, name)
        if name.endswith("embed_positions.weight"):
            weight = weight[2:]  # the first two are no one's
        result[name] = weight
    for name in ("shared.weight", "model.shared.weight"):
        result.pop(name, None)  # the sides have it too
    return result


def both(their_class, their_config, options: dict, renames: dict, our_class=HfxEncoderDecoderForConditionalGeneration):
    """Their model and ours with the same weights, in eval mode and eager attention."""
    torch.manual_seed(0)
    their_config._attn_implementation = "eager"
    theirs = their_class(their_config).eval()
    for parameter_name, parameter in theirs.named_parameters():
        # biases of zero and norms of one would hide what is left out; T5's own initialisation is small
        is_norm = "norm" in parameter_name and parameter_name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=1.0 if is_norm else 0.0, std=0.2)
    if hasattr(theirs, "final_logits_bias"):
        torch.nn.init.normal_(theirs.final_logits_bias)
    config = HfxEncoderDecoderConfig(
        **{"vocab_size": 97, "hidden_size": 32, "num_attention_heads": 4, **options},
        num_labels=theirs.config.num_labels,
    )
    ours = our_class._from_config(config, attn_implementation="eager").eval()
    weights = our_names(theirs.state_dict(), renames)
    if options["position_embedding_type"] == "sinusoidal":
        weights = {name: weight for name, weight in weights.items() if "embed_positions" not in name}
        for name, module in theirs.named_modules():
            if name.endswith("embed_positions"):  # theirs is a table, which the loop above has overwritten
                module.weight.data = module.create_weight()
    ours.load_state_dict(weights)  # strict: no weight is left over on either side
    return theirs, ours


def batch(vocab_size: int = 80) -> dict:
    """Two rows, the second padded on the right."""
    draw = torch.Generator().manual_seed(0)
    mask = (torch.arange(11) < torch.tensor([[11], [7]])).long()
    labels = torch.randint(3, 70, (2, 9), generator=draw)
    labels[1, 6:] = -100
    return {
        "input_ids": torch.randint(3, 70, (2, 11), generator=draw) * mask,
        "attention_mask": mask,
        "decoder_input_ids": torch.randint(3, 70, (2, 9), generator=draw),
        "labels": labels,
    }


def assert_same_gradients(theirs, ours, renames, skip_row: int | None = None):
    grads = {name: p.grad for name, p in theirs.named_parameters(remove_duplicate=False) if p.grad is not None}
    expected = our_names(grads, renames)
    found = {name: p.grad for name, p in ours.named_parameters(remove_duplicate=False) if p.grad is not None}
    assert set(expected) - {"lm_head.bias"} == set(found) - {"lm_head.bias"}
    assert len(found) > 40
    for name in expected:
        got, want = found[name].clone(), expected[name].clone()
        if skip_row is not None and got.shape[0] > skip_row and ("embed_tokens" in name or "lm_head" in name):
            got[skip_row], want[skip_row] = 0, 0
        torch.testing.assert_close(got, want, **GRADIENT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_same_logits_and_gradients(name):
    theirs, ours = both(*CASES[name])
    results = []
    for model in (theirs, ours):
        out = model(**batch())
        out.loss.backward()
        results.append((out.logits.detach(), out.loss.item()))
    torch.testing.assert_close(results[1][0], results[0][0], **LOGITS)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-6)
    assert results[0][0].abs().max() > 0.5  # not logits of nothing
    start_is_padding = ours.config.decoder_start_token_id == ours.config.pad_token_id
    # Marian's decoder starts with padding, whose embedding it never trains; ours does
    assert_same_gradients(theirs, ours, CASES[name][3], ours.config.pad_token_id if start_is_padding else None)


# mBART puts the text's last token, its language, first: there decoder_input_ids are to be given
@pytest.mark.parametrize("name", [name for name in CASES if name != "mbart"])
@torch.no_grad()
def test_labels_alone_are_shifted_as_theirs(name):
    theirs, ours = both(*CASES[name])
    inputs = {k: v for k, v in batch().items() if k != "decoder_input_ids"}
    assert ours(**inputs).loss.item() == pytest.approx(theirs(**inputs).loss.item(), rel=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_same_text(name, beams):
    theirs, ours = both(*CASES[name])
    config = GenerationConfig(
        max_new_tokens=10,
        num_beams=beams,
        pad_token_id=ours.config.pad_token_id,
        eos_token_id=ours.config.eos_token_id,
        decoder_start_token_id=ours.config.decoder_start_token_id,
        return_dict_in_generate=True,
        output_scores=True,
    )
    theirs.generation_config.forced_eos_token_id = None
    inputs = {k: v for k, v in batch().items() if k in ("input_ids", "attention_mask")}
    got, expected = (model.generate(**inputs, generation_config=config) for model in (ours, theirs))
    assert torch.equal(got.sequences, expected.sequences)
    if beams > 1:
        torch.testing.assert_close(got.sequences_scores, expected.sequences_scores, **LOGITS)


@pytest.mark.parametrize("task", ["classes", "answers"])
def test_bart_with_other_heads(task):
    inputs = batch()
    inputs["input_ids"][0, -1] = inputs["input_ids"][1, 6] = 2  # their classifier reads the last end of text
    inputs["input_ids"][1, 7:] = 1
    if task == "classes":
        classes = BartForSequenceClassification, HfxEncoderDecoderForSequenceClassification
        config, inputs["labels"] = BartConfig(**BART_SIZES, num_labels=5), torch.tensor([3, 0])
    else:
        classes = BartForQuestionAnswering, HfxEncoderDecoderForQuestionAnswering
        config = BartConfig(**BART_SIZES)
        inputs = {**inputs, "start_positions": torch.tensor([3, 1]), "end_positions": torch.tensor([9, 2])}
        del inputs["labels"]
    del inputs["decoder_input_ids"]
    options = {**CASES["bart"][2], "lm_head_bias": False}
    theirs, ours = both(classes[0], config, options, {**BART_NAMES}, classes[1])
    results = []
    for model in (theirs, ours):
        out = model(**inputs)
        if task == "classes":
            results.append(out.logits)
            out.loss.backward()
        else:
            real = inputs["attention_mask"].bool()
            results.append(torch.stack((out.start_logits[real], out.end_logits[real])))
            # of the first row, which has no padding: in theirs padding competes to be the answer
            torch.nn.functional.cross_entropy(out.start_logits[:1], inputs["start_positions"][:1]).backward()
    torch.testing.assert_close(results[1], results[0], **LOGITS)
    assert_same_gradients(theirs, ours, BART_NAMES)
