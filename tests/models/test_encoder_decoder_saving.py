"""Built, saved, reloaded, resized, the paper's model; and what can't be built is refused in one line."""

import hashlib

import pytest
import torch
from models.encoder_decoder_grid import VARIANTS, make_config, make_model, tokens
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import hf_ext  # noqa: F401  registers the Auto classes
from hf_ext.models import (
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderDecoderForQuestionAnswering,
    HfxEncoderDecoderForSequenceClassification,
    HfxEncoderDecoderModel,
    Transformer,
)
from hf_ext.models.parallel_plans import tensor_parallel_plan


# fp32: the same products in another order, on logits of order 10
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}
EMBEDDINGS = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")


def checksum(model) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(), decoder_input_ids=tokens(T=6, seed=1)).logits


def same_matrix(model, first: str, second: str) -> bool:
    return model.get_parameter(first).data_ptr() == model.get_parameter(second).data_ptr()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_reload_is_the_same_model(options, tmp_path):
    for shared in (True, False):
        if shared and "encoder_vocab_size" in options:
            continue
        for tied in (True, False):
            for dtype in (torch.float32, torch.bfloat16):
                changed = {**options, "share_embeddings": shared, "tie_word_embeddings": tied}
                model = make_model(**changed).to(dtype)
                model.save_pretrained(tmp_path, max_shard_size="30KB")
                reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
                assert type(reloaded) is HfxEncoderDecoderForConditionalGeneration
                assert reloaded.dtype == dtype
                assert checksum(reloaded) == checksum(model)
                assert torch.equal(logits(reloaded), logits(model))
                for each in (model, reloaded):
                    assert same_matrix(each, EMBEDDINGS[0], EMBEDDINGS[1]) == shared
                    assert same_matrix(each, EMBEDDINGS[1], EMBEDDINGS[2]) == tied
                for file in tmp_path.iterdir():
                    file.unlink()


def test_every_head_has_its_auto_class(tmp_path):
    heads = {
        AutoModel: HfxEncoderDecoderModel,
        AutoModelForSeq2SeqLM: HfxEncoderDecoderForConditionalGeneration,
        AutoModelForSequenceClassification: HfxEncoderDecoderForSequenceClassification,
        AutoModelForQuestionAnswering: HfxEncoderDecoderForQuestionAnswering,
    }
    for auto_class, model_class in heads.items():
        model = auto_class.from_config(make_config(num_labels=3)).eval()
        assert type(model) is model_class
        model.save_pretrained(tmp_path)
        reloaded = auto_class.from_pretrained(tmp_path)
        assert type(reloaded) is model_class
        assert checksum(reloaded) == checksum(model)
    reread = AutoConfig.from_pretrained(tmp_path)
    assert type(reread) is HfxEncoderDecoderConfig
    assert reread.is_encoder_decoder
    assert reread.decoder_start_token_id == 0


def test_a_body_is_taken_out_of_a_model_with_a_head(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path)
    ids = {"input_ids": tokens(), "decoder_input_ids": tokens(T=4)}
    assert torch.equal(body(**ids).last_hidden_state, model.model(**ids).last_hidden_state)


def test_other_weights_are_refused(tmp_path):
    sizes = {"vocab_size": 97, "d_model": 32, "d_ff": 48, "num_heads": 4, "d_kv": 8, "num_layers": 2}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"model_type 't5'.*'hfx_encoder_decoder'"):
        HfxEncoderDecoderForConditionalGeneration.from_pretrained(tmp_path / "t5")
    make_model().save_pretrained(tmp_path / "ours")
    for changes, message in (
        ({"encoder_layers": 4}, "9 of its weights are not there"),
        ({"encoder_layers": 2}, "9 weights there are not its own"),
        ({"qk_norm": "head"}, "14 of its weights are not there"),
        (
            {"share_embeddings": False},
            r"1 of its weights are not there \(first: (model\.)?encoder.embed_tokens.weight\)",
        ),
    ):
        for model_class in (HfxEncoderDecoderForConditionalGeneration, HfxEncoderDecoderModel):
            with pytest.raises(ValueError, match=message):
                model_class.from_pretrained(tmp_path / "ours", config=make_config(**changes))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_more_tokens_on_both_sides(shared, tied, tmp_path):
    model = make_model(share_embeddings=shared, tie_word_embeddings=tied, lm_head_bias=True)
    before = logits(model)
    model.resize_token_embeddings(105)
    assert model.config.vocab_size == 105
    assert {model.get_parameter(name).shape[0] for name in (*EMBEDDINGS, "lm_head.bias")} == {105}
    assert same_matrix(model, EMBEDDINGS[0], EMBEDDINGS[1]) == shared
    assert same_matrix(model, EMBEDDINGS[1], EMBEDDINGS[2]) == tied
    torch.testing.assert_close(logits(model)[..., :97], before, **TOLERANCE)
    model(torch.full((1, 3), 104), labels=torch.full((1, 2), 103)).loss.backward()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), logits(model))


