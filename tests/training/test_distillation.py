"""What a student learns from: the terms against a computation of their own, whole batches against accumulated ones."""

import pytest
import torch
from models.decoder_grid import make_model, tokens
from torch.nn import functional as F
from transformers import DataCollatorWithPadding

from hf_ext.data import train_tokenizer
from hf_ext.models import HfxEncoderConfig, HfxEncoderForMaskedLM, HfxEncoderForSequenceClassification
from hf_ext.objectives import CausalCollator, MaskedCollator
from hf_ext.training import distillation
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.distillation import DistillationArguments, DistillationTrainer, divergence


# fp32 sums in another order
FP32 = {"atol": 1e-5, "rtol": 1e-4}
SIZES = {"vocab_size": 97, "hidden_size": 32, "num_attention_heads": 2, "pad_token_id": 0, "initializer_range": 0.25}


def rows(count=8, seed=3):
    ids = tokens(B=count, T=12, seed=seed)
    return [{"input_ids": ids[i, : 5 + i % 8]} for i in range(count)]


def trainer_of(folder, student, teacher, collator, data, taught, hidden_layers=(), **arguments):
    given = {"max_steps": 1, "per_device_train_batch_size": 8, "optim": "sgd", "learning_rate": 1.0, **arguments}
    return DistillationTrainer(
        model=student,
        teacher=teacher,
        distillation=DistillationArguments(**taught),
        hidden_layers=hidden_layers,
        args=HfxTrainingArguments(
            output_dir=str(folder), use_cpu=True, disable_tqdm=True, save_strategy="no", max_grad_norm=0.0, **given
        ),
        data_collator=collator,
        train_dataset=data,
        eval_dataset=data,
    )


def loss_of(trainer, batch):
    trainer.model.train()
    return trainer.compute_loss(trainer.model, dict(batch))


def decoders(**changes):
    torch.manual_seed(5)
    return make_model(tie_word_embeddings=True), make_model(tie_word_embeddings=True, **changes)


def test_the_divergence_is_its_equation():
    scores, teacher = torch.randn(7, 11), torch.randn(7, 11)
    for temperature in (1.0, 3.0):
        p, q = (torch.softmax(s / temperature, -1) for s in (teacher, scores))
        by_hand = temperature**2 * (p * (p / q).log()).sum()
        torch.testing.assert_close(divergence(scores, teacher, temperature), by_hand)
    assert divergence(scores, scores, 2.0).abs() < 1e-5


@pytest.mark.parametrize("chunk", [97 * 3, 2**24], ids=["chunks", "at once"])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_decoder_learns_the_teachers_distribution(chunk, softcap, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "CHUNK_NUMBERS", chunk)
    student, teacher = decoders(num_hidden_layers=3, final_logit_softcapping=softcap)
    collator = CausalCollator(vocab_size=97, pad_token_id=0)
    taught = {"temperature": 2.0, "soft_weight": 0.7}
    trainer = trainer_of(tmp_path, student, teacher, collator, rows(), taught)
    batch = collator(rows())
    loss = loss_of(trainer, batch)
    loss.backward()
    got = {name: p.grad.clone() for name, p in student.named_parameters()}

    student.zero_grad()
    scored = batch["labels"][:, 1:] != -100
    inputs = {name: batch[name] for name in batch if name != "labels"}
    mine, theirs = (m(**inputs).logits[:, :-1][scored] for m in (student, teacher))
    hard = F.cross_entropy(mine, batch["labels"][:, 1:][scored])
    soft = F.kl_div((mine / 2).log_softmax(-1), (theirs / 2).softmax(-1), reduction="batchmean") * 4
    expected = 0.3 * hard + 0.7 * soft
    torch.testing.assert_close(loss, expected, **FP32)
    expected.backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, **FP32)


def test_whole_scores_never_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "CHUNK_NUMBERS", 97 * 4)
    student, teacher = decoders()
    seen = []
    for model in (student, teacher):
        compute = model.compute_logits
        monkeypatch.setattr(model, "compute_logits", lambda h, c=compute: seen.append(h.shape[0]) or c(h))
    collator = CausalCollator(vocab_size=97, pad_token_id=0)
    loss_of(trainer_of(tmp_path, student, teacher, collator, rows(), {}), collator(rows())).backward()
    assert max(seen) == 4


