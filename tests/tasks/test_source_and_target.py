"""Prompts whose text alone is cut, rows of encoder-decoders and decoders, and what can't be meant."""

import logging

import pytest
import torch
from datasets import Dataset

from hf_ext import HfxDecoderConfig, HfxEncoderConfig, HfxEncoderDecoderConfig
from hf_ext.data import train_tokenizer
from hf_ext.tasks import source_and_target as pairs
from hf_ext.tasks.generative_question_answering import WrittenAnswerArguments, score
from hf_ext.tasks.source_and_target import encode_prompt, fill


TEXT = "The Rhine rises in the Alps. It passes Köln, and Rotterdam; ships need 5½ days for it."
QUESTION = "Where does it rise?"
CONFIGS = {"encoder_decoder": HfxEncoderDecoderConfig, "decoder": HfxDecoderConfig}
# the same examples in rows of several and in rows of one, fp32
TOLERANCE = 1e-5


def a_tokenizer(config):
    return train_tokenizer(
        [TEXT, QUESTION, "context: answer:"] * 3, vocab_size=330, model_max_length=96, **pairs.special_tokens(config)
    )


def a_config(family: str, **fields):
    return CONFIGS[family](max_position_embeddings=96, vocab_size=330, **fields)


def some_rows(count: int = 3) -> Dataset:
    answers = ["in the Alps", "Köln", "5½ days"]
    made = [
        {
            "id": str(n),
            "question": QUESTION,
            "context": f"{n} {TEXT}"[: 40 + 20 * n],
            "answer_texts": [answers[n % 3], "x"],
        }
        for n in range(count)
    ]
    return Dataset.from_list(made)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_text_alone_loses_its_end(family):
    config = a_config(family)
    tokenizer, asked = a_tokenizer(config), WrittenAnswerArguments()
    text, start, end = fill(asked.template(config), "context", {"question": QUESTION, "context": TEXT})
    assert text[start:end] == TEXT
    assert QUESTION in text
    whole, cut = encode_prompt(
        tokenizer, text, start, end, max_length=500, is_encoder_decoder=config.is_encoder_decoder
    )
    assert cut == 0
    assert whole == tokenizer(text)["input_ids"]
    for length in range(len(whole) - 1, len(whole) - 15, -1):
        ids, cut = encode_prompt(
            tokenizer, text, start, end, max_length=length, is_encoder_decoder=config.is_encoder_decoder
        )
        assert (len(ids), cut) == (length, len(whole) - length)
        prefix = next(n for n in range(length + 1) if n == length or ids[n] != whole[n])
        # what is left is a beginning and the end of the whole, and only the text's tokens are missing
        assert ids == whole[:prefix] + whole[prefix + cut :]
        missing = tokenizer.decode(whole[prefix : prefix + cut])
        assert missing in TEXT or prefix + cut == len(whole)
        assert QUESTION in tokenizer.decode(ids)
        assert tokenizer.decode(ids, skip_special_tokens=True)[:start] == text[:start]
    with pytest.raises(ValueError, match="tokens beside the text leave it no room in 12"):
        encode_prompt(tokenizer, text, start, end, max_length=12, is_encoder_decoder=config.is_encoder_decoder)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_loss_is_that_of_the_targets_however_they_lie(family):
    config = a_config(
        family, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=1, eos_token_id=0
    )
    tokenizer, asked = a_tokenizer(config), WrittenAnswerArguments(max_source_length=76, max_target_length=20)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model = pairs.writing_class(config).from_config(config).eval()
    encoded = pairs.encode(some_rows(), tokenizer, config, asked, "train", target="answer_texts")
    expected, tokens = 0.0, 0
    for row in encoded:  # each by itself, written out
        assert tokenizer.decode(row["answer"]).strip().removesuffix("<|endoftext|>") in (
            "in the Alps",
            "Köln",
            "5½ days",
        )
        assert row["answer"][-1] == tokenizer.eos_token_id
        answer = torch.tensor(row["answer"])
        with torch.no_grad():
            if config.is_encoder_decoder:
                start = torch.tensor([config.decoder_start_token_id])
                read = torch.cat([start, answer[:-1]])[None]
                logits = model(input_ids=torch.tensor([row["prompt"]]), decoder_input_ids=read).logits[0]
            else:
                logits = model(input_ids=torch.tensor([row["prompt"] + row["answer"]])).logits[0]
                logits = logits[len(row["prompt"]) - 1 : -1]
        expected += float(torch.nn.functional.cross_entropy(logits, answer, reduction="sum"))
        tokens += len(answer)
    for packing in (True, False):
        rows = pairs.training_rows(encoded, config, asked, packing)
        assert len(rows) < 3 if packing else len(rows) == 3
        batch = pairs.collator(tokenizer, config)([dict(row) for row in rows])
        with torch.no_grad():
            assert float(model(**batch).loss) == pytest.approx(expected / tokens, abs=TOLERANCE)


