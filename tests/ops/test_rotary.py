"""Rotary frequencies against transformers', the rotation against complex numbers."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hf_ext.ops.rotary import (
    ROPE_RULES,
    apply_rotary,
    apply_rotary_to,
    check_rope_parameters,
    document_lengths,
    rope_frequencies,
    rotary_cos_sin,
    rotate_half,
    rotate_interleaved,
)


# fp32 formulas with their terms in another order: four units in the last place
FREQUENCY = {"rtol": 4 * torch.finfo(torch.float32).eps, "atol": 0.0}
# the same formula in the same order
EXACT = {"rtol": 0.0, "atol": 0.0}
# products and sums of two fp32 numbers of order 1
ROTATION = {"rtol": 1e-5, "atol": 1e-5}
# dot products of 16 fp32 numbers at angles up to 1000 rad, where fp32 keeps 6e-5 rad
SCORE = {"rtol": 0.0, "atol": 2e-3}
# angles up to 100,000 rad in fp32: half a unit in the last place is 0.004 rad
FAR_ANGLE = {"rtol": 0.0, "atol": 0.005}
# and rounded to bf16: half a unit of numbers below 1 is 2^-9
FAR_ANGLE_BF16 = {"rtol": 0.0, "atol": 0.005 + 2**-9}

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}


def longrope_parameters(pairs, **more):
    short, long = [1 + i / 10 for i in range(pairs)], [2.0 + i for i in range(pairs)]
    return {"short_factor": short, "long_factor": long, "original_max_position_embeddings": 64, **more}


SETTINGS = [
    ("linear", {"factor": 1.0}),
    ("linear", {"factor": 3.7}),
    ("linear", {"factor": 2, "partial_rotary_factor": 0.5}),
    ("dynamic", {"factor": 2.0}),
    ("dynamic", {"factor": 8.0, "partial_rotary_factor": 0.25}),
    ("yarn", YARN),
    ("yarn", {**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707}),
    ("yarn", {**YARN, "mscale": 0.707}),
    ("yarn", {**YARN, "attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0}),
    ("yarn", {**YARN, "truncate": False}),
    ("yarn", {**YARN, "beta_fast": 4.0, "beta_slow": 4.0, "partial_rotary_factor": 0.5}),
    ("yarn", {**YARN, "beta_fast": 1e9, "beta_slow": 1e8}),
    ("yarn", {**YARN, "beta_fast": 4.0, "beta_slow": 4.0, "truncate": False}),
    ("yarn", {**YARN, "original_max_position_embeddings": 10**10, "beta_fast": 1e6}),
    ("longrope", longrope_parameters(32)),
    ("longrope", longrope_parameters(32, factor=1.0)),
    ("longrope", longrope_parameters(32, factor=16.0)),
    ("longrope", longrope_parameters(32, attention_factor=1.19)),
    ("longrope", longrope_parameters(16, partial_rotary_factor=0.5)),
    ("llama3", LLAMA3),
    ("llama3", {**LLAMA3, "factor": 32.0, "high_freq_factor": 2.5}),
    ("llama3", {**LLAMA3, "original_max_position_embeddings": 100, "partial_rotary_factor": 0.5}),
    ("proportional", {}),
    ("proportional", {"partial_rotary_factor": 0.25}),
    ("proportional", {"partial_rotary_factor": 0.3, "factor": 8.0}),
]


def transformers_frequencies(rope_type, parameters, rope_theta, max_position_embeddings, seq_len=None):
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        head_dim=64,
        max_position_embeddings=max_position_embeddings,
        rope_parameters={"rope_type": rope_type, "rope_theta": rope_theta, **parameters},
    )
    return ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=seq_len)


@pytest.mark.parametrize("rope_theta", [10_000.0, 500_000.0, 1e6])
@pytest.mark.parametrize(("rope_type", "parameters"), SETTINGS)
def test_every_rule_equals_transformers(rope_type, parameters, rope_theta):
    given = {"rope_type": rope_type, "rope_theta": rope_theta, **parameters}
    check_rope_parameters(given, 64, 128)
    for seq_len in (None, 1, 63, 64, 65, 128, 129, 1000, 65_536):
        expected, expected_scaling = transformers_frequencies(rope_type, parameters, rope_theta, 128, seq_len)
        inv_freq, scaling = rope_frequencies(**given, head_dim=64, max_position_embeddings=128, seq_len=seq_len)
        assert inv_freq.dtype == torch.float32
        torch.testing.assert_close(inv_freq, expected, **FREQUENCY)
        assert scaling == pytest.approx(expected_scaling, rel=1e-12)


def test_default_rule_equals_transformers():
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters={"rope_theta": 5e5})
    module = LlamaRotaryEmbedding(config)
    inv_freq, scaling = rope_frequencies(head_dim=64, rope_theta=5e5)
    torch.testing.assert_close(inv_freq, module.inv_freq, **EXACT)

    hidden_states, position_ids = torch.zeros(2, 7, 256), torch.arange(14).reshape(2, 7)
    for ours, theirs in zip(
        rotary_cos_sin(position_ids, inv_freq, scaling), module(hidden_states, position_ids), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_every_rule_of_transformers_is_here_and_tested():
    assert set(ROPE_RULES) == {"default", *ROPE_INIT_FUNCTIONS}
    assert {rope_type for rope_type, _ in SETTINGS} == set(ROPE_INIT_FUNCTIONS)


def test_partial_default_and_proportional_sizes():
    assert rope_frequencies(head_dim=80, partial_rotary_factor=0.4)[0].shape == (16,)
    inv_freq, _ = rope_frequencies("proportional", head_dim=64, partial_rotary_factor=0.25)
    whole, _ = rope_frequencies(head_dim=64)
    assert torch.equal(inv_freq[:8], whole[:8])
    assert torch.equal(inv_freq[8:], torch.zeros(24))


def test_none_counts_as_absent():
    with_none, _ = rope_frequencies(
        "yarn", head_dim=64, max_position_embeddings=4096, **YARN, truncate=None, mscale=None
    )
    assert torch.equal(with_none, rope_frequencies("yarn", head_dim=64, max_position_embeddings=4096, **YARN)[0])
    derived = {**YARN, "factor": None}
    assert torch.equal(with_none, rope_frequencies("yarn", head_dim=64, max_position_embeddings=4096, **derived)[0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("rope_type", "parameters"), [("dynamic", {"factor": 3.0}), ("longrope", longrope_parameters(32))]
)
def test_each_token_gets_the_frequencies_of_its_own_length(rope_type, parameters, compiled):
    lengths = torch.tensor([[1, 64, 65, 128], [129, 500, 65_536, 64]])

    def frequencies(seq_len):
        return rope_frequencies(rope_type, head_dim=64, max_position_embeddings=128, seq_len=seq_len, **parameters)

    traced = torch.compile(frequencies, fullgraph=True, backend="aot_eager") if compiled else frequencies
    inv_freq, scaling = traced(lengths)
    assert inv_freq.shape == (2, 4, 32)
    for row in range(2):
        for column in range(4):
            expected, expected_scaling = frequencies(int(lengths[row, column]))
            torch.testing.assert_close(inv_freq[row, column], expected, **FREQUENCY)
            assert scaling == expected_scaling


def test_rules_that_ignore_the_length_ignore_a_tensor_of_lengths():
    assert rope_frequencies("linear", head_dim=64, factor=2.0, seq_len=torch.ones(2, 3))[0].shape == (32,)


def test_document_lengths():
    position_ids = torch.tensor(
        [
            [0, 1, 2, 0, 1, 0, 1, 2],  # packed
            [0, 1, 2, 3, 4, 5, 6, 7],
            [0, 0, 0, 0, 1, 2, 3, 4],  # left padding
            [7, 8, 9, 3, 4, 0, 0, 1],  # pieces of documents
        ]
    )
    expected = torch.tensor([[3, 3, 3, 2, 2, 3, 3, 3], [8] * 8, [1, 1, 1, 5, 5, 5, 5, 5], [10, 10, 10, 5, 5, 1, 2, 2]])
    assert torch.equal(document_lengths(position_ids), expected)
    assert torch.equal(document_lengths(position_ids.to(torch.int32)), expected)
    assert torch.equal(document_lengths(torch.tensor([[41]])), torch.tensor([[42]]))
    compiled = torch.compile(document_lengths, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(position_ids), expected)


def test_document_lengths_exports_with_a_dynamic_length():
    class Lengths(torch.nn.Module):
        def forward(self, position_ids):
            return document_lengths(position_ids)

    length = torch.export.Dim("length", min=1, max=100)
    program = torch.export.export(Lengths(), (torch.arange(6)[None],), dynamic_shapes=({1: length},)).module()
    assert torch.equal(program(torch.tensor([[0, 1, 0]])), torch.tensor([[2, 2, 1]]))
    assert torch.equal(program(torch.tensor([[41]])), torch.tensor([[42]]))


def complex_rotation(x, position_ids, inv_freq, interleaved):
    """Pairs as complex numbers times e^(i m theta), in fp64."""
    x = x.double()
    if interleaved:
        pairs = torch.complex(x[..., 0::2], x[..., 1::2])
    else:
        pairs = torch.complex(*x.chunk(2, dim=-1))
    angles = position_ids[:, None, :, None].double() * inv_freq.double()
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    if interleaved:
        return torch.view_as_real(turned).flatten(-2).float()
    return torch.cat((turned.real, turned.imag), dim=-1).float()


def heads(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_the_complex_product(interleaved):
    query, key = heads(2, 4, 11, 16), heads(2, 2, 11, 16, seed=1)
    position_ids = torch.stack((torch.arange(11), torch.arange(11) + 5))
    inv_freq, _ = rope_frequencies(head_dim=16)
    cos, sin = rotary_cos_sin(position_ids, inv_freq, interleaved=interleaved)
    assert cos.shape == sin.shape == (2, 11, 16)
    for ours, x in zip(apply_rotary(query, key, cos, sin, interleaved), (query, key), strict=True):
        torch.testing.assert_close(ours, complex_rotation(x, position_ids, inv_freq, interleaved), **ROTATION)


def test_quarter_turns():
    assert rotate_half(torch.tensor([1.0, 2, 3, 4])).tolist() == [-3, -4, 1, 2]
    assert rotate_interleaved(torch.tensor([1.0, 2, 3, 4])).tolist() == [-2, 1, -4, 3]


def test_the_two_conventions_are_a_permutation_of_dims_apart():
    x, position_ids = heads(1, 3, 9, 16), torch.arange(9)[None]
    inv_freq, _ = rope_frequencies(head_dim=16)
    neighbours_to_halves = torch.arange(16).reshape(8, 2).T.flatten()
    interleaved = apply_rotary_to(x, *rotary_cos_sin(position_ids, inv_freq, interleaved=True), interleaved=True)
    halves = apply_rotary_to(x[..., neighbours_to_halves], *rotary_cos_sin(position_ids, inv_freq))
    torch.testing.assert_close(interleaved[..., neighbours_to_halves], halves, **ROTATION)
    assert not torch.allclose(interleaved, halves, **ROTATION)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("rope_type", "parameters"), [("default", {}), ("llama3", LLAMA3)])
def test_scores_depend_on_the_distance_only(rope_type, parameters, interleaved):
    query, key = heads(1, 2, 6, 16), heads(1, 2, 6, 16, seed=1)
    inv_freq, _ = rope_frequencies(rope_type, head_dim=16, **parameters)

    def scores(query_shift, key_shift):
        position_ids = torch.arange(6)[None]
        q = apply_rotary_to(query, *rotary_cos_sin(position_ids + query_shift, inv_freq, 1.0, interleaved), interleaved)
        k = apply_rotary_to(key, *rotary_cos_sin(position_ids + key_shift, inv_freq, 1.0, interleaved), interleaved)
        return q @ k.mT

    torch.testing.assert_close(scores(0, 0), scores(1000, 1000), **SCORE)
    assert (scores(0, 0) - scores(1, 0)).abs().max() > 100 * SCORE["atol"]


@pytest.mark.parametrize("interleaved", [False, True])
def test_partial_rotation_passes_the_rest(interleaved):
    x, position_ids = heads(2, 3, 5, 20), torch.arange(5).expand(2, 5)
    inv_freq, _ = rope_frequencies(head_dim=20, partial_rotary_factor=0.4)
    cos, sin = rotary_cos_sin(position_ids, inv_freq, interleaved=interleaved)
    turned = apply_rotary_to(x, cos, sin, interleaved)
    assert torch.equal(turned[..., 8:], x[..., 8:])
    expected = complex_rotation(x[..., :8], position_ids, inv_freq, interleaved)
    torch.testing.assert_close(turned[..., :8], expected, **ROTATION)


def test_pairs_of_frequency_zero_stand_still():
    x = heads(1, 2, 5, 16)
    inv_freq, _ = rope_frequencies("proportional", head_dim=16, partial_rotary_factor=0.5)
    turned = apply_rotary_to(x, *rotary_cos_sin(torch.arange(5)[None], inv_freq))
    still = [4, 5, 6, 7, 12, 13, 14, 15]
    assert torch.equal(turned[..., still], x[..., still])
    assert not torch.equal(turned[..., :4], x[..., :4])


def test_angles_are_fp32_at_position_100_000_whatever_the_dtype():
    position_ids = torch.arange(99_990, 100_010)[None]
    inv_freq, _ = rope_frequencies(head_dim=64)
    angles = position_ids[..., None].double() * inv_freq.double()
    expected = torch.cat((angles, angles), dim=-1).cos()
    cos, _ = rotary_cos_sin(position_ids, inv_freq)
    torch.testing.assert_close(cos.double(), expected, **FAR_ANGLE)
    cos, sin = rotary_cos_sin(position_ids, inv_freq, dtype=torch.bfloat16)
    assert cos.dtype == sin.dtype == torch.bfloat16
    torch.testing.assert_close(cos.double(), expected, **FAR_ANGLE_BF16)


def test_output_keeps_the_dtype_of_the_heads():
    x = heads(1, 2, 5, 16).to(torch.bfloat16)
    cos, sin = rotary_cos_sin(torch.arange(5)[None], rope_frequencies(head_dim=16)[0])
    assert apply_rotary_to(x, cos, sin).dtype == torch.bfloat16
    assert apply_rotary_to(x, cos[..., :8], sin[..., :8]).dtype == torch.bfloat16


def test_attention_scaling_multiplies_both():
    position_ids, inv_freq = torch.arange(5)[None], rope_frequencies(head_dim=16)[0]
    for plain, scaled in zip(
        rotary_cos_sin(position_ids, inv_freq), rotary_cos_sin(position_ids, inv_freq, 1.5), strict=True
    ):
        torch.testing.assert_close(scaled, plain * 1.5, **EXACT)


def test_a_packed_row_turns_as_its_documents_by_themselves():
    """The point of lengths by token: frequencies don't leak from a long document into a short one."""

    def angles(position_ids):
        inv_freq, scaling = rope_frequencies(
            "dynamic", head_dim=16, max_position_embeddings=4, factor=4.0, seq_len=document_lengths(position_ids)
        )
        return rotary_cos_sin(position_ids, inv_freq, scaling)

    short, long = torch.arange(3)[None], torch.arange(9)[None]
    for packed, first, second in zip(angles(torch.cat((short, long), dim=1)), angles(short), angles(long), strict=True):
        torch.testing.assert_close(packed, torch.cat((first, second), dim=1), **EXACT)
    assert not torch.equal(angles(short)[0][0, 2], angles(long)[0][0, 2])


