"""Texts to prompts and answers: the same tokens when learnt and when asked, plain and as a chat; refusals."""

import pytest
from datasets import Dataset

from hf_ext.data import train_tokenizer
from hf_ext.tasks.prompts_and_answers import PromptArguments, tokenize, training_rows


ROWS = Dataset.from_dict({"question": ["2 {x} + 3?", "two and two?"], "answer": ["it is 5", "it is 4"]})
COLUMNS = ("question", "answer")


def make_tokenizer(arguments: PromptArguments):
    tokenizer = train_tokenizer(
        [*ROWS["question"], *ROWS["answer"]], vocab_size=270, model_max_length=64, **arguments.special_tokens
    )
    arguments.prepare(tokenizer)
    return tokenizer


def test_plain():
    arguments = PromptArguments(template="Q: {prompt}\nA: ")
    tokenizer = make_tokenizer(arguments)
    examples = tokenize(ROWS, tokenizer, arguments, where="train", columns=COLUMNS)
    assert tokenizer.decode(examples[0]["prompt"]) == "Q: 2 {x} + 3?\nA: "
    assert tokenizer.decode(examples[0]["answer"]) == "it is 5<|endoftext|>"
    # what a user's pipeline makes of the prompt's text
    assert tokenizer("Q: 2 {x} + 3?\nA: ")["input_ids"] == examples[0]["prompt"]


def test_chat():
    arguments = PromptArguments(format="chat", system="Be brief.")
    tokenizer = make_tokenizer(arguments)
    examples = tokenize(ROWS, tokenizer, arguments, where="train", columns=COLUMNS)
    written = tokenizer.decode(examples[1]["prompt"])
    assert written == "<|system|>Be brief.<|endoftext|><|user|>two and two?<|endoftext|><|assistant|>"
    assert examples[1]["prompt"].count(tokenizer.convert_tokens_to_ids("<|user|>")) == 1
    # a conversation as a whole is the prompt and the answer
    said = [("system", "Be brief."), ("user", "two and two?"), ("assistant", "it is 4")]
    whole = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in said], return_dict=False
    )
    assert whole == examples[1]["prompt"] + examples[1]["answer"]


def test_rows_leave_out_what_is_too_long_and_say_so(caplog):
    arguments = PromptArguments(row_length=30)
    tokenizer = make_tokenizer(arguments)
    long = Dataset.from_dict({"question": [*ROWS["question"], "x" * 100], "answer": [*ROWS["answer"], "y"]})
    examples = tokenize(long, tokenizer, arguments, where="train", columns=COLUMNS)
    rows = training_rows(examples, arguments, 64, "train")
    assert "1 of 3 examples of train are longer and left out" in caplog.text
    assert sum(row.count(0) for row in rows["position_ids"]) == 2
    assert sum(token == tokenizer.eos_token_id for row in rows["labels"] for token in row) == 2
    with pytest.raises(ValueError, match="every example of train is longer"):
        training_rows(examples, PromptArguments(row_length=3), 64, "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "chats"}, "prompts.format"),
        ({"template": "no place"}, r"must have \{prompt\} once"),
        ({"template": "{prompt}", "format": "chat"}, "has no effect with format 'chat'"),
        ({"system": "x"}, "has no effect with format 'plain'"),
        ({"loss_on": "question"}, "prompts.loss_on"),
        ({"row_length": 1}, "must be at least 2"),
    ],
)
def test_arguments_that_cannot_be_meant(options, message):
    with pytest.raises(ValueError, match=message):
        PromptArguments(**options)


@pytest.mark.parametrize(
    ("question", "message"),
    [(" ", "row 0 of train is empty"), ("a<|endoftext|>b", "row 0 of train holds the special token")],
)
def test_texts_that_cannot_be_meant(question, message):
    arguments = PromptArguments()
    rows = Dataset.from_dict({"question": [question], "answer": ["x"]})
    with pytest.raises(ValueError, match=message):
        tokenize(rows, make_tokenizer(arguments), arguments, where="train", columns=COLUMNS)


def test_a_chat_needs_a_template_or_our_tokens():
    with pytest.raises(ValueError, match="no chat template and no token"):
        PromptArguments(format="chat").prepare(make_tokenizer(PromptArguments()))