def test_which_of_two_vocabularies_is_to_grow_is_not_guessed():
    with pytest.raises(ValueError, match="resize_token_embeddings: there are two vocabularies"):
        make_model(**VARIANTS["two vocabularies"]).resize_token_embeddings(105)


def test_each_side_reads_its_own_vocabulary():
    model = make_model(**VARIANTS["two vocabularies"])
    with pytest.raises(ValueError, match=r"input_ids: token id 61 is outside the vocabulary 0\.\.60"):
        model(torch.full((1, 3), 61), decoder_input_ids=torch.full((1, 3), 61))
    model(torch.full((1, 3), 60), decoder_input_ids=torch.full((1, 3), 96))
    with pytest.raises(ValueError, match="decoder_input_ids: token id 97 is outside"):
        model(torch.full((1, 3), 60), decoder_input_ids=torch.full((1, 3), 97))


def test_config_by_the_stack():
    config = make_config(**VARIANTS["encoder local, decoder global"], share_embeddings=False, encoder_vocab_size=61)
    encoder = config.get_text_config(encoder=True)
    assert (encoder.num_hidden_layers, encoder.vocab_size) == (3, 61)
    assert encoder.layer_types == config.encoder_layer_types
    assert config.get_text_config(decoder=True) is config
    assert config.decoder_layers == 2
    assert make_config(num_hidden_layers=5, encoder_layers=None).encoder_layers == 5
    changed = make_config()
    changed.encoder_layers = 4
    assert changed.encoder_layer_types == ["full_attention"] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_type": "parallel"}, "block_type='parallel': must be one of pre_norm, post_norm"),
        ({"encoder_vocab_size": 50}, "share_embeddings=True: encoder_vocab_size=50"),
        ({"encoder_layers": 0}, "encoder_layers=0: must be at least 1"),
        ({"encoder_layer_types": ["full_attention"]}, "encoder_layer_types: 1 names for encoder_layers=3"),
        ({"encoder_layer_types": ["sliding_attention"] * 3}, "sliding_window=None: must be given"),
        ({"encoder_layer_types": ["linear"] * 3}, "encoder_layer_types='linear': must be one of"),
        ({"decoder_start_token_id": 97}, "decoder_start_token_id=97: must be a token"),
        ({"output_multiplier": 0}, "output_multiplier=0: must be above 0"),
        ({"final_dropout": 1.0}, "final_dropout=1.0: must be at least 0 and below 1"),
        (
            {"encoder_vocab_size": 50, "share_embeddings": False, "pad_token_id": 60},
            "pad_token_id=60: must be a token of the encoder's vocabulary too",
        ),
    ],
    ids=str,
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_config(**options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": tokens()}, "decoder_input_ids, decoder_inputs_embeds: exactly one"),
        ({"decoder_input_ids": tokens()}, "input_ids, inputs_embeds: exactly one"),
        ({"input_ids": tokens(B=1), "decoder_input_ids": tokens(B=2)}, "encoder_outputs: 1 rows for 2 of the decoder"),
        (
            {"input_ids": tokens(), "attention_mask": torch.ones(2, 5), "decoder_input_ids": tokens()},
            "attention_mask: 5 columns for 13 tokens",
        ),
        ({"input_ids": tokens(), "labels": torch.full((2, 3), 97)}, "labels: 97 is outside the vocabulary"),
        (
            {"input_ids": tokens(), "decoder_input_ids": tokens(), "decoder_position_ids": torch.arange(3)[None]},
            r"decoder_position_ids: shape \(1, 3\) for 13 tokens",
        ),
    ],
    ids=str,
)
def test_inputs_that_don_t_fit_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**inputs)


@pytest.mark.parametrize("name", ["decoder_input_ids", "decoder_attention_mask"])
def test_heads_of_one_text_read_that_alone(name):
    model = make_model(model_class=HfxEncoderDecoderForSequenceClassification)
    with pytest.raises(ValueError, match=f"{name}: this head's decoder reads input_ids"):
        model(tokens(), **{name: tokens()})


