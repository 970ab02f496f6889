"""An export opened by the class of its task, whichever that is."""

from pathlib import Path

from hf_ext.export.exported_folder import read_description
from hf_ext.export.exported_generation import HfxExportedModelForCausalLM, HfxExportedModelForSeq2SeqLM
from hf_ext.export.exported_model import (
    HfxExportedModel,
    HfxExportedModelForFeatureExtraction,
    HfxExportedModelForMaskedLM,
    HfxExportedModelForMultipleChoice,
    HfxExportedModelForQuestionAnswering,
    HfxExportedModelForSequenceClassification,
    HfxExportedModelForTokenClassification,
)
from hf_ext.models.configuration_choices import check_choice


CLASSES = {
    model_class.task: model_class
    for model_class in (
        HfxExportedModelForCausalLM,
        HfxExportedModelForSeq2SeqLM,
        HfxExportedModelForMaskedLM,
        HfxExportedModelForSequenceClassification,
        HfxExportedModelForTokenClassification,
        HfxExportedModelForQuestionAnswering,
        HfxExportedModelForMultipleChoice,
        HfxExportedModelForFeatureExtraction,
    )
}


def open_export(folder: str | Path) -> HfxExportedModel:
    """A folder that `export_model` has written.

    Raises:
        ValueError: no export, or one whose engine isn't installed.
    """
    task = read_description(folder).task
    check_choice("export.json: task", task, CLASSES)
    return CLASSES[task].from_pretrained(folder)
