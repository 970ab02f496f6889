"""The average of the weights: its equation, where it stands in for the weights, and that it is resumed to the same bits."""

import pytest
import torch
from models.decoder_grid import make_model, tokens
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_ext.objectives import CausalCollator
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.trainer import HfxTrainer
from hf_ext.training.weight_average import WeightAverage


# fp32 average of a few steps against fp64
FP32 = {"atol": 1e-6, "rtol": 1e-5}


class Watch(TrainerCallback):
    """The weights after every optimizer step, from step 0."""

    def __init__(self, model):
        self.seen = [self.weights(model)]

    @staticmethod
    def weights(model):
        return {name: p.detach().double().clone() for name, p in model.named_parameters() if p.requires_grad}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(self.weights(model))


def expected_average(seen, decay, warmup=True):
    """By hand, in fp64; the average after each step."""
    average, found = seen[0], []
    for t, weights in enumerate(seen[1:]):
        d = min(decay, (1 + t) / (10 + t)) if warmup else decay
        average = {name: d * average[name] + (1 - d) * weights[name] for name in average}
        found.append(average)
    return found


def make_trainer(folder, model=None, data=None, **arguments):
    ids = tokens(B=8, T=10, seed=1)
    given = {"max_steps": 6, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "ema_decay": 0.9, **arguments}
    data = [{"input_ids": row} for row in ids] if data is None else data
    return HfxTrainer(
        model=make_model(tie_word_embeddings=True) if model is None else model,
        args=HfxTrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            prediction_loss_only=True,
            logging_steps=1,
            **{"save_strategy": "no", **given},
        ),
        data_collator=CausalCollator(vocab_size=97, pad_token_id=0),
        train_dataset=data,
        eval_dataset=data,
    )


