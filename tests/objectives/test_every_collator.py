"""What all objectives have in common: rows as packing makes them, of any type, in other processes too."""

import pickle

import numpy as np
import pytest
import torch
from objectives.packed_text import (
    EOS,
    MASK,
    PAD,
    SENTINELS,
    VOCAB_SIZE,
    equal_batches,
    make_document,
    make_documents,
    pack,
)
from objectives.paired_text import IDS, read_packed
from torch.utils.data import DataLoader
from transformers import DataCollatorWithFlattening

from hf_ext.data import pack_documents, train_tokenizer
from hf_ext.objectives import (
    CausalCollator,
    DenoisingCollator,
    FillInTheMiddleCollator,
    MaskedCollator,
    MixtureOfDenoisersCollator,
    PrefixLMCollator,
    SpanCorruptionCollator,
)


ONE_SIDED = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "seed": 0}
PAIRED = {**IDS, "seed": 0}
SPANS = {**PAIRED, "sentinel_token_ids": SENTINELS}
FIM = {"prefix_token_id": 20, "middle_token_id": 21, "suffix_token_id": 22, "eos_token_id": EOS}
COLLATORS = {
    "causal": CausalCollator(VOCAB_SIZE, PAD),
    "prefix": PrefixLMCollator(**ONE_SIDED),
    "fill_in_the_middle": FillInTheMiddleCollator(**ONE_SIDED, **FIM),
    "masked": MaskedCollator(**ONE_SIDED, mask_token_id=MASK, special_token_ids=range(10)),
    "spans": MaskedCollator(**ONE_SIDED, mask_token_id=MASK, special_token_ids=range(10), unit="span"),
    "span_corruption": SpanCorruptionCollator(**SPANS),
    "mixture": MixtureOfDenoisersCollator(**SPANS),
    "mixture_decoder": MixtureOfDenoisersCollator(**SPANS, architecture="decoder"),
    "denoising": DenoisingCollator(**PAIRED, mask_token_id=MASK),
}
ONE_SIDE = ("causal", "prefix", "fill_in_the_middle", "masked", "spans", "mixture_decoder")


def _anew(name: str):
    """The collator at the beginning of its draws."""
    return pickle.loads(pickle.dumps(COLLATORS[name]))


def _packed_rows() -> list[dict[str, list[int]]]:
    documents = (document[:40] for seed in range(4) for document in make_documents(seed))
    return list(pack_documents(documents, row_length=48, strategy="best_fit", eos_token_id=EOS, pad_token_id=PAD))


@pytest.mark.parametrize("name", COLLATORS)
def test_rows_of_packing(name):
    rows = _packed_rows()
    batch = _anew(name)(rows)
    num_documents = [
        sum(
            position == 0 and token != PAD
            for token, position in zip(row["input_ids"], row["position_ids"], strict=True)
        )
        for row in rows
    ]
    assert "attention_mask" not in batch
    if name not in ONE_SIDE:
        assert [len(pairs) for pairs in read_packed(batch)] == num_documents
        return
    assert all(values.shape == batch["input_ids"].shape for values in batch.values())
    is_padding = (batch["input_ids"] == PAD).flatten()
    assert (batch["labels"].flatten()[is_padding] == -100).all()
    begins = batch["position_ids"] == 0
    assert (begins & (batch["input_ids"] != PAD)).sum(-1).tolist() == num_documents
    if name not in ("masked", "spans"):  # the shift would have a document's first token predicted by the one before
        assert (batch["labels"][begins] == -100).all()


@pytest.mark.parametrize("name", COLLATORS)
@pytest.mark.parametrize("convert", [np.array, torch.tensor, lambda values: torch.tensor(values, dtype=torch.int32)])
def test_lists_arrays_and_tensors_give_the_same(name, convert):
    rows = _packed_rows()[:4]
    converted = [{column: convert(values) for column, values in row.items()} for row in rows]
    assert equal_batches(_anew(name)(rows), _anew(name)(converted))
    for row, other in zip(rows, converted, strict=True):
        assert all(np.array_equal(row[column], other[column]) for column in row)  # left as they were


@pytest.mark.parametrize("name", COLLATORS)
def test_the_global_generator_decides_without_a_seed(name):
    collator = _anew(name)
    collator.seed = None
    rows = [{"input_ids": make_document(60, torch.Generator().manual_seed(0))}] * 4
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(collator(rows))
    assert equal_batches(batches[0], batches[1])
    assert equal_batches(batches[0], batches[2]) == (name == "causal")


@pytest.mark.parametrize("name", ["span_corruption", "denoising"])
def test_workers(name):
    rows = [{"input_ids": make_document(60, torch.Generator().manual_seed(0))}] * 8
    batches = [list(DataLoader(rows, batch_size=4, num_workers=2, collate_fn=_anew(name))) for _ in range(2)]
    assert all(equal_batches(one, other) for one, other in zip(*batches, strict=True))
    assert not equal_batches(*batches[0])


def test_causal_rows_are_those_that_transformers_flattens():
    documents = make_documents(0)
    theirs = DataCollatorWithFlattening()([{"input_ids": document} for document in documents])
    assert equal_batches(COLLATORS["causal"]([pack(documents)]), dict(theirs))


def test_real_text_comes_back(real_data):
    text = (real_data / "wikitext2" / "valid.txt").read_text(encoding="utf-8")[:80_000]
    tokenizer = train_tokenizer([text], vocab_size=600, model_max_length=512)
    paragraphs = [line for line in text.split("\n") if line.strip()]
    documents = tokenizer(paragraphs)["input_ids"]
    rows = list(pack_documents(documents, row_length=256, eos_token_id=0, pad_token_id=1))[:32]
    sentinels = list(range(700, 600, -1))
    ids = {"vocab_size": 701, "pad_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1}
    batch = SpanCorruptionCollator(**ids, sentinel_token_ids=sentinels, seed=0)(rows)
    # 15 % of the text are replaced by a sentinel in three tokens; the targets have as much, sentinels and ends
    is_sentinel = batch["input_ids"] > 600
    targets = batch["labels"][batch["labels"] != -100]
    hidden = targets[(targets <= 600) & (targets != 0)]
    assert abs(len(hidden) / (32 * 256) - 0.15) < 0.01  # rounded in every document
    assert abs(int(is_sentinel.sum()) / len(hidden) - 1 / 3) < 0.02
    words = batch["input_ids"][(batch["input_ids"] <= 600) & (batch["input_ids"] > 1)]
    everything = torch.cat((words, hidden)).sort().values
    given = torch.tensor([row["input_ids"] for row in rows]).flatten()
    assert torch.equal(everything, given[given > 1].sort().values)
