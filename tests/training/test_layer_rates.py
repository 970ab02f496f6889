"""Layer-wise rates against tables written by hand: which parameter learns at what, and that training does so."""

import pytest
import torch
from models.decoder_grid import make_model
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_ext.models import (
    HfxEncoderConfig,
    HfxEncoderDecoderConfig,
    HfxEncoderDecoderForConditionalGeneration,
    HfxEncoderForSequenceClassification,
)
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.layer_rates import distances_to_head, set_layer_rates
from hf_ext.training.trainer import HfxTrainer


SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "pad_token_id": 0}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2}
SMALL_STACKS = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
SMALL_STACKS |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 64}
# first words of a parameter's name -> distance to the head; the longest that fits counts
CASES = {
    "bert": (
        lambda: BertForSequenceClassification(BertConfig(**SIZES, num_hidden_layers=3)),
        {"bert.embeddings": 4, "bert.encoder.layer.0": 3, "bert.encoder.layer.1": 2, "bert.encoder.layer.2": 1}
        | {"bert.pooler": 0, "classifier": 0},
    ),
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=2)),
        {"model.embed_tokens": 3, "model.layers.0": 2, "model.layers.1": 1, "model.norm": 0, "lm_head": 0},
    ),
    "gpt2, tied": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_head=4, n_layer=2)),
        {"transformer.wte": 3, "transformer.wpe": 3, "transformer.h.0": 2, "transformer.h.1": 1, "transformer.ln_f": 0},
    ),
    "t5, stacks of 2 and 3": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=4)
        ),
        {"shared": 4, "encoder.block.0": 2, "encoder.block.1": 1, "decoder.block.0": 3, "decoder.block.1": 2}
        | {"decoder.block.2": 1, "encoder.final": 0, "decoder.final": 0},
    ),
    "bart, stacks of 1 and 2": (
        lambda: BartForConditionalGeneration(BartConfig(**SMALL_STACKS)),
        {"model.shared": 3, "model.encoder.embed": 2, "model.encoder.layernorm_embedding": 2, "model.encoder.layers": 1}
        | {"model.decoder.embed": 3, "model.decoder.layernorm_embedding": 3}
        | {"model.decoder.layers.0": 2, "model.decoder.layers.1": 1},
    ),
    "clip, towers of 2 and 3": (
        lambda: CLIPModel(
            CLIPConfig(
                text_config={**SIZES, "num_hidden_layers": 2},
                vision_config={"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
                | {"num_attention_heads": 4, "image_size": 32, "patch_size": 8},
            )
        ),
        {"": 0, "text_model.encoder.layers.0": 2, "text_model.encoder.layers.1": 1}
        | {f"vision_model.encoder.layers.{i}": 3 - i for i in range(3)}
        | {"text_model.embeddings": 4, "vision_model.embeddings": 4},
    ),
    "our decoder": (
        lambda: make_model(num_hidden_layers=2, tie_word_embeddings=False),
        {"model.embed_tokens": 3, "model.layers.0": 2, "model.layers.1": 1, "model.norm": 0, "lm_head": 0},
    ),
    "our encoder": (
        lambda: HfxEncoderForSequenceClassification(HfxEncoderConfig(**SIZES, num_hidden_layers=2)),
        {"": 0, "model.embed": 3, "model.layers.0": 2, "model.layers.1": 1},
    ),
    "our encoder-decoder, stacks of 1 and 2": (
        lambda: HfxEncoderDecoderForConditionalGeneration(
            HfxEncoderDecoderConfig(**SIZES, encoder_layers=1, num_hidden_layers=2, decoder_start_token_id=0)
        ),
        {"": 0, "model.encoder.layers.0": 1, "model.decoder.layers.0": 2, "model.decoder.layers.1": 1}
        | {"model.encoder.embed_tokens": 3},  # the decoder's too
    ),
}


