"""Runs that would be less than what was asked for end in one line, before their first step."""

from types import SimpleNamespace

import pytest
from torch import nn
from training.distributed import engines
from transformers import AutoModelForCausalLM

from hf_ext import HfxDecoderConfig, HfxDecoderForCausalLM
from hf_ext.training import deepspeed_ops
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.distributed import (
    autotp_size,
    check_adapter,
    check_divisible,
    check_engine,
    check_processes,
    check_tied_rows,
    launched_sizes,
)
from hf_ext.training.trainer import HfxTrainer


@pytest.fixture
def arguments(tmp_path):
    def make(**given) -> HfxTrainingArguments:
        return HfxTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1, **given)

    return make


def autotp(size: int | None) -> SimpleNamespace:
    """As accelerate's plugin of DeepSpeed, with its tensor parallelism or without."""
    asked = {} if size is None else {"tensor_parallel": {"autotp_size": size}}
    return SimpleNamespace(zero_stage=1, deepspeed_config=asked)


def refuse(match: str):
    return pytest.raises(ValueError, match=match)


def test_sizes_of_the_launch_file(monkeypatch):
    assert launched_sizes(None, None) == (1, 1)
    for name, value in {
        "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
        "PARALLELISM_CONFIG_TP_SIZE": "2",
        "PARALLELISM_CONFIG_DP_SHARD_SIZE": "-1",
        "WORLD_SIZE": "8",
    }.items():
        monkeypatch.setenv(name, value)
    assert launched_sizes(None, None) == (2, 4)
    assert launched_sizes(4, None) == (4, 2)
    assert launched_sizes(1, 1) == (1, 1)
    with refuse(r"tp_size=0: must be at least 1 process"):
        launched_sizes(0, None)
    with refuse(r"fsdp_size=-2: must be at least 1 process, or -1"):
        launched_sizes(None, -2)


def test_processes_that_would_train_alone(monkeypatch, arguments):
    args = arguments()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refuse(r"^WORLD_SIZE=2: each process would train a model of its own"):
        check_processes(args)


def test_one_process_that_should_be_several(monkeypatch, arguments):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with refuse(r"^MASTER_ADDR=127.0.0.1: accelerate was asked for several processes and has started one"):
        arguments()


@pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"fsdp_size": 2}])
def test_sizes_without_processes(arguments, sizes):
    with refuse(r"is for 2 processes, there are 1; their product must be the number of processes"):
        arguments(**sizes)


def trainer(args) -> HfxTrainer:
    model = HfxDecoderForCausalLM(HfxDecoderConfig(**engines.MODEL))
    return HfxTrainer(model=model, args=args, train_dataset=engines.Texts())


def test_sizes_that_nothing_has_taken(arguments):
    for name, match in (
        ("tp_size", r"^tp_size=2: the weights are in 1 part, so it has no effect; build the model with split_model"),
        ("fsdp_size", r"^fsdp_size=2: the weights are in 1 part, so it has no effect"),
    ):
        running = trainer(arguments())
        setattr(running.args, name, 2)
        with refuse(match):
            running.train()
        assert running.state.global_step == 0


def test_engines_that_are_not_at_work(arguments, monkeypatch):
    running = trainer(arguments())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with refuse(r"^fsdp: no parameter is divided, each process trains a whole copy"):
        running.train()
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    running = trainer(arguments())
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with refuse(r"^deepspeed: the model is a HfxDecoderForCausalLM, DeepSpeed is not at work"):
        running.train()