def torch_names(weights: dict) -> dict:
    """torch.nn.Transformer's weights by our names: it keeps query, key and value of an attention together."""
    renames = {
        "self_attn.out_proj": "self_attn.o_proj",
        "multihead_attn.out_proj": "cross_attn.o_proj",
        "linear1": "mlp.up_proj",
        "linear2": "mlp.down_proj",
        "norm1": "post_attention_layernorm",
    }
    result = {}
    for name, weight in weights.items():
        last = {"norm2": "post_cross_attention_layernorm", "norm3": "post_feedforward_layernorm"}
        if name.startswith("encoder"):
            last = {"norm2": "post_feedforward_layernorm"}
        for old, new in (renames | last).items():
            name = name.replace(old, new)
        if "in_proj" in name:
            name = name.replace("multihead_attn", "cross_attn")
            for letter, part in zip("qkv", weight.chunk(3), strict=True):
                result[f"model.{name.replace('in_proj_', f'{letter}_proj.')}"] = part
        else:
            result[f"model.{name}"] = weight
    return result


def test_the_paper_s_model_is_torch_s():
    """Against torch.nn.Transformer, which has biases in its attention and, unlike the paper, a last norm."""
    torch.manual_seed(0)
    theirs = torch.nn.Transformer(32, 4, 2, 3, 48, dropout=0.0, batch_first=True, layer_norm_eps=1e-6).eval()
    theirs.encoder.norm = theirs.decoder.norm = None
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = Transformer(61, 97, 32, 4, 2, 3, 48, 0.1, attention_bias=True, bos_token_id=1, eos_token_id=2).eval()
    weights = torch_names(theirs.state_dict())
    for name in EMBEDDINGS:
        weights[name] = ours.state_dict()[name]
    ours.load_state_dict(weights)

    source, target = tokens(T=9), tokens(T=6, seed=1)
    source[1, 7:] = 0
    padding = source == 0
    embedded = []
    for stack, ids in ((ours.model.encoder, source), (ours.model.decoder, target)):
        embeddings = stack.embed_tokens(ids) * 32**0.5
        places, dims = torch.arange(ids.shape[1])[:, None], torch.arange(0, 32, 2)
        angles = places / 10_000 ** (dims / 32)
        positions = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # sec. 3.5
        embedded.append(embeddings + positions)
    states = theirs(
        *embedded,
        tgt_mask=theirs.generate_square_subsequent_mask(6),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    expected = states @ ours.model.decoder.embed_tokens.weight.T
    got = ours(source, attention_mask=(~padding).long(), decoder_input_ids=target).logits
    torch.testing.assert_close(got, expected, **TOLERANCE)
    assert ours.config.decoder_start_token_id == 1


def test_the_paper_s_sizes():
    with torch.device("meta"):
        base = Transformer(share_embeddings=True)
    assert sum(p.numel() for p in base.parameters()) == pytest.approx(63e6, rel=0.01)  # its table 3: 65
    assert same_matrix(Transformer(50, 50, 16, 2, 1, 1, 8, share_embeddings=True), EMBEDDINGS[0], EMBEDDINGS[2])
    assert not same_matrix(Transformer(50, 50, 16, 2, 1, 1, 8), EMBEDDINGS[0], EMBEDDINGS[1])
    with pytest.raises(ValueError, match="share_embeddings=True: src_vocab_size=50 and tgt_vocab_size=60 differ"):
        Transformer(50, 60, share_embeddings=True)


def test_plan_names_matrices_that_there_are():
    model = make_model().model
    plan = model.config.base_model_tp_plan
    # embeddings that both sides share are two names of one matrix
    names = {name.removesuffix(".weight") for name, _ in model.named_parameters(remove_duplicate=False)}
    for pattern in plan:
        assert pattern.replace("*", "1") in names
    # each stack's layers, the matrices of the cross-attention, and two embeddings
    assert len(plan) == 2 * len(tensor_parallel_plan(model.config)) + 4 + 2


@torch.no_grad()
def test_classifier_in_its_pipelines():
    """Of the heads here transformers has pipelines left for the classifier: texts of other lengths change nothing."""
    from transformers import pipeline

    from hf_ext.data import train_tokenizer

    texts = ["words", "of other words and more of words"]
    tokenizer = train_tokenizer(texts * 20, vocab_size=270, model_max_length=64)
    model = make_model(
        model_class=HfxEncoderDecoderForSequenceClassification,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        num_labels=3,
        label2id={"contradiction": 0, "neutral": 1, "entailment": 2},
        id2label={0: "contradiction", 1: "neutral", 2: "entailment"},
    )
    found = pipeline("text-classification", model=model, tokenizer=tokenizer)(texts, batch_size=2, top_k=None)
    for text, scores in zip(texts, found, strict=True):
        expected = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0].softmax(-1)
        got = {score["label"]: score["score"] for score in scores}
        torch.testing.assert_close(
            torch.tensor([got[model.config.id2label[i]] for i in range(3)]), expected, **TOLERANCE
        )
    guess = pipeline("zero-shot-classification", model=model, tokenizer=tokenizer)(texts[1], ["words", "more"])
    assert sum(guess["scores"]) == pytest.approx(1.0)
