"""Muon against its definition, AdamW against torch's, and both through the Trainer."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainingArguments,
)

from hf_ext.training.optimizers import (
    MuonWithAdamW,
    block_matrices,
    create_optimizer,
    orthogonalize,
    parameter_groups,
    update_scale,
)


# fp32: the same products in another order of batching
FP32 = {"atol": 1e-5, "rtol": 1e-5}
# bf16: 15 products of 8 bits each, and small singular values grow by 3.4 a round with their errors; entries reach 0.5
BF16 = {"atol": 5e-2, "rtol": 0}


def llama(tied: bool = False, cls=LlamaForCausalLM):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return cls(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=tied, num_labels=3, pad_token_id=0))


@pytest.mark.parametrize("shape", [(32, 32), (16, 80), (80, 16), (3, 24, 40)], ids=str)
def test_singular_values_go_to_one(shape):
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 7
    u, s, vt = torch.linalg.svd(matrices.double(), full_matrices=False)
    result = orthogonalize(matrices)
    values = torch.linalg.svdvals(result.double())
    # the quintic's band after 5 steps; singular values below 1 % of the largest may lag behind
    assert values.max() < 1.25
    assert values[s / s.amax(-1, keepdim=True) > 0.05].min() > 0.6
    # and the singular vectors are kept: U^T X V is diagonal
    rotated = u.mT @ result.double() @ vt.mT
    off_diagonal = rotated - torch.diag_embed(torch.diagonal(rotated, dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-4


def test_batched_is_one_by_one_and_tall_is_wide():
    matrices = torch.randn(4, 12, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalize(matrices), torch.stack([orthogonalize(m) for m in matrices]), **FP32)
    torch.testing.assert_close(orthogonalize(matrices.mT), orthogonalize(matrices).mT, **FP32)


def test_bfloat16_products_are_those_products_rounded():
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    exact, rounded = orthogonalize(matrices), orthogonalize(matrices, dtype=torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float())
    torch.testing.assert_close(rounded, exact, **BF16)
    assert not torch.equal(rounded, exact)
    steps = {}
    for name in (None, "float32", "bfloat16", "auto"):
        weight = nn.Parameter(torch.zeros(24, 40))
        weight.grad = matrices[0]
        MuonWithAdamW([{"params": [weight], "use_muon": True}], lr=1.0, muon_dtype=name).step()
        steps[name] = weight.detach()
    assert torch.equal(steps[None], steps["float32"])  # the default on CPU
    nesterov = orthogonalize(matrices[0] * 1.95, dtype=torch.bfloat16)  # gradient + momentum * gradient
    scale = update_scale(24, 40, "match_rms_adamw")
    fast = (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() or torch.accelerator.is_available()
    )
    assert torch.equal(steps["auto"], steps["bfloat16" if fast else "float32"])
    torch.testing.assert_close(steps["bfloat16"], -scale * nesterov, **FP32)


def test_muon_s_step_is_its_equation():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(12, 30))
    optimizer = MuonWithAdamW([{"params": [weight], "use_muon": True}], lr=0.1, weight_decay=0.2, momentum=0.9)
    expected, momentum = weight.detach().clone(), torch.zeros(12, 30)
    for _ in range(3):
        weight.grad = torch.randn(12, 30)
        momentum = 0.9 * momentum + weight.grad
        update = orthogonalize(weight.grad + 0.9 * momentum)
        expected = (1 - 0.1 * 0.2) * expected - 0.1 * 0.2 * 30**0.5 * update
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected, **FP32)
    # of the size that AdamW's updates have, 0.2 to 0.4 root mean square; singular values of 0.7 to 1.2 leave a margin
    assert 0.15 < (0.2 * 30**0.5 * update).square().mean().sqrt() < 0.45


def test_normuon_s_step_is_its_equation():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(12, 30)) for _ in range(2)]
    optimizer = MuonWithAdamW([{"params": weights, "use_muon": True}], lr=0.1, momentum=0.9, muon_beta2=0.8)
    expected = [weight.detach().clone() for weight in weights]
    momentum, mean = [torch.zeros(12, 30) for _ in weights], [torch.zeros(12, 1) for _ in weights]
    for _ in range(3):
        for i, weight in enumerate(weights):
            weight.grad = torch.randn(12, 30) * torch.logspace(0, -2, 12)[:, None]  # rows of very different lengths
            momentum[i] = 0.9 * momentum[i] + weight.grad
            update = orthogonalize(weight.grad + 0.9 * momentum[i])
            mean[i] = 0.8 * mean[i] + 0.2 * update.square().mean(dim=1, keepdim=True)
            evened = update / mean[i].sqrt()
            expected[i] -= 0.1 * 0.2 * 30**0.5 * update.norm() / evened.norm() * evened
        optimizer.step()
        for weight, value in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.detach(), value, **FP32)


def test_normuon_waits_for_a_first_gradient_and_takes_stacks():
    weight = nn.Parameter(torch.ones(3, 8, 5))
    optimizer = MuonWithAdamW([{"params": [weight], "use_muon": True}], lr=0.1, muon_beta2=0.95)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3, 8, 5))
    weight.grad = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    step = (weight.detach() - 1).norm(dim=(1, 2))
    # the first update's rows have no past that differs from them: all lengths alike, the whole as long as Muon's
    rows = (weight.detach() - 1).norm(dim=2)
    torch.testing.assert_close(rows, rows[:, :1].expand(3, 8), **FP32)
    expected = 0.1 * 0.2 * 8**0.5 * orthogonalize(weight.grad).norm(dim=(1, 2))
    torch.testing.assert_close(step, expected, **FP32)


def test_scales_of_the_update():
    for adjust, scale in (("match_rms_adamw", 0.2 * 40**0.5), ("spectral", (40 / 10) ** 0.5)):
        weight = nn.Parameter(torch.zeros(40, 10))
        weight.grad = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
        MuonWithAdamW([{"params": [weight], "use_muon": True}], lr=1.0, adjust=adjust).step()
        torch.testing.assert_close(weight.detach(), -scale * orthogonalize(weight.grad), **FP32)
    weight = nn.Parameter(torch.zeros(10, 40))
    weight.grad = torch.ones(10, 40)
    MuonWithAdamW([{"params": [weight], "use_muon": True}], lr=1.0, adjust="spectral").step()
    torch.testing.assert_close(weight.detach(), -orthogonalize(weight.grad), **FP32)  # a wide one isn't scaled down


@pytest.mark.parametrize("muon_beta2", [None, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_loaded_state_goes_on_to_the_same_bits(dtype, muon_beta2):
    def run(model, optimizer, seeds):
        for seed in seeds:
            ids = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(seed))

            def closure(ids=ids):
                optimizer.zero_grad()
                loss = model(ids, labels=ids).loss
                loss.backward()
                return loss

            assert optimizer.step(closure).isfinite()

    def make(model):
        return create_optimizer(model, name="muon", learning_rate=1e-2, weight_decay=0.1, muon_beta2=muon_beta2)

    model = llama().to(dtype)
    optimizer = make(model)
    run(model, optimizer, range(3))
    other = copy.deepcopy(model)
    loaded = make(other)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(model, optimizer, range(3, 6))
    run(other, loaded, range(3, 6))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_saved_without_a_scale_loads():
    weight = nn.Parameter(torch.zeros(4, 6))
    optimizer = MuonWithAdamW([{"params": [weight], "use_muon": True}])
    state = optimizer.state_dict()
    del state["param_groups"][0]["adjust"]
    optimizer.load_state_dict(state)
    weight.grad = torch.ones(4, 6)
    optimizer.step()
    assert weight.abs().min() > 0


def test_parameters_without_gradients_stay():
    still, moving = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    optimizer = MuonWithAdamW([{"params": [still, moving], "use_muon": True}], lr=0.1, weight_decay=0.5)
    moving.grad = torch.randn(3, 4)
    optimizer.step()
    assert torch.equal(still, torch.ones(3, 4))
    assert not torch.equal(moving, torch.ones(3, 4))


def test_adamw_is_torch_s():
    ours, theirs = llama(), llama()
    mine = create_optimizer(ours, name="adamw", learning_rate=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    decay = [p for n, p in theirs.named_parameters() if p.ndim >= 2]
    rest = [p for n, p in theirs.named_parameters() if p.ndim < 2]
    reference = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.95)
    )
    ids = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    for _ in range(5):
        for model, optimizer in ((ours, mine), (theirs, reference)):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_in_one_group_once(tied):
    model = llama(tied)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.1, optimizer="muon", matrix_learning_rate=2.0)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    muon, decayed, plain = groups
    assert (muon["use_muon"], muon["lr"], muon["weight_decay"]) == (True, 2.0, 0.1)
    assert len(muon["params"]) == 2 * 7 - 1
    assert {id(p) for p in decayed["params"]} == {id(model.model.embed_tokens.weight), id(model.lm_head.weight)}
    assert all(p.ndim == 1 for p in plain["params"])
    assert plain["weight_decay"] == 0


def test_block_matrices_of_other_designs():
    sizes = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=4, n_layer=2, **sizes))
    found = {n for n, p in gpt2.named_parameters() if p in block_matrices(gpt2)}
    assert len(found) == 2 * 4
    assert not any("wte" in n or "wpe" in n for n in found)
    sizes.update(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    mixtral = MixtralForCausalLM(MixtralConfig(num_key_value_heads=2, num_local_experts=4, **sizes))
    found = {n.split(".", 3)[3] for n, p in mixtral.named_parameters() if p in block_matrices(mixtral)}
    assert {"mlp.experts.gate_up_proj", "mlp.experts.down_proj", "self_attn.q_proj.weight"} <= found
    bert = BertForSequenceClassification(BertConfig(**sizes))
    bert.classifier = nn.ModuleList([nn.Linear(32, 3), nn.Linear(32, 5)])  # several heads
    assert not {p for head in bert.classifier for p in head.parameters()} & block_matrices(bert)
    assert len(block_matrices(bert)) == 2 * 6


def test_classifiers_and_adapters_are_no_block_matrices():
    classifier = llama(cls=LlamaForSequenceClassification)
    assert classifier.score.weight not in block_matrices(classifier)
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(ValueError, match="no trainable matrix inside a block"):
        create_optimizer(adapted, name="muon", learning_rate=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "muonn"}, "optimizer='muonn': must be one of adamw, muon; did you mean 'muon'"),
        (
            {"adjust": "spectrum"},
            "adjust='spectrum': must be one of match_rms_adamw, spectral; did you mean 'spectral'",
        ),
        ({"learning_rate": -1.0}, "learning_rate=-1.0: must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"eps": 0.0}, "eps=0.0: must be above 0"),
        ({"momentum": 1.0}, "momentum=1.0: must be at least 0 and below 1"),
        ({"betas": (0.9, 1.5)}, r"betas\[1\]=1.5"),
        ({"name": "muon", "muon_dtype": "bf16"}, "muon_dtype='bf16': must be one of float32, bfloat16"),
        ({"name": "muon", "muon_beta2": 1.0}, "muon_beta2=1.0: must be at least 0 and below 1"),
        ({"matrix_learning_rate": 0.0}, "matrix_learning_rate=0.0: must be above 0"),
    ],
    ids=str,
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_optimizer(llama(), **{"learning_rate": 1e-3, **options})


def test_trainer_resumes_to_the_same_bits(tmp_path):
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(1, 64, (24, 8)).unbind(0)]

    def train(folder, max_steps, resume=None):
        model = llama()
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder, max_steps=6, save_steps=3, per_device_train_batch_size=2, use_cpu=True, seed=1
            ),
            train_dataset=rows,
            optimizers=(create_optimizer(model, name="muon", learning_rate=1e-2, weight_decay=0.1), None),
        )
        trainer.train(resume_from_checkpoint=resume)
        return model.state_dict()

    whole = train(tmp_path / "whole", 6)
    resumed = train(tmp_path / "resumed", 6, resume=str(tmp_path / "whole" / "checkpoint-3"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