def test_autotp_that_divides_nothing(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    state = SimpleNamespace(deepspeed_plugin=autotp(2))
    running = SimpleNamespace(
        args=SimpleNamespace(deepspeed=None, matrix_optimizer=None),
        model=nn.Linear(2, 2),
        model_wrapped=SimpleNamespace(zero_optimization_stage=lambda: 1),
        accelerator=SimpleNamespace(state=state),
    )
    with refuse(r"^autotp_size=2: DeepSpeed has divided no matrix"):
        check_engine(running)
    running.model.weight.tensor_model_parallel = True  # DeepSpeed's mark
    check_engine(running)
    state.deepspeed_plugin.zero_stage = 0
    running.model_wrapped.zero_optimization_stage = lambda: 0
    running.args.matrix_optimizer = "muon"
    with refuse(r"^matrix_optimizer='muon': not under autotp_size=2, where nobody has a whole matrix"):
        check_engine(running)


def test_what_goes_with_parts_of_weights(arguments, monkeypatch):
    monkeypatch.setattr(HfxTrainingArguments, "world_size", 2)
    sizes = arguments(fsdp_size=2)
    for given, match in (
        ({"matrix_optimizer": "muon"}, r"^matrix_optimizer='muon': not with tp_size=1, fsdp_size=2"),
        ({"save_on_each_node": True}, r"^save_on_each_node=True: not with tp_size=1, fsdp_size=2"),
        ({"ema_decay": 0.9}, r"^ema_decay=0.9: not with tp_size=1, fsdp_size=2"),
    ):
        with refuse(match):
            arguments(fsdp_size=2, **given)
    for variable, match in (("FSDP", r"not beside accelerate's fsdp"), ("DEEPSPEED", r"not beside DeepSpeed")):
        with monkeypatch.context() as launched, refuse(match):
            launched.setenv(f"ACCELERATE_USE_{variable}", "true")
            check_processes(sizes)
    with refuse(r"^adapter.method='lora': not with tp_size=1, fsdp_size=2, where no process has the weights"):
        check_adapter("lora", sizes)
    with refuse(r"^adapter.method='lora': not with autotp_size=2, where no process has the weights"):
        check_adapter("lora", SimpleNamespace(deepspeed_plugin=autotp(2), tp_size=1, fsdp_size=1))
    assert [autotp_size(plugin) for plugin in (None, autotp(None), autotp(1), autotp(4))] == [1, 1, 1, 4]


@pytest.mark.parametrize(
    ("options", "tp_size", "part"),
    [
        ({"num_key_value_heads": 1}, 2, "num_key_value_heads=1"),
        ({"intermediate_size": 66}, 4, "num_key_value_heads=2"),
        ({"num_key_value_heads": 4, "intermediate_size": 66}, 4, "intermediate_size=66"),
        ({"num_experts": 4, "moe_intermediate_size": 9}, 2, "moe_intermediate_size=9"),
    ],
)
def test_heads_that_cant_be_divided(options, tp_size, part):
    config = HfxDecoderConfig(**{**engines.MODEL, **options})
    check_divisible(config, 1)
    with refuse(rf"^tp_size={tp_size}: can't divide model.{part}; choose a divisor of it"):
        check_divisible(config, tp_size)


def test_tied_rows_of_which_fsdp2_would_train_a_copy():
    def tied(vocab_size: int, *, tie_word_embeddings: bool = True) -> HfxDecoderForCausalLM:
        options = {"vocab_size": vocab_size, "tie_word_embeddings": tie_word_embeddings}
        return HfxDecoderForCausalLM(HfxDecoderConfig(**{**engines.MODEL, **options}))

    for vocab_size, tp_size in ((97, 1), (98, 2)):
        with refuse(rf"^fsdp_size=2: can't divide the {vocab_size} rows of the embedding that the head shares"):
            check_tied_rows(tied(vocab_size), tp_size, 2)
    check_tied_rows(tied(98), 1, 2)
    check_tied_rows(tied(97), 2, 1)  # tensor parallelism fills nothing up
    check_tied_rows(tied(97, tie_word_embeddings=False), 1, 2)


def test_locks_that_a_killed_compile_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = deepspeed_ops.build_folder("cpu_adam") / "lock"
    lock.touch()
    assert deepspeed_ops.remove_stale_locks() == []  # its compiler may be about to start
    monkeypatch.setattr(deepspeed_ops, "STARTING", -1)
    monkeypatch.chdir(lock.parent)  # as a compiler does
    assert deepspeed_ops.remove_stale_locks() == []
    monkeypatch.chdir(tmp_path)
    assert deepspeed_ops.remove_stale_locks() == ["cpu_adam"]
    assert not lock.exists()


def test_a_whole_model_is_not_split(arguments, tmp_path):
    model = AutoModelForCausalLM.from_config(HfxDecoderConfig(**engines.MODEL))
    assert engines.split_model(model, arguments()) is model