def test_what_is_cut_is_said(caplog):
    config = a_config("encoder_decoder")
    tokenizer, asked = a_tokenizer(config), WrittenAnswerArguments(max_source_length=30, max_target_length=3)
    logging.getLogger("transformers").propagate = True
    logging.getLogger("hf_ext").propagate = True
    with caplog.at_level("WARNING"):
        encoded = pairs.encode(some_rows(), tokenizer, config, asked, "train", target="answer_texts")
    assert max(map(len, encoded["prompt"])) == 30
    assert max(map(len, encoded["answer"])) == 3
    assert all(answer[-1] == tokenizer.eos_token_id for answer in encoded["answer"])
    assert "max_source_length=30: 3 of 3 sources of train are longer and lose their end" in caplog.text
    assert "targets of train are longer" in caplog.text


def test_scores_take_any_right_answer_and_none():
    rows = Dataset.from_list(
        [{"answers": {"text": ["the Alps", "Alps"]}}, {"answers": {"text": []}}, {"answers": {"text": ["1"]}}]
    )
    asked = WrittenAnswerArguments(null_answers=True)
    right = [answers["text"] for answers in rows["answers"]]
    scores = score(rows.add_column("answer_texts", right), asked)([" Alps ", "", "2"])
    assert scores["exact_match"] == pytest.approx(200 / 3)
    assert scores["unanswerable_accuracy"] == 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_source_length": 1}, r"question_answering.max_source_length=1: must be at least 2"),
        ({"prompt": "{context}"}, r"question_answering.prompt='{context}': must have {question} once"),
        ({"language": "eng"}, r"question_answering.language='eng': must be one of .*; did you mean 'en'"),
    ],
)
def test_options_that_can_t_be_meant(fields, message):
    with pytest.raises(ValueError, match=message):
        WrittenAnswerArguments(**fields)


def test_models_that_can_t_do_it():
    with pytest.raises(ValueError, match=r"model.model_type='hfx_encoder': writes nothing; use hfx_encoder_decoder"):
        pairs.writing_class(HfxEncoderConfig(is_encoder_decoder=False))
    asked = WrittenAnswerArguments(max_source_length=80, max_target_length=32)
    assert asked.source_length(a_config("encoder_decoder")) == 80
    with pytest.raises(ValueError, match="the model reads 96 tokens, both together; lower them"):
        asked.source_length(a_config("decoder"))


def test_a_special_token_in_a_text_is_refused():
    config = a_config("encoder_decoder")
    rows = Dataset.from_list([{"question": "a", "context": "b <|endoftext|> c", "answer_texts": ["d"]}])
    with pytest.raises(ValueError, match=r"context: row 0 of test holds the special token <\|endoftext\|>"):
        pairs.encode(rows, a_tokenizer(config), config, WrittenAnswerArguments(), "test", target="answer_texts")
