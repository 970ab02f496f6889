"""Metrics by split, segments that reach our heads, and answers in texts as the items of a batch."""

import pytest
import torch
from datasets import Dataset

from hf_ext import HfxEncoderConfig
from hf_ext.models import HfxEncoderForQuestionAnswering
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.split_metrics import SplitMetricsTrainer


# the same sums in another order, fp32, one step of plain gradient descent
TOLERANCE = 1e-6


def collate(rows):
    length = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in rows[0]:
        if name.endswith("positions"):
            batch[name] = torch.tensor([row[name] for row in rows])
        else:
            batch[name] = torch.tensor([row[name] + [0] * (length - len(row[name])) for row in rows])
    return batch


def rows(count: int = 5) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        length = 6 + number
        ids = torch.randint(1, 32, (length,), generator=generator).tolist()
        segments = [0] * 3 + [1] * (length - 3)
        positions = {"start_positions": 3 + number % 2, "end_positions": 4 + number % 2}
        made.append(
            {"input_ids": ids, "attention_mask": [1] * length, "token_type_ids": segments, **positions, "row": 0}
        )
    return Dataset.from_list(made)


def trainer_of(folder, metrics=None, **training):
    torch.manual_seed(0)
    config = HfxEncoderConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, type_vocab_size=2
    )
    arguments = HfxTrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0.0,
        **training,
    )
    return SplitMetricsTrainer(
        model=HfxEncoderForQuestionAnswering(config),
        args=arguments,
        train_dataset=rows(),
        data_collator=collate,
        split_metrics=metrics or {"eval": lambda prediction: {}},
    )


def test_segments_reach_the_model(tmp_path):
    trainer = trainer_of(tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "start_positions", "end_positions"}


def test_accumulated_answers_weigh_alike_though_the_last_batch_is_smaller(tmp_path):
    weights = []
    for size, accumulated in ((5, 1), (2, 3)):
        trainer = trainer_of(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated, max_steps=1
        )
        trainer.train()
        weights.append(trainer.model.qa_outputs.weight.detach().clone())
    torch.testing.assert_close(*weights, rtol=TOLERANCE, atol=TOLERANCE)


def test_each_split_has_metrics_of_its_own(tmp_path):
    seen = {}

    def metric(name):
        def compute(prediction):
            seen[name] = len(prediction.predictions[0])
            return {"rows": seen[name]}

        return compute

    trainer = trainer_of(tmp_path, {"eval": metric("eval"), "test": metric("test")})
    assert trainer.evaluate(rows(3))["eval_rows"] == 3
    assert trainer.predict(rows(4)).metrics["test_rows"] == 4
    assert seen == {"eval": 3, "test": 4}
    with pytest.raises(ValueError, match="metric_key_prefix='other': split_metrics are for eval, test"):
        trainer.evaluate(rows(3), metric_key_prefix="other")
