"""Exported graphs as transformers models: `from_pretrained`, `save_pretrained`, pipelines, whatever the engine.

    model = HfxExportedModelForSequenceClassification.from_pretrained("outputs/sst2_onnx")
    pipeline("text-classification", model=model, tokenizer=tokenizer)

They run on the CPU and can't be trained. Those that write text: `exported_generation.py`.
"""

import os
import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from hf_ext.export.exported_folder import Description, new_folder, read_description
from hf_ext.export.parity import verify_graphs
from hf_ext.export.target import Graph
from hf_ext.export.targets import TARGETS
from hf_ext.models.classification_heads import sequence_loss, span_loss, token_loss


class HfxExportedModel(PreTrainedModel):
    """Base of all. A class's task must be the folder's.

    Attributes:
        description: what was exported. graphs: by the names of the parts. folder: where their files are.
    """

    config_class = PretrainedConfig
    base_model_prefix = "model"
    task: str
    output_class: type[ModelOutput]
    accepts_loss_kwargs = False  # the Trainer's num_items_in_batch, for training
    # the graph has its own attention, which was chosen when it was made
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: PretrainedConfig, description: Description, graphs: dict[str, Graph], folder: Path):
        super().__init__(config)
        self.description, self.graphs, self.folder = description, graphs, folder
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        verify: bool = False,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
    ) -> "HfxExportedModel":
        """Open what `export_model` has written.

        Args:
            pretrained_model_name_or_path: its folder, or a repository of the Hub with the same files.
            verify: compare the graphs with the numbers that torch gave, see `hf_ext.export.parity.verify_graphs`.
            revision, token, cache_dir, local_files_only: of the repository, as in transformers.

        Raises:
            ValueError: no export, one of another task, or one whose engine isn't installed.
            ParityError: with `verify`, numbers that are others here.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), revision=revision, **options))
        description = read_description(folder)
        if description.task != cls.task:
            raise ValueError(
                f"folder={str(pretrained_model_name_or_path)!r}: was exported as {description.task}, {cls.__name__} runs "
                f"{cls.task}; use HfxExportedModelFor… of its task"
            )
        target = TARGETS[description.target]
        reason = target.missing()
        if reason is not None:
            raise ValueError(f"folder={str(pretrained_model_name_or_path)!r}: {reason}")
        if verify:
            verify_graphs(folder)
        graphs = {name: target.open(folder / file) for name, file in description.parts.items()}
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config._attn_implementation = "eager"
        model = cls(config, description, graphs, folder)
        if model.can_generate() and (folder / "generation_config.json").is_file():
            model.generation_config = type(model.generation_config).from_pretrained(folder)
        return model

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Copy the export's files into a folder, which appears whole or not at all.

        Raises:
            ValueError: the folder exists and isn't empty.
        """
        given = Path(save_directory)
        if given.is_dir() and not any(given.iterdir()):
            given.rmdir()
        with new_folder(given) as partial:
            shutil.copytree(self.folder, partial, dirs_exist_ok=True)
            self.config.save_pretrained(partial, bundle=False)
            if self.can_generate():
                self.generation_config.save_pretrained(partial)

    def push_to_hub(self, *args, **kwargs):
        """Raises ValueError: a folder is pushed, with its checks."""
        raise ValueError(f"push_to_hub: push the folder, hf_ext.hub.push.push({os.fspath(self.folder)!r}, repo_id)")

    @property
    def device(self) -> torch.device:
        """The engines' inputs and outputs lie on the CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes in and comes out, whatever the engine computes in."""
        return torch.float32

    def to(self, *args, **kwargs) -> "HfxExportedModel":
        """Raises ValueError for another place or dtype than that of its graphs."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if (device is not None and device.type != "cpu") or (dtype is not None and dtype != torch.float32):
            raise ValueError(
                f"to({device or dtype}): an export runs on the CPU in the numbers it was made with; leave it out"
            )
        return self

    def train(self, mode: bool = True) -> "HfxExportedModel":
        """Raises ValueError for training."""
        if mode:
            raise ValueError("train(): an export can't be trained; train the model and export it again")
        return super().train(False)

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ModelOutput:
        """What the graph gives.

        Args:
            input_ids, attention_mask, token_type_ids: (B, T) int64, (B, choices, T) of a head that chooses.
            decoder_input_ids: (B, T) int64, of an encoder-decoder's body.

        Raises:
            ValueError: something else was given, which the graph hasn't, or something is missing.
        """
        refuse_unknown(kwargs)
        takes_both = self.config.is_encoder_decoder and self.task == "feature-extraction"
        if takes_both != (decoder_input_ids is not None):
            what = "missing; give what the decoder reads" if takes_both else "the exported graph has no such input"
            raise ValueError(f"decoder_input_ids: {what}")
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask.long(),
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
            "decoder_input_ids": decoder_input_ids,
        }
        outputs = self.output_class(**self.graphs["model"].run(inputs))
        return outputs.to_tuple() if return_dict is False else outputs


def refuse_unknown(given: dict) -> None:
    """Raises ValueError for the first of them that has a value."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise ValueError(f"{name}: the exported graph has no such input; leave it out, or run the model itself")


class HfxExportedModelForFeatureExtraction(HfxExportedModel):
    task = "feature-extraction"
    output_class = BaseModelOutput


class LabelledExport(HfxExportedModel):
    """One whose graph gives `logits`; with labels there is the loss too, so that the Trainer can evaluate it."""

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ModelOutput:
        """As the base's. labels: what the head's class in torch takes."""
        found = super().forward(input_ids, attention_mask, token_type_ids, **kwargs)
        if labels is not None:
            found = self.output_class(loss=self.loss(found.logits, labels), **found)
        return found.to_tuple() if return_dict is False else found

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the labels other than -100. logits: (..., classes). labels: (...)."""
        return token_loss(logits, labels)


class HfxExportedModelForMaskedLM(LabelledExport):
    task = "fill-mask"
    output_class = MaskedLMOutput


class HfxExportedModelForSequenceClassification(LabelledExport):
    task = "text-classification"
    output_class = SequenceClassifierOutput

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """By the configuration's problem_type, see `hf_ext.models.classification_heads.sequence_loss`."""
        return sequence_loss(logits, labels, self.config)


class HfxExportedModelForTokenClassification(LabelledExport):
    task = "token-classification"
    output_class = TokenClassifierOutput


class HfxExportedModelForMultipleChoice(LabelledExport):
    task = "multiple-choice"
    output_class = MultipleChoiceModelOutput


class HfxExportedModelForQuestionAnswering(HfxExportedModel):
    task = "question-answering"
    output_class = QuestionAnsweringModelOutput

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ModelOutput:
        """As the base's. start_positions, end_positions: (B,), of the answers; with both there is the loss too."""
        found = super().forward(input_ids, attention_mask, token_type_ids, **kwargs)
        if start_positions is not None and end_positions is not None:
            loss = span_loss(found.start_logits, found.end_logits, start_positions, end_positions, attention_mask)
            found = self.output_class(loss=loss, **found)
        return found.to_tuple() if return_dict is False else found