def without(parameters, *names):
    return {name: value for name, value in parameters.items() if name not in names}


LONGROPE = longrope_parameters(32)
WRONG = [
    ("nonsense", "rope_parameters='nonsense'.*must be a dict"),
    ({"rope_type": "yarm", "factor": 2.0}, "rope_type='yarm'.*did you mean 'yarn'"),
    ({"rope_type": "zzz"}, "rope_type='zzz'.*choose from default, dynamic"),
    ({"type": "linear", "factor": 2.0}, "type='linear'.*rope_type='default'"),
    ({"rope_type": "linear"}, "factor is missing.*'linear'"),
    ({"rope_type": "linear", "factor": None}, "factor is missing"),
    ({"rope_type": "dynamic"}, "factor is missing"),
    ({"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings is missing"),
    ({"rope_type": "longrope", **without(LONGROPE, "long_factor")}, "long_factor is missing"),
    ({"rope_type": "llama3", **without(LLAMA3, "low_freq_factor")}, "low_freq_factor is missing"),
    ({"rope_type": "default", "factor": 2.0}, "factor=2.0: not a parameter of rope_type='default'"),
    ({"rope_type": "linear", "facto": 2.0}, "facto=2.0.*did you mean 'factor'"),
    ({"rope_type": "linear", "factor": 0.5}, "factor=0.5: must be at least 1"),
    ({"rope_type": "linear", "factor": "2"}, "factor='2': must be a finite number, not str"),
    ({"rope_type": "linear", "factor": True}, "factor=True.*bool"),
    ({"rope_type": "linear", "factor": float("nan")}, "factor=nan: must be a finite number"),
    ({"rope_theta": 0}, "rope_theta=0: must be positive"),
    ({"rope_theta": -1e4}, "rope_theta=-10000.0: must be positive"),
    ({"rope_theta": [1e4]}, "rope_theta=.*must be a finite number, not list"),
    ({"partial_rotary_factor": 0}, "partial_rotary_factor=0: must be positive"),
    ({"partial_rotary_factor": 1.5}, "partial_rotary_factor=1.5: must be a share"),
    ({"partial_rotary_factor": 0.4}, "rotary dim 25 .of head_dim=64.: must be even"),
    ({"partial_rotary_factor": 0.01}, "rotary dim 0"),
    ({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 2 / 64}, "rotary dim 2: rope_type='dynamic'"),
    ({"rope_type": "longrope", **LONGROPE, "short_factor": [1.0] * 31}, "short_factor: 31 numbers.*32 pairs"),
    ({"rope_type": "longrope", **LONGROPE, "long_factor": [1.0] * 33}, "long_factor: 33 numbers.*32 pairs"),
    ({"rope_type": "longrope", **LONGROPE, "long_factor": 2.0}, "long_factor=2.0: must be a list"),
    ({"rope_type": "longrope", **LONGROPE, "long_factor": [0.0] * 32}, "long_factor=.*positive"),
    ({"rope_type": "longrope", **LONGROPE, "original_max_position_embeddings": 1}, "embeddings=1: .*at least 2"),
    (
        {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0},
        "high_freq_factor=1.0: must be above low_freq_factor=1",
    ),
    ({"rope_type": "yarn", **YARN, "beta_fast": 0.5}, "beta_fast=0.5: must not be below beta_slow=1.0"),
    ({"rope_type": "yarn", **YARN, "beta_slow": 64}, "beta_fast=32.0: must not be below beta_slow=64"),
    ({"rope_type": "yarn", **YARN, "truncate": 1}, "truncate=1: must be true or false"),
    ({"rope_type": "yarn", **YARN, "rope_theta": 1}, "rope_theta=1.*yarn"),
    ({"rope_type": "yarn", **YARN, "original_max_position_embeddings": 10.5}, "10.5: must be a whole number"),
    ({"rope_type": "yarn", "original_max_position_embeddings": 8192}, "max_position_embeddings=4096: below orig"),
]


@pytest.mark.parametrize(("rope_parameters", "message"), WRONG)
def test_wrong_parameters_are_refused_in_one_line(rope_parameters, message):
    with pytest.raises(ValueError, match=message) as error:
        check_rope_parameters(rope_parameters, 64, 4096)
    assert "\n" not in str(error.value)


def test_odd_head_is_refused_for_every_rule():
    with pytest.raises(ValueError, match="rotary dim 63"):
        check_rope_parameters({"rope_type": "default"}, 63, 4096)
    with pytest.raises(ValueError, match="rotary dim 63"):
        check_rope_parameters({"rope_type": "proportional", "partial_rotary_factor": 2 / 3}, 63, 4096)


@pytest.mark.parametrize("rule", ["default", "linear", "dynamic", "proportional"])
def test_trained_length_may_be_stated_under_every_rule(rule):
    rope_parameters = {"rope_type": rule} | ({"factor": 2.0} if rule in ("linear", "dynamic") else {})
    stated = {**rope_parameters, "original_max_position_embeddings": 16}
    check_rope_parameters(stated, 64, 32)
    options = {"head_dim": 64, "max_position_embeddings": 32, "seq_len": 64}
    expected, _ = rope_frequencies(**rope_parameters, **options)
    assert torch.equal(rope_frequencies(**stated, **options)[0], expected)


def test_right_parameters_pass():
    check_rope_parameters({}, 64, 4096)
    check_rope_parameters({"rope_type": "linear", "type": "linear", "factor": 1}, 64, 4096)
    check_rope_parameters({"rope_type": "yarn", **YARN, "truncate": None, "attention_factor": None}, 64, 4096)
    check_rope_parameters({"rope_type": "proportional", "partial_rotary_factor": 0.3}, 64, 4096)
    check_rope_parameters({"rope_type": "longrope", **longrope_parameters(16), "partial_rotary_factor": 0.5}, 64, 4096)
