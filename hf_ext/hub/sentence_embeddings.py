"""An encoder as a folder that sentence-transformers loads: the model and how its tokens become one vector a sentence."""

import json
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_ext.models.configuration_choices import check_choice
from hf_ext.models.pooling import POOLINGS


def save_for_sentence_transformers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    pooling: str = "mean",
    normalize: bool = False,
) -> None:
    """Save model, tokenizer and pooling; after `import hf_ext`, `SentenceTransformer(folder).encode(sentences)` gives what
    `sentence_embeddings(model, **tokenizer(sentences, padding=True, return_tensors="pt"))` gives.

    Args:
        model: an encoder, with or without a head; the head is left out.
        pooling: "mean" or "cls". normalize: whether vectors get length 1.

    Raises:
        ValueError: an unknown pooling.
    """
    check_choice("pooling", pooling, POOLINGS)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    body = model.base_model
    body.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["" if number == 0 else f"{number}_{name}" for number, name in enumerate(modules)]
    _write(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
            for number, (name, path) in enumerate(zip(modules, paths, strict=True))
        ],
    )
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    longest = body.config.max_position_embeddings
    _write(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    _write(
        folder / paths[1] / "config.json",
        {
            "word_embedding_dimension": body.config.hidden_size,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
        },
    )


def _write(path: Path, content) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