def assert_weights(model, expected, tolerances):
    found = dict(model.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].detach().double(), value, **tolerances, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("cut", [{}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize("warmup", [True, False])
def test_the_model_ends_as_the_average_by_hand(tmp_path, warmup, cut):
    trainer = make_trainer(tmp_path, ema_warmup=warmup, **cut)
    watch = Watch(trainer.model)
    trainer.add_callback(watch)
    trainer.train()
    expected = expected_average(watch.seen, 0.9, warmup)[-1]
    assert len(watch.seen) == 7  # once an optimizer step, however many batches it has
    assert_weights(trainer.model, expected, FP32)
    assert any((expected[name] - watch.seen[-1][name]).abs().max() > 1e-3 for name in expected)
    trainer.save_model()
    assert_weights(AutoModelForCausalLM.from_pretrained(tmp_path), expected, FP32)


def test_evaluation_sees_the_average_and_training_doesn_t_notice(tmp_path):
    plain = make_trainer(tmp_path / "plain")
    watch = Watch(plain.model)
    plain.add_callback(watch)
    plain.train()
    often = make_trainer(tmp_path / "often", eval_strategy="steps", eval_steps=2)
    often.train()
    for a, b in zip(plain.model.parameters(), often.model.parameters(), strict=True):
        assert torch.equal(a, b)
    averages = expected_average(watch.seen, 0.9)
    model = make_model(tie_word_embeddings=True)
    losses = [entry["eval_loss"] for entry in often.state.log_history if "eval_loss" in entry]
    judge = make_trainer(tmp_path / "judge", model=model, ema_decay=None)
    for step, found in zip((2, 4, 6), losses, strict=True):
        model.load_state_dict({name: value.float() for name, value in averages[step - 1].items()}, strict=False)
        assert judge.evaluate()["eval_loss"] == pytest.approx(found, rel=1e-5)


def test_resumed_is_uninterrupted_to_the_last_bit(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "matrix_optimizer": "muon"}
    whole = make_trainer(tmp_path / "whole", **options)
    watch = Watch(whole.model)
    whole.add_callback(watch)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(tmp_path / run / "checkpoint-6" / name) for run in ("whole", "resumed"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    # a checkpoint has the weights themselves, the average beside them, tied weights once
    saved = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(saved[name].double(), watch.seen[4][name]) for name in watch.seen[4])
    assert set(load_file(tmp_path / "whole" / "checkpoint-4" / "ema.safetensors")) == set(watch.seen[0])
    assert "lm_head.weight" not in watch.seen[0]
    # a run that is complete already gives its average
    finished = make_trainer(tmp_path / "whole", **options)
    finished.load_finished(str(tmp_path / "whole" / "checkpoint-6"))
    for a, b in zip(whole.model.parameters(), finished.model.parameters(), strict=True):
        assert torch.equal(a, b)
    make_trainer(tmp_path / "without", **{**options, "ema_decay": None}).train()
    with_one = make_trainer(tmp_path / "other", **options)
    with_one.allow_change = ("optimizer",)
    with pytest.raises(ValueError, match=r"holds no average \(ema.safetensors\); leave ema_decay out, or start anew"):
        with_one.train(str(tmp_path / "without" / "checkpoint-4"))


def test_the_best_is_the_average_of_the_best_checkpoint(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that it isn't the last
    )
    watch = Watch(trainer.model)
    trainer.add_callback(watch)
    trainer.train()
    best = trainer.state.best_global_step
    assert best < 6
    assert_weights(trainer.model, expected_average(watch.seen, 0.9)[best - 1], FP32)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


def test_adapters_alone_are_averaged(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted():
        torch.manual_seed(0)
        return peft.get_peft_model(make_model(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))

    options = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    options |= {"load_best_model_at_end": True, "learning_rate": 0.1}
    trainer = make_trainer(tmp_path / "a", model=adapted(), **options)
    watch = Watch(trainer.model)
    trainer.add_callback(watch)
    trainer.train()
    assert all("lora_" in name for name in watch.seen[0])
    expected = expected_average(watch.seen, 0.9)[trainer.state.best_global_step - 1]
    assert_weights(trainer.model, expected, FP32)
    resumed = make_trainer(tmp_path / "b", model=adapted(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bf16_weights_have_an_fp32_average_and_come_back_exactly():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5)).to(torch.bfloat16)
    model[0].bias.requires_grad_(False)
    average = WeightAverage(model, 0.999, has_warmup=False)
    assert set(average.averages) == {"0.weight", "1.weight", "1.bias"}  # no buffers, nothing frozen
    expected = {name: model.get_parameter(name).detach().double() for name in average.averages}
    for _ in range(50):
        for name in expected:
            parameter = model.get_parameter(name)
            parameter.data += torch.randn_like(parameter) * 0.01
            expected[name] = 0.999 * expected[name] + 0.001 * parameter.detach().double()
        average.update()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in expected.items():  # steps of 0.001 would be lost in bf16
        torch.testing.assert_close(average.averages[name].double(), value, **FP32)
    with average.in_place():
        for name in expected:
            assert torch.equal(model.get_parameter(name), average.averages[name].bfloat16())
            assert not torch.equal(model.get_parameter(name), own[name])
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_a_step_that_is_left_out_is_not_averaged(tmp_path):
    trainer = make_trainer(tmp_path)
    compute_loss, updates = trainer.compute_loss, []
    trainer.compute_loss = lambda *args, **kwargs: (
        compute_loss(*args, **kwargs) * (float("nan") if trainer.state.global_step in (1, 2) else 1.0)
    )

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            updates.append(trainer.average.num_updates)

    trainer.add_callback(Count())
    trainer.train()
    assert updates == [1, 1, 1, 2, 3, 4]


def test_nonsense_is_refused(tmp_path):
    for decay in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match=f"ema_decay={decay}: must be above 0 and below 1, or none"):
            HfxTrainingArguments(output_dir=str(tmp_path), ema_decay=decay)
    with pytest.raises(ValueError, match="ema_warmup=False: has no effect without ema_decay"):
        HfxTrainingArguments(output_dir=str(tmp_path), ema_warmup=False)
