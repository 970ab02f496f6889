"""Prompts and answers in rows: none lost, none torn, answers alone are learnt, and the model sees each by itself."""

import random

import pytest
import torch
from torch.nn import functional

from hf_ext.data import pack_answers
from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM
from hf_ext.objectives import CausalCollator


# fp32 sums of about 100 terms in another order
TOLERANCE = 1e-5


def make_examples(count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {side: [rng.randrange(3, 97) for _ in range(rng.randint(1, 12))] for side in ("prompt", "answer")}
        for _ in range(count)
    ]


def unpack(row: dict) -> list[tuple[list[int], list[int]]]:
    starts = [i for i, position in enumerate(row["position_ids"]) if position == 0]
    borders = list(zip(starts, [*starts[1:], len(row["input_ids"])], strict=True))
    return [(row["input_ids"][a:b], row["labels"][a:b]) for a, b in borders]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("learn_prompts", [True, False])
def test_every_example_once_with_its_labels(packing, learn_prompts):
    examples = make_examples(300)
    rows = list(pack_answers(examples, row_length=40, packing=packing, learn_prompts=learn_prompts, buffer_size=70))
    assert all(len(row["input_ids"]) <= 40 for row in rows)
    found = sorted(one for row in rows for one in unpack(row))
    expected = []
    for example in examples:
        prompt, answer = example["prompt"], example["answer"]
        learnt = [-100, *prompt[1:]] if learn_prompts else [-100] * len(prompt)
        expected.append((prompt + answer, learnt + answer))
    assert found == sorted(expected)
    if packing:
        assert sum(len(row["input_ids"]) for row in rows) / (40 * len(rows)) > 0.9
    else:
        assert len(rows) == 300


def test_the_loss_is_that_of_the_answers_alone():
    torch.manual_seed(0)
    config = HfxDecoderConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    model = HfxDecoderForCausalLM(config).eval()
    examples = make_examples(9)
    batch = CausalCollator(vocab_size=97, pad_token_id=1)(list(pack_answers(examples, row_length=40)))
    total, count = 0.0, 0
    for example in examples:  # each by itself, by torch's own cross-entropy
        logits = model(torch.tensor([example["prompt"] + example["answer"]])).logits[0]
        answer = torch.tensor(example["answer"])
        total += functional.cross_entropy(logits[len(example["prompt"]) - 1 : -1], answer, reduction="sum").item()
        count += len(answer)
    assert model(**batch).loss.item() == pytest.approx(total / count, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("example", "options", "message"),
    [
        ({}, {"row_length": 0}, "row_length: 0 must be at least 1"),
        ({"prompt": []}, {}, "prompt: of example 1 is empty"),
        ({"answer": []}, {}, "answer: of example 1 is empty"),
        ({"answer": [1] * 9}, {}, "row_length: 8 is below the 11 tokens of example 1"),
    ],
)
def test_nonsense(example, options, message):
    fine = {"prompt": [3, 4], "answer": [5]}
    with pytest.raises(ValueError, match=message):
        list(pack_answers([fine, {**fine, **example}], **{"row_length": 8, **options}))
