"""R-Drop: its term against torch's divergence, whole batches against accumulated ones, evaluation as ever."""

import pytest
import torch
from torch.nn import functional as F
from transformers import DataCollatorWithPadding, set_seed

from hf_ext.data import train_tokenizer
from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM, HfxEncoderConfig, HfxEncoderForSequenceClassification
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.r_drop import RDropTrainer, RowsTwice
from hf_ext.training.trainer import HfxTrainer


SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 1}
LABELS = {
    "single_label_classification": [0, 2, 1, 1, 0, 2, 2, 0],
    "multi_label_classification": [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]] * 4,
    "regression": [0.5, -1.0, 2.0, 0.0] * 2,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a b c"], vocab_size=300, model_max_length=64)


def rows(kind):
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(2, 97, (4 + n,), generator=draw).tolist() for n in range(8)]
    return [
        {"input_ids": t, "attention_mask": [1] * len(t), "labels": n} for t, n in zip(texts, LABELS[kind], strict=True)
    ]


def trainer_of(folder, tokenizer, kind, dropout=0.3, trainer=RDropTrainer, **arguments):
    set_seed(3)
    config = HfxEncoderConfig(
        **SIZES,
        hidden_dropout=dropout,
        problem_type=kind,
        num_labels=1 if kind == "regression" else 3,
        initializer_range=0.3,
    )
    args = {
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
    }
    given = {"r_drop": arguments.pop("r_drop", 3.0)} if trainer is RDropTrainer else {}
    return trainer(
        model=HfxEncoderForSequenceClassification(config),
        args=HfxTrainingArguments(
            output_dir=str(folder), use_cpu=True, disable_tqdm=True, save_strategy="no", **{**args, **arguments}
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows(kind),
        eval_dataset=rows(kind),
        **given,
    )


def divergence(scores, kind):
    """Both directions' mean, a mean over pairs, by torch's own functions."""
    first, second = scores.chunk(2)
    if kind == "regression":
        return F.mse_loss(first, second)
    if kind == "multi_label_classification":
        p, q = torch.sigmoid(first), torch.sigmoid(second)
        p, q = (torch.stack([x, 1 - x], -1).reshape(-1, 2).log() for x in (p, q))
    else:
        p, q = first.log_softmax(-1), second.log_softmax(-1)
    options = {"log_target": True, "reduction": "batchmean"}
    return (F.kl_div(p, q, **options) + F.kl_div(q, p, **options)) / 2


@pytest.mark.parametrize("kind", LABELS)
def test_the_term_is_its_equation(kind, tokenizer, tmp_path):
    trainer = trainer_of(tmp_path, tokenizer, kind)
    batch = trainer.data_collator(rows(kind))
    assert torch.equal(batch["input_ids"][:8], batch["input_ids"][8:])
    trainer.model.train()
    torch.manual_seed(0)
    loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    torch.manual_seed(0)
    plain = trainer.model(**batch)
    torch.testing.assert_close(plain.logits, outputs["logits"])
    apart = divergence(plain.logits.detach(), kind)
    assert apart > 1e-3
    torch.testing.assert_close(loss, plain.loss + 3.0 / 2 * apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", LABELS)
def test_accumulated_batches_are_the_whole_batch(kind, tokenizer, tmp_path, monkeypatch):
    """Readings that differ though nothing is dropped: the second of a row lacks its last token."""

    def shortened(self, given):
        short = [{**row, **{n: row[n][:-1] for n in ("input_ids", "attention_mask")}} for row in given]
        return self.collator([*given, *short])

    monkeypatch.setattr(RowsTwice, "__call__", shortened)
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = trainer_of(
            tmp_path, tokenizer, kind, 0.0, per_device_train_batch_size=size, gradient_accumulation_steps=steps
        )
        trainer.train()
        weights.append([p.detach().clone() for p in trainer.model.parameters()])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_without_dropout_it_trains_as_without(tokenizer, tmp_path):
    kind = "single_label_classification"
    trained = []
    for trainer in (RDropTrainer, HfxTrainer):
        trainer = trainer_of(tmp_path, tokenizer, kind, 0.0, trainer)
        trainer.train()
        trained.append([p.detach().clone() for p in trainer.model.parameters()])
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


def test_evaluation_reads_rows_once(tokenizer, tmp_path):
    kind = "single_label_classification"
    twice, once = (trainer_of(tmp_path, tokenizer, kind, trainer=t).evaluate() for t in (RDropTrainer, HfxTrainer))
    assert twice["eval_loss"] == once["eval_loss"]


def test_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"r_drop=0: must be above 0"):
        trainer_of(tmp_path, tokenizer, "regression", r_drop=0)
    with pytest.raises(ValueError, match="for classes and numbers, not for a language model"):
        RDropTrainer(
            model=HfxDecoderForCausalLM(HfxDecoderConfig(**SIZES)),
            args=HfxTrainingArguments(output_dir=str(tmp_path), use_cpu=True),
            r_drop=1.0,
        )
