"""What is to be pushed as a folder on disk: the one that is given, or one that objects are saved into."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import DatasetCard, DatasetCardData, RepoCard


# bytes of a parquet file, about
SHARD_SIZE = 500_000_000


@contextmanager
def as_folder(source, repo_type: str) -> Iterator[Path]:
    """The folder; one that was made here is deleted again at the end.

    Args:
        source: a folder's path; or an object or several that `save_pretrained` saves: model, peft model, tokenizer,
            processor, generation config; a card (`huggingface_hub.RepoCard`); or a `datasets.Dataset` or `DatasetDict`,
            which becomes parquet files by split.

    Raises:
        ValueError: no such folder, or something that can't be saved, or is of another kind than the repository.
    """
    if isinstance(source, str | Path):
        folder = Path(source)
        if not folder.is_dir():
            raise ValueError(f"{folder.name}: no such folder; save the model into one first")
        yield folder
        return
    with TemporaryDirectory(prefix="hf_ext_push_") as made:
        objects = list(source) if isinstance(source, Sequence) and not isinstance(source, RepoCard) else [source]
        _save(objects, Path(made), repo_type)
        yield Path(made)


def _save(objects: list, folder: Path, repo_type: str) -> None:
    for one in objects:
        is_data = type(one).__module__.startswith("datasets.")
        if is_data and repo_type != "dataset":
            raise ValueError(f"repo_type={repo_type!r}: a {type(one).__name__} goes to a repo_type='dataset'")
        if hasattr(one, "save_pretrained") and repo_type != "model":
            raise ValueError(f"repo_type={repo_type!r}: a {type(one).__name__} goes to a repo_type='model'")
        if not is_data and not hasattr(one, "save_pretrained") and not isinstance(one, RepoCard):
            raise ValueError(
                f"source: a {type(one).__name__} can't be pushed; give a folder, or models, tokenizers, processors, "
                "generation configs, cards, data sets"
            )
    for one in sorted(objects, key=lambda one: isinstance(one, RepoCard)):  # peft writes a card too: ours last
        if isinstance(one, RepoCard):
            one.save(folder / "README.md")
        elif hasattr(one, "save_pretrained"):
            one.save_pretrained(folder)
        else:
            _save_data(one, folder)


def _save_data(data, folder: Path) -> None:
    """data/SPLIT-00000-of-0000N.parquet, and a card whose metadata says which files are which split."""
    splits = dict(data) if isinstance(data, dict) else {str(data.split or "train"): data}
    (folder / "data").mkdir()
    for split, rows in splits.items():
        count = max(1, math.ceil((rows.data.nbytes or 0) / SHARD_SIZE))
        for index in range(count):
            path = folder / "data" / f"{split}-{index:05d}-of-{count:05d}.parquet"
            rows.shard(count, index, contiguous=True).to_parquet(path)
    files = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    metadata = DatasetCardData(configs=[{"config_name": "default", "data_files": files}])
    rows = ", ".join(f"{len(rows):,} rows for {split}" for split, rows in splits.items())
    DatasetCard(f"---\n{metadata.to_yaml()}\n---\n\n{rows}.\n").save(folder / "README.md")
