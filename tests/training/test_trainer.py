"""Our Trainer: the same training whichever way the batch is cut, exact evaluation, and what is saved."""

import math
from functools import partial

import pytest
import torch
from models.decoder_grid import VARIANTS, make_model, tokens
from transformers import AutoModelForCausalLM, Trainer

import hf_ext  # noqa: F401  registers the Auto classes
from hf_ext.models import HfxEncoderConfig, HfxEncoderForMaskedLM
from hf_ext.objectives import CausalCollator, MaskedCollator, PrefixLMCollator
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.balance_experts import balanced_routers
from hf_ext.training.trainer import HfxTrainer


# fp32 over a few steps: sums in another order
FP32 = {"atol": 1e-5, "rtol": 1e-4}


def rows(count=16, seed=3):
    """Rows of 5 to 12 tokens."""
    ids = tokens(B=count, T=12, seed=seed)
    return [{"input_ids": ids[i, : 5 + i % 8]} for i in range(count)]


def make_trainer(folder, trainer_class=HfxTrainer, model=None, data=None, **arguments):
    defaults = {"max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "save_strategy": "no"}
    given = {
        **defaults,
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "prediction_loss_only": True,
        **arguments,
    }
    data = rows() if data is None else data
    return trainer_class(
        model=model or make_model(tie_word_embeddings=True),
        args=HfxTrainingArguments(output_dir=str(folder), **given),
        data_collator=CausalCollator(vocab_size=97, pad_token_id=0),
        train_dataset=data,
        eval_dataset=data,
    )


def trained(trainer):
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"label_smoothing_factor": 0.1, "z_loss_weight": 1e-2}], ids=str)
def test_whole_batch_equals_accumulated_equals_checkpointed(options, tmp_path):
    options = {**options, "optim": "sgd"}  # Adam's first steps make a whole step of a gradient of rounding size
    whole = trained(make_trainer(tmp_path, **options))
    for other in (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"gradient_checkpointing": True},
    ):
        got = trained(make_trainer(tmp_path, **options, **other))
        for name in whole:
            torch.testing.assert_close(got[name], whole[name], **FP32, msg=lambda m, n=name: f"{n}: {m}")


def test_the_stock_trainer_gives_the_same(tmp_path):
    """Someone else's loop over our model: no difference without our options."""
    ours = trained(make_trainer(tmp_path, lr_scheduler_type="linear"))
    stock = trained(make_trainer(tmp_path, trainer_class=Trainer, lr_scheduler_type="linear"))
    for name in ours:
        torch.testing.assert_close(ours[name], stock[name], **FP32)


def test_label_smoothing_equals_the_stock_smoother(tmp_path):
    ours = trained(make_trainer(tmp_path, lr_scheduler_type="linear", label_smoothing_factor=0.2))
    stock = trained(
        make_trainer(tmp_path, trainer_class=Trainer, lr_scheduler_type="linear", label_smoothing_factor=0.2)
    )
    plain = trained(make_trainer(tmp_path, lr_scheduler_type="linear"))
    for name in ours:
        torch.testing.assert_close(ours[name], stock[name], **FP32)
    assert any((ours[n] - plain[n]).abs().max() > 1e-3 for n in ours)


def test_evaluation_is_the_likelihood_over_the_tokens(tmp_path):
    model, data = make_model(), rows()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in data:
            ids = row["input_ids"][None]
            logits = model(ids).logits[0, :-1].double()
            total -= logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).sum().item()
            count += ids.shape[1] - 1
    found = []
    for batch_size in (1, 5, 16):
        trainer = make_trainer(
            tmp_path, model=model, data=data, per_device_eval_batch_size=batch_size, z_loss_weight=0.1
        )
        trainer.eval_num_bytes = 123
        found.append(trainer.evaluate())
        assert found[-1]["eval_tokens"] == count
        assert found[-1]["eval_loss"] == pytest.approx(total / count, rel=1e-6)
        assert found[-1]["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
        assert found[-1]["eval_bits_per_byte"] == pytest.approx(total / math.log(2) / 123, rel=1e-6)


@pytest.mark.parametrize("trainer_class", [HfxTrainer, Trainer])
def test_metrics_see_logits_and_labels(trainer_class, tmp_path):
    seen = []

    def compute_metrics(prediction):
        seen.append((prediction.predictions.shape, prediction.label_ids.shape))
        return {"seen": len(seen)}

    trainer = make_trainer(tmp_path, trainer_class=trainer_class, prediction_loss_only=False)
    assert trainer.label_names == ["labels"]
    trainer.compute_metrics = compute_metrics
    metrics = trainer.evaluate()
    assert metrics["eval_seen"] == 1
    assert metrics["eval_loss"] > 1
    assert seen == [((16, 12, 97), (16, 12))]


def test_first_label_of_a_row_is_not_counted(tmp_path):
    """Nothing predicts it: a collator that leaves it in must not change the mean."""
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows()]
    expected, found = (make_trainer(tmp_path, data=d).evaluate() for d in (rows(), data))
    assert found["eval_tokens"] == expected["eval_tokens"]
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)