def test_masked_tokens_and_hidden_states(tmp_path):
    torch.manual_seed(1)
    teacher = HfxEncoderForMaskedLM(HfxEncoderConfig(num_hidden_layers=4, **SIZES))
    student = HfxEncoderForMaskedLM(HfxEncoderConfig(num_hidden_layers=2, **SIZES))
    collator = MaskedCollator(vocab_size=97, pad_token_id=0, mask_token_id=3, special_token_ids=[0, 3], seed=0)
    taught = {"temperature": 1.0, "soft_weight": 0.5, "hidden_weight": 0.25}
    trainer = trainer_of(tmp_path, student, teacher, collator, rows(), taught, [(0, 1), (1, 3)])
    batch = collator(rows())
    loss = loss_of(trainer, batch)

    scored = batch["labels"] != -100
    inputs = {name: batch[name] for name in batch if name != "labels"}
    mine, theirs = (m(**inputs, output_hidden_states=True) for m in (student, teacher))
    hard = F.cross_entropy(mine.logits[scored], batch["labels"][scored])
    soft = F.kl_div(mine.logits[scored].log_softmax(-1), theirs.logits[scored].softmax(-1), reduction="batchmean")
    hidden = [
        1 - F.cosine_similarity(mine.hidden_states[i + 1][scored], theirs.hidden_states[j + 1][scored], dim=-1)
        for i, j in [(0, 1), (1, 3)]
    ]
    torch.testing.assert_close(loss, 0.5 * hard + 0.5 * soft + 0.25 * torch.stack(hidden).mean(), **FP32)


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_whole_equals_accumulated(kind, tmp_path):
    torch.manual_seed(2)
    names = {"id2label": {0: "score"} if kind == "regression" else {0: "a", 1: "b", 2: "c"}, "problem_type": kind}
    teacher, student = (
        HfxEncoderForSequenceClassification(HfxEncoderConfig(num_hidden_layers=n, **names, **SIZES)) for n in (2, 1)
    )
    start = {name: weight.clone() for name, weight in student.state_dict().items()}
    labels = {"single_label_classification": 1, "multi_label_classification": [1.0, 0.0, 1.0], "regression": 0.5}[kind]
    data = [{"input_ids": row["input_ids"].tolist(), "labels": labels} for row in rows()]
    tokenizer = train_tokenizer(["a b"] * 3, vocab_size=260, model_max_length=32)
    found = []
    for batch in ({}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}):
        student.load_state_dict(start)
        trainer = trainer_of(
            tmp_path,
            student,
            teacher,
            DataCollatorWithPadding(tokenizer),
            data,
            {"soft_weight": 0.6, "hidden_weight": 0.5},
            [(0, 1)],
            **{"per_device_train_batch_size": 8, **batch},
        )
        trainer.train()
        found.append({name: weight.clone() for name, weight in student.state_dict().items()})
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, **FP32)
    assert any(not torch.equal(found[0][name], start[name]) for name in start)


def test_language_models_too_whole_equals_accumulated(tmp_path):
    found = []
    for batch in ({}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}):
        student, teacher = decoders()
        taught = {"soft_weight": 0.6, "hidden_weight": 0.5}
        collator = CausalCollator(vocab_size=97, pad_token_id=0)
        arguments = {"per_device_train_batch_size": 8, "learning_rate": 0.1, **batch}
        trainer_of(tmp_path, student, teacher, collator, rows(), taught, [(1, 1)], **arguments).train()
        found.append(dict(student.named_parameters()))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, **FP32)


def test_evaluation_is_the_students_alone_and_the_teacher_stays(tmp_path):
    student, teacher = decoders()
    before = [p.clone() for p in teacher.parameters()]
    collator = CausalCollator(vocab_size=97, pad_token_id=0)
    trainer = trainer_of(tmp_path, student, teacher, collator, rows(), {"soft_weight": 1.0}, prediction_loss_only=True)
    trainer.train()
    batch = collator(rows())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(student(**batch).loss.item(), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert "loss_and_logits" not in vars(student)


@pytest.mark.parametrize(
    ("changes", "taught", "message"),
    [
        ({"vocab_size": 98}, {}, "its vocabulary has 98 tokens, the student's 97"),
        ({"hidden_size": 64}, {"hidden_weight": 1.0}, "leave it out, or make them alike"),
        ({}, {"temperature": 0}, "must be above 0"),
        ({}, {"soft_weight": 1.1}, "must be from 0 to 1"),
        ({}, {"soft_weight": 0.0}, "nothing is taught"),
        ({}, {"hidden_weight": -1.0}, "must not be negative"),
        ({}, {"student_layers": [1, 0]}, "in ascending order"),
        ({}, {"hidden_weight": 1.0}, "no layers to bring together"),
    ],
    ids=str,
)
def test_nonsense_is_refused(changes, taught, message, tmp_path):
    student, teacher = decoders(**changes)
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, student, teacher, CausalCollator(vocab_size=97, pad_token_id=0), rows(), taught)
