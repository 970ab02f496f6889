"""Experts in the decoder: what the training loss holds besides the likelihood, and what is counted."""

import pytest
import torch
import transformers
from models.decoder_grid import VARIANTS, make_model, tokens

from hf_ext.models import HfxDecoderConfig
from hf_ext.models.expert_balancing import routers_of


SPARSE = VARIANTS["mixture of experts"]
BALANCED = VARIANTS["shared experts, sigmoid scores, balance bias, first layer dense"]


def test_training_loss_is_likelihood_plus_coefficients_times_auxiliary():
    ids = tokens()
    likelihood = make_model(**SPARSE, router_aux_loss_coef=0.0).eval()(ids, labels=ids).loss
    auxiliary = {}
    for balance, z in ((1.0, 0.0), (0.0, 1.0)):
        options = {**SPARSE, "router_aux_loss_coef": balance, "router_z_loss_coef": z}
        auxiliary[balance, z] = make_model(**options).train()(ids, labels=ids).loss - likelihood
    options = {**SPARSE, "router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.07}
    whole = make_model(**options).train()(ids, labels=ids).loss
    torch.testing.assert_close(whole, likelihood + 0.3 * auxiliary[1.0, 0.0] + 0.07 * auxiliary[0.0, 1.0])
    assert auxiliary[1.0, 0.0] > 0.99  # even use costs 1
    evaluated = make_model(**options).eval()(ids, labels=ids).loss
    torch.testing.assert_close(evaluated, likelihood)  # held-out text is measured by its likelihood alone


def test_auxiliary_loss_alone_moves_the_routers():
    model = make_model(**{**SPARSE, "router_aux_loss_coef": 1e6, "router_z_loss_coef": 0.0}).train()
    model(tokens(), labels=tokens()).loss.backward()
    assert all(router.weight.grad.abs().max() > 1e3 for router in routers_of(model))


def test_router_logits_are_returned_where_asked_for():
    model = make_model(**SPARSE).train()
    assert model(tokens(), labels=tokens()).router_logits is None
    out = model(tokens(), output_router_logits=True)
    assert [logits.shape for logits in out.router_logits] == [(26, 5)] * 2


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_batch_is_counted_once_and_padding_not(checkpointed):
    model = make_model(**BALANCED).train()
    if checkpointed:
        model.gradient_checkpointing_enable()
    ids = tokens()
    labels = ids.clone()
    labels[1, 9:] = -100
    model(ids, labels=labels).loss.backward()
    (router,) = routers_of(model)  # the first layer is dense
    assert float(router.expert_load.sum()) == 3 * (12 + 8)  # the tokens that predict one
    model.eval()(ids, labels=ids)
    assert float(router.expert_load.sum()) == 3 * (12 + 8)


RELATIVE = {"position_embedding_type": "relative"}


@pytest.mark.parametrize("options", [{}, SPARSE, {"value_residual": True}, RELATIVE], ids=str)
def test_reentrant_checkpointing(options, caplog):
    """It doesn't see the gradient of what enters or leaves a block beside the hidden states; the other way does."""
    gradients = []
    for reentrant in (None, True):
        model = make_model(**options).train()
        if reentrant:
            transformers.logging.get_logger().warning_once.cache_clear()
            model.gradient_checkpointing_enable({"use_reentrant": True})
            model.enable_input_require_grads()
        model(tokens(), labels=tokens()).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=lambda text, name=name: f"{name}: {text}")
    replaced = "use_reentrant=True: would lose a gradient with"
    assert (replaced in caplog.text) == bool(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_shared_experts": 1}, "num_shared_experts=1: has no effect without num_experts"),
        ({"router_scores": "sigmoid"}, "router_scores='sigmoid': has no effect without num_experts"),
        ({"output_router_logits": True}, "output_router_logits=True: has no effect without num_experts"),
        (
            {"num_experts": 4, "router_balance_rate": 0.1},
            "router_balance_rate=0.1: has no effect without router_balance",
        ),
        ({"mtp_loss_weight": 0.5}, "mtp_loss_weight=0.5: has no effect without num_nextn_predict_layers"),
        ({"num_experts": 4, "num_hidden_layers": 1, "mlp_layer_types": ["dense"]}, "mlp_layer_types: all dense"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok=3: is above num_experts=2"),
        ({"num_experts": -1}, "num_experts=-1: must be at least 0"),
        ({"num_experts": 4, "mlp_layer_types": ["sparse"]}, "mlp_layer_types: 1 names for num_hidden_layers=8"),
        ({"num_experts": 4, "router_scores": "softmin"}, "router_scores='softmin': must be one of softmax, sigmoid"),
        ({"num_experts": 4, "mlp_bias": True}, "mlp_bias=True: experts have no biases"),
        ({"kv_lora_rank": 4}, "kv_lora_rank=4: has no effect with attention_type='multi_head'"),
        ({"attention_type": "latent", "qk_norm": "head"}, "qk_norm='head': not with attention_type='latent'"),
        ({"attention_type": "latent", "num_key_value_heads": 2}, "num_key_value_heads=2: latent attention has"),
        ({"attention_type": "differential", "num_key_value_heads": 1}, "num_key_value_heads=1: .* heads in pairs"),
        ({"attention_type": "latnet"}, "attention_type='latnet': .* did you mean 'latent'"),
        ({"attention_output_gate": "x"}, "attention_output_gate='x': must be one of None, elementwise, headwise"),
        ({"rope_grid_width": 0}, "rope_grid_width=0: must be at least 1"),
        ({"rope_grid_width": 4, "position_embedding_type": "none"}, "rope_grid_width=4: has no effect"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as refused:
        HfxDecoderConfig(**options)
    assert "\n" not in str(refused.value)