def test_whole_training_loss_of_a_resumed_run():
    from hf_ext.tasks.run_folder import whole_training_loss

    log = [{"step": 2, "loss": 4.0}, {"step": 4, "loss": 2.0}, {"step": 4, "eval_loss": 9.0}, {"step": 6, "loss": 1.0}]
    assert whole_training_loss(log, since_resume=2.0, resumed_at=4, last_step=6) == pytest.approx((8 + 4 + 2) / 6)
    assert whole_training_loss([], since_resume=15.0, resumed_at=0, last_step=5) == 3.0


def test_logits_never_exist_while_training_or_evaluating(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(trainer.model, "compute_logits", lambda hidden: pytest.fail("logits were computed"))
    trainer.train()
    trainer.evaluate()


def test_saved_config_still_caches(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_model()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.use_cache is True


def test_non_finite_loss_is_logged_as_such(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    trainer = make_trainer(tmp_path, model=model, max_steps=1)
    trainer.train()
    assert math.isnan(next(e["loss"] for e in trainer.state.log_history if "loss" in e))


def test_matrix_optimizer_and_schedules(tmp_path):
    trainer = make_trainer(
        tmp_path,
        matrix_optimizer="muon",
        matrix_learning_rate=5e-2,
        muon_dtype="bfloat16",
        muon_beta2=0.9,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"decay_fraction": 0.5, "decay_form": "linear"},
        max_steps=4,
        warmup_steps=1,
    )
    trainer.train()
    assert trainer.optimizer.optimizer.param_groups[0]["use_muon"]
    assert trainer.optimizer.optimizer.param_groups[0]["initial_lr"] == 5e-2
    assert trainer.optimizer.optimizer.param_groups[0]["muon_dtype"] == "bfloat16"
    assert trainer.optimizer.optimizer.param_groups[0]["muon_beta2"] == 0.9
    logged = [e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e]
    assert logged == pytest.approx([0.0, 5e-2, 5e-2, 2.5e-2])


def test_z_loss_needs_a_head_of_ours(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
    with pytest.raises(
        ValueError, match=r"z_loss_weight=0\.1: LlamaForCausalLM has no language-modelling head of ours"
    ):
        make_trainer(tmp_path, model=llama, z_loss_weight=0.1)
    make_trainer(tmp_path, model=llama, max_steps=1).train()


def test_balance_biases_move_with_every_optimizer_step(tmp_path):
    """Once a step, however many batches are accumulated; and they are saved."""
    options = VARIANTS["shared experts, sigmoid scores, balance bias, first layer dense"]
    moved = []
    for cut in ({}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}):
        model = make_model(**options, router_balance_rate=0.1)
        trainer = make_trainer(tmp_path, model=model, optim="sgd", **cut)
        trainer.train()
        (router,) = balanced_routers(model)
        assert not router.expert_load.any()
        bias = router.e_score_correction_bias
        assert bias.abs().max() > 0.05
        torch.testing.assert_close(bias, (bias * 10).round() / 10)  # three steps of 0.1 up, down or not at all
        moved.append(bias)
    torch.testing.assert_close(moved[0], moved[1])
    trainer.save_model(str(tmp_path / "saved"))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(balanced_routers(reloaded)[0].e_score_correction_bias, moved[1])


@pytest.mark.parametrize("head", ["prefix", "masked"])
def test_evaluation_asks_the_same_every_time_and_leaves_training_its_draws(head, tmp_path):
    """Objectives that draw: the held-out loss is that of one fixed draw, whenever and however often it is asked for."""
    torch.manual_seed(0)
    if head == "prefix":
        model, collator = make_model(), partial(PrefixLMCollator, vocab_size=97, pad_token_id=0)
    else:
        sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = HfxEncoderForMaskedLM(HfxEncoderConfig(**sizes, pad_token_id=0))
        collator = partial(MaskedCollator, vocab_size=97, pad_token_id=0, mask_token_id=2, special_token_ids=(0, 1, 2))
    start = {name: weight.clone() for name, weight in model.state_dict().items()}

    def run(**arguments):
        model.load_state_dict(start)
        trainer = HfxTrainer(
            model=model,
            args=HfxTrainingArguments(
                output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=4, report_to="none", **arguments
            ),
            data_collator=collator(),
            eval_data_collator=collator(seed=3),
            train_dataset=rows(),
            eval_dataset=rows(),
        )
        first = trainer.evaluate()["eval_loss"]
        assert trainer.evaluate()["eval_loss"] == first
        trainer.train()
        return first, {name: weight.clone() for name, weight in model.state_dict().items()}

    first, rarely = run(eval_strategy="no", prediction_loss_only=True)
    again, often = run(eval_strategy="steps", eval_steps=1, prediction_loss_only=True)
    assert first == again
    for name in rarely:
        assert torch.equal(rarely[name], often[name]), name