def expected_distances(model, table):
    found = {}
    for name, _ in model.named_parameters():
        prefix = max((p for p in table if name.startswith(p)), key=len)
        found[name] = table[prefix]
    return found


@pytest.mark.parametrize("case", CASES)
def test_distances_are_those_of_the_table(case):
    make, table = CASES[case]
    model = make()
    distances = distances_to_head(model)
    assert {name: distances[p] for name, p in model.named_parameters()} == expected_distances(model, table)


def test_embeddings_that_are_one_module_of_two_stacks_count_from_the_deeper():
    model = CASES["our encoder-decoder, stacks of 1 and 2"][0]()
    model.model.decoder.embed_tokens = model.model.encoder.embed_tokens
    assert distances_to_head(model)[model.model.encoder.embed_tokens.weight] == 3


@pytest.mark.parametrize("muon", [False, True])
def test_groups_are_cut_by_layer_and_the_schedule_scales_them(tmp_path, muon):
    arguments = {"matrix_optimizer": "muon", "matrix_learning_rate": 5e-2} if muon else {}
    ids = torch.randint(1, 64, (8, 6), generator=torch.Generator().manual_seed(0))
    model = CASES["llama"][0]()
    trainer = HfxTrainer(
        model=model,
        args=HfxTrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            max_steps=4,
            logging_steps=1,
            learning_rate=1e-2,
            weight_decay=0.1,
            layer_rate_decay=0.5,
            lr_scheduler_type="linear",
            save_strategy="no",
            **arguments,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
    )
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    distances, groups = expected_distances(model, CASES["llama"][1]), {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert parameter not in groups
            groups[parameter] = group
    for name, parameter in model.named_parameters():
        group = groups[parameter]
        is_muon = muon and "layers" in name and parameter.ndim == 2
        assert group.get("use_muon", False) == is_muon
        assert group["initial_lr"] == pytest.approx((5e-2 if is_muon else 1e-2) * 0.5 ** distances[name])
        assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0)
        assert group["lr"] == 0  # the end of the linear schedule
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    trainer.train()  # once more: the rates aren't scaled a second time
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(1e-2)
    assert min(group["initial_lr"] for group in optimizer.param_groups) == pytest.approx(1e-2 * 0.5**3)


def test_a_step_moves_each_layer_by_its_own_rate():
    """Signed steps: Adam's first one is the rate itself, whatever the gradient."""
    model = CASES["bert"][0]()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    set_layer_rates(optimizer, model, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, distance in expected_distances(model, CASES["bert"][1]).items():
        moved = before[name] - dict(model.named_parameters())[name]
        torch.testing.assert_close(moved, torch.full_like(moved, 1e-2 * 0.5**distance), atol=1e-7, rtol=1e-4)


def test_adapters_learn_at_the_rate_of_their_block():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(CASES["bert"][0](), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2))
    distances = distances_to_head(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert distances[parameter] == 3 - int(name.split("layer.")[1][0]), name
        if "classifier" in name:
            assert distances[parameter] == 0
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1.0)
    set_layer_rates(optimizer, model, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5, 0.25, 0.125]


def test_nonsense_is_refused(tmp_path):
    for decay in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match=f"layer_rate_decay={decay}: must be above 0 and at most 1"):
            HfxTrainingArguments(output_dir=str(tmp_path), layer_rate_decay=decay)
    args = HfxTrainingArguments(output_dir=str(tmp_path), layer_rate_decay=0.5, use_cpu=True)
    with pytest.raises(ValueError, match="layer_rate_decay: Linear has no stack of blocks to tell layers by"):
        HfxTrainer(model=nn.Linear(3, 2), args=args)
    model = CASES["llama"][0]()
    with pytest.raises(ValueError, match=r"layer_rate_decay=0\.5: has no effect on an optimizer made elsewhere"):
        HfxTrainer(model=model, args=args, optimizers=(torch.optim.SGD(model.parameters(), lr=1.0), None))
