"""Students that begin as some of their teacher's layers, in every family."""

import pytest
import torch
from models.grid import ALL_FAMILIES

from hf_ext.models import HfxEncoderConfig, HfxEncoderDecoderConfig
from hf_ext.tasks.distillation import check_classification, check_student, layer_dropped, layer_pairs
from hf_ext.tasks.text_classification import ClassificationArguments
from hf_ext.training.distillation import DistillationArguments


def test_all_layers_are_the_teacher_itself():
    from hf_ext.models import HfxEncoderDecoderForConditionalGeneration

    torch.manual_seed(0)
    teacher = HfxEncoderDecoderForConditionalGeneration(
        HfxEncoderDecoderConfig(
            vocab_size=97, hidden_size=32, num_attention_heads=2, num_hidden_layers=3, encoder_layers=4, pad_token_id=0,
            decoder_start_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip
    everything = DistillationArguments(student_layers=[0, 1, 2])
    ids = torch.arange(3, 15).reshape(2, 6)
    same = layer_dropped(teacher, everything).eval()
    torch.testing.assert_close(same(ids, labels=ids).logits, teacher(ids, labels=ids).logits, rtol=0, atol=0)
    fewer = layer_dropped(teacher, DistillationArguments(student_layers=[0, 2], student_encoder_layers=[1, 3]))
    assert (fewer.config.num_hidden_layers, fewer.config.encoder_layers) == (2, 2)
    mine, theirs = fewer.state_dict(), teacher.state_dict()
    names = [name for name in mine if "layers.1." in name]
    assert {name.split(".layers")[0].split(".")[-1] for name in names} == {"encoder", "decoder"}
    for name in names:
        layer = "layers.3." if "encoder.layers" in name else "layers.2."
        torch.testing.assert_close(mine[name], theirs[name.replace("layers.1.", layer)], rtol=0, atol=0)


@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_dropped_layers_leave_the_others(family):
    """A teacher whose other layers do nothing computes what the student does."""
    torch.manual_seed(0)
    head = "text"
    teacher = ALL_FAMILIES[family].make(head, "sdpa", num_hidden_layers=3).eval()
    with torch.no_grad():
        for block in (teacher.base_model.layers[0], teacher.base_model.layers[2]):
            for name, parameter in block.named_parameters():
                if name.split(".")[-2] in ("o_proj", "down_proj"):
                    parameter.zero_()
    student = layer_dropped(teacher, DistillationArguments(student_layers=[1])).eval()
    ids = torch.arange(3, 15).reshape(2, 6)
    torch.testing.assert_close(student(ids).logits, teacher(ids).logits)


def test_pairs_end_with_the_last_of_both():
    def config(layers):
        return HfxEncoderConfig(num_hidden_layers=layers)

    assert layer_pairs(config(2), config(6)) == [(0, 2), (1, 5)]
    assert layer_pairs(config(3), config(3)) == [(0, 0), (1, 1), (2, 2)]
    assert layer_pairs(config(4), config(2)) == []


def test_nonsense_is_refused():
    teacher = ALL_FAMILIES["encoder"].make("text", "sdpa")
    depth = teacher.config.num_hidden_layers
    with pytest.raises(ValueError, match=f"the teacher has layers 0 to {depth - 1}"):
        layer_dropped(teacher, DistillationArguments(student_layers=[depth]))
    with pytest.raises(ValueError, match="has one stack; leave it out"):
        layer_dropped(teacher, DistillationArguments(student_layers=[0], student_encoder_layers=[0]))
    with pytest.raises(ValueError, match="neither is given"):
        check_student({}, DistillationArguments())
    with pytest.raises(ValueError, match="both are given"):
        check_student({"model_type": "hfx_encoder"}, DistillationArguments(student_layers=[0]))


def test_what_has_no_effect_beside_a_teacher_is_refused():
    with pytest.raises(ValueError, match=r"classification.r_drop=1.0: has no effect beside a teacher"):
        check_classification(ClassificationArguments(r_drop=1.0))
    check_classification(ClassificationArguments(token_dropout=0.1))
