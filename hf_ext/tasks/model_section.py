"""The model section of a recipe: an architecture to train from scratch, or a trained model to go on from.

    model: {model_type: hfx_encoder, hidden_size: 256, …}       # from scratch
    model: {path: outputs/masked, hidden_dropout: 0.2, …}       # a folder or Hub name; fields of its configuration changed
    model: {path: outputs/reviews, new_head: true}              # the trained body, under a head for other labels

`dtype` (of the weights) and `attn_implementation` go to either.
"""

import dataclasses
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_ext.hub.model_folder import check_holds_model
from hf_ext.hub.untrusted_folder import check_loadable
from hf_ext.models.code_by_name import check_names_no_code
from hf_ext.models.configuration_choices import check_known
from hf_ext.models.configuration_limits import check_saved_sizes


# keys of the section that are no fields of a configuration
_LOADING = ("path", "revision", "new_head", "dtype", "attn_implementation")
# ends of the names of classes with a head for labels
_LABELLED = ("ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering")
# nothing of what a recipe names is run or unpickled, and nobody is asked whether it may be
_NO_CODE = {"trust_remote_code": False}
_PLAIN_WEIGHTS = {**_NO_CODE, "use_safetensors": True}
_FROM_TOKENIZER = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """What a recipe says about its model.

    Attributes:
        path, revision: the trained model to go on from; None: from scratch.
        fields: fields of the configuration.
        loading: `dtype`, `attn_implementation` where they are given.
        new_head: whether the trained model's own head is left out.
    """

    path: str | None
    revision: str | None
    fields: dict
    loading: dict
    new_head: bool = False

    def config(
        self, tokenizer: PreTrainedTokenizerBase | None = None, *, vocab_size: int | None = None, **head
    ) -> PretrainedConfig:
        """The configuration; called once before any data is read, to refuse nonsense.

        Args:
            tokenizer: gives a model from scratch its vocabulary's size and special tokens; None before there is one.
            vocab_size: what the tokenizer is meant to have, while there is none.
            head: fields that the task sets: `id2label`, `label2id`, `problem_type`, …

        Raises:
            ValueError: an unknown model type or field (with the nearest name), or what the configuration itself refuses.
        """
        if self.path is not None:
            try:
                config = AutoConfig.from_pretrained(self.path, revision=self.revision, **_NO_CODE)
                check_names_no_code({"attn_implementation": config._attn_implementation}, f"model.path={self.path!r}")
            except OSError as error:  # no such folder, no such model, no network
                raise ValueError(_missing(self.path)) from error
            known = config.to_dict()
            check_saved_sizes(self.fields, "model")
            check_known("model", self.fields, [name for name in known if name not in ("model_type", "vocab_size")])
            # built anew, so that a changed field is checked
            return type(config).from_dict({**known, **self.fields, **head})
        fields = dict(self.fields)
        check_saved_sizes(fields, "model")
        model_type = fields.pop("model_type", "hfx_decoder")
        try:
            config_class = type(AutoConfig.for_model(model_type))
        except ValueError as error:
            raise ValueError(f"model.model_type={model_type!r}: not known to transformers or hf_ext") from error
        if "vocab_size" in fields:
            raise ValueError(
                f"model.vocab_size={fields['vocab_size']}: comes from the tokenizer; set tokenizer.vocab_size"
            )
        known = [f.name for f in dataclasses.fields(config_class)]
        check_known("model", fields, [*known, *_LOADING])
        if tokenizer is not None:
            vocab_size = len(tokenizer)
            fields = {**{name: getattr(tokenizer, name) for name in _FROM_TOKENIZER}, **fields}
        return config_class(vocab_size=vocab_size, **{**fields, **head})

    def build(self, auto_class, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """The model with a head of `auto_class`: new weights, or trained ones with the vocabulary grown by added tokens.

        Raises:
            ValueError: `auto_class` has no such model; a trained head for other labels; a tokenizer of more tokens than the
                trained model has embeddings for.
        """
        if type(config) not in auto_class._model_mapping:
            able = sorted(c.model_type for c in auto_class._model_mapping if c.model_type.startswith("hfx_"))
            raise ValueError(
                f"model.model_type={config.model_type!r}: has no {auto_class.__name__}; use one of {', '.join(able)}"
            )
        if self.path is None:
            return auto_class.from_config(config, **self.loading)
        if self._leaves_head(auto_class._model_mapping[type(config)], config):
            saved = {"revision": self.revision, **_PLAIN_WEIGHTS}
            model = body_under_new_head(auto_class, config, self.path, saved, **self.loading)
        else:
            model = auto_class.from_pretrained(
                self.path, revision=self.revision, config=config, **_PLAIN_WEIGHTS, **self.loading
            )
        num_embeddings = model.get_input_embeddings().num_embeddings
        if tokenizer.vocab_size > num_embeddings:
            raise ValueError(
                f"tokenizer: has {tokenizer.vocab_size:,} tokens, model.path={self.path!r} has embeddings for "
                f"{num_embeddings:,}; leave tokenizer out to take the model's own"
            )
        if len(tokenizer) > num_embeddings:  # tokens that the task added
            model.resize_token_embeddings(len(tokenizer))
        return model

    def _leaves_head(self, model_class: type, config: PretrainedConfig) -> bool:
        """Whether the trained model gives its body alone: it was asked to, or its head is one for labels of another kind,
        whose weights may have the same names.

        Raises:
            ValueError: its head is for other labels.
        """
        saved = AutoConfig.from_pretrained(self.path, revision=self.revision, **_NO_CODE)
        trained = (saved.architectures or [""])[0]
        if self.new_head or not trained.endswith(_LABELLED):
            return self.new_head
        if trained != model_class.__name__:
            return True
        before, now = (list((c.id2label or {}).values()) for c in (saved, config))
        is_named = any(name != f"LABEL_{number}" for number, name in enumerate(before))
        if before != now if is_named else len(before) != len(now):
            raise ValueError(
                f"model.path={self.path!r}: its head is for {_names(before)}, the data's labels are {_names(now)}; map them "
                "with the task's label names, or draw a new head with model.new_head: true"
            )
        return False


def body_under_new_head(
    auto_class, config: PretrainedConfig, path: str | Path, saved: dict, **loading
) -> PreTrainedModel:
    """A model of `config` with the body that was saved at `path`, whatever head that has, and a new one.

    Args:
        saved: for `from_pretrained` alone: the revision, how files are read. loading: `dtype`, `attn_implementation`.

    Raises:
        ValueError: another body, which doesn't have all weights.
    """
    model = auto_class.from_config(config, **loading)
    body = AutoModel.from_pretrained(path, config=config, **saved, **loading)
    # a body alone may have a pooler that the head's has not
    missing = model.base_model.load_state_dict(body.state_dict(), strict=False).missing_keys
    if missing:
        raise ValueError(f"{path}: holds no {missing[0]} for a {type(model).__name__}; name another model")
    return model


def _names(labels: list[str]) -> str:
    more = f" … ({len(labels)})" if len(labels) > 6 else ""
    return ", ".join(map(str, labels[:6])) + more


def _missing(path: str) -> str:
    is_folder = Path(path).is_absolute() or len(Path(path).parts) > 2 or path.startswith((".", "~", "outputs"))
    remedy = "train one first" if is_folder else "check the name and the connection (HF_HUB_OFFLINE unset)"
    return f"path={path!r}: neither a folder here nor found on the Hub; {remedy}"


def read_model_section(section: dict) -> ModelSection:
    """The section as given.

    Raises:
        ValueError: one line, for what can't be meant.
    """
    section = dict(section)
    path, revision, new_head = section.pop("path", None), section.pop("revision", None), section.pop("new_head", False)
    loading = {name: section.pop(name) for name in ("dtype", "attn_implementation") if name in section}
    if path is not None and "model_type" in section:
        raise ValueError(
            f"model.model_type={section['model_type']!r}: comes from model.path={str(path)!r}; leave one out"
        )
    if path is None and revision is not None:
        raise ValueError(f"model.revision={revision!r}: has no effect without model.path; leave it out")
    if not isinstance(new_head, bool) or (path is None and new_head):
        raise ValueError(f"model.new_head={new_head!r}: is true or false, and needs model.path; leave it out")
    # a folder's name must not be asked of the Hub, with its retries
    if path is not None and not Path(path).is_dir() and "train one first" in _missing(str(path)):
        raise ValueError(_missing(str(path)))
    if path is not None and Path(path).is_dir():
        check_holds_model(path, f"model.path={str(path)!r}")
        check_loadable(Path(path))
    dtype = loading.get("dtype", "float32")
    if not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise ValueError(f"model.dtype={dtype!r}: must be a torch dtype such as float32 or bfloat16")
    return ModelSection(None if path is None else str(path), revision, section, loading, new_head)
