from collections import Counter

import pytest
import torch
from objectives.packed_text import EOS, PAD, SENTINELS, VOCAB_SIZE, equal_batches, make_document, make_documents, pack
from objectives.paired_text import IDS, read_packed, read_plain

from hf_ext.objectives import UL2_DENOISERS, Denoiser, MixtureOfDenoisersCollator


MODES = {"R": 5, "S": 6, "X": 7}
# five standard deviations of a count
SIGMAS = 5


def _collator(**settings) -> MixtureOfDenoisersCollator:
    ids = {**IDS, "sentinel_token_ids": SENTINELS, "mode_token_ids": MODES}
    return MixtureOfDenoisersCollator(**{**ids, **settings})


def _restore(source: list[int], target: list[int]) -> tuple[str | None, list[int], list[list[int]]]:
    """Mode, document and hidden spans."""
    modes = {token: mode for mode, token in MODES.items()}
    mode = modes.get(source[0]) if source else None
    assert target[-1] == EOS
    spans: list[list[int]] = []
    for token in target[:-1]:
        if token in SENTINELS:
            assert token == SENTINELS[len(spans)]
            spans.append([])
        else:
            spans[-1].append(token)
    assert spans.pop() == []
    document = []
    for token in source[mode is not None :]:
        document += spans[SENTINELS.index(token)] if token in SENTINELS else [token]
    return mode, document, spans


@pytest.mark.parametrize("seed", range(20))
def test_every_document_comes_back(seed):
    documents = make_documents(seed, lengths=(1, 2, 3, 5, 8, 21, 40, 57))  # X of 3 and 0.5 needs a sentinel in 6 tokens
    collator = _collator(seed=seed)
    plain = read_plain(collator([{"input_ids": document} for document in documents]))
    packed = read_packed(collator([pack(documents[:3], num_padding=3), pack(documents[3:])]))
    for pairs in (plain, packed[0] + packed[1]):
        for document, (source, target) in zip(documents, pairs, strict=True):
            mode, restored, _ = _restore(source, target)
            assert mode in MODES
            assert restored == document


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode_token_ids", [None, MODES])
def test_a_decoder_has_inputs_and_targets_in_one_row(seed, mode_token_ids):
    documents = make_documents(seed, lengths=(1, 2, 3, 5, 8, 21, 40, 57))
    collator = _collator(seed=seed, architecture="decoder", mode_token_ids=mode_token_ids)
    rows = [pack(documents[:3], num_padding=3), pack(documents[3:])]
    for given, originals in ((rows, [documents[:3], documents[3:]]), ([{"input_ids": d} for d in documents], None)):
        batch = collator(given)
        assert set(batch) == {"input_ids", "position_ids", "labels", "prefix_mask"}
        assert batch["prefix_mask"].dtype == torch.bool
        for index, expected in enumerate(originals or [[document] for document in documents]):
            row = {name: values[index] for name, values in batch.items()}
            begins = (row["position_ids"] == 0).nonzero().flatten()
            lengths = begins.diff(append=torch.tensor([len(row["labels"])])).tolist()
            pieces = list(zip(*(row[n].split(lengths) for n in ("input_ids", "labels", "prefix_mask")), strict=True))
            for tokens, labels, inside in pieces[len(expected) :]:
                assert (tokens == PAD).all()
                assert (labels == -100).all()
                assert not inside.any()
            assert len(pieces) <= len(expected) + 1
            for document, (tokens, labels, inside) in zip(expected, pieces, strict=False):
                num_inputs = int(inside.sum())
                assert inside[:num_inputs].all()
                assert (labels[:num_inputs] == -100).all()
                assert labels[0] == -100  # or the document before would predict it
                predicted = max(num_inputs, 1)
                assert torch.equal(labels[predicted:], tokens[predicted:])
                mode, restored, _ = _restore(tokens[:num_inputs].tolist(), tokens[num_inputs:].tolist())
                assert (mode is None) == (mode_token_ids is None)
                assert restored == document[: len(document) - (document[-1] == EOS)]


def test_each_denoiser_has_its_numbers_and_its_share():
    n, length = 3500, 100
    rows = [{"input_ids": make_document(length + 1, torch.Generator().manual_seed(0))}] * n
    drawn = Counter()
    for source, target in read_plain(_collator(seed=0, sentinel_token_ids=list(range(39, 9, -1)))(rows)):
        mode, _, spans = _restore(source, target)
        drawn[mode, sum(map(len, spans)), len(spans)] += 1
        if mode == "S":
            assert source[-2:] == [SENTINELS[0], EOS]  # the text's last quarter
    expected = {
        ("R", 15, 5): 1,
        ("R", 15, 2): 1,
        ("S", 25, 1): 1,
        ("X", 50, 17): 1,
        ("X", 50, 6): 1,
        ("X", 15, 1): 1,  # 64 tokens a span are more than the noise
        ("X", 50, 1): 1,
    }
    assert set(drawn) == set(expected)
    assert all(abs(count - n / 7) < SIGMAS * (n * 6 / 49) ** 0.5 for count in drawn.values())


def test_weights():
    n = 2000
    denoisers = (
        Denoiser("R", 3, 0.15, weight=0.5),
        Denoiser("S", None, 0.25, weight=1.5),
        Denoiser("X", 3, 0.5, weight=0),
    )
    rows = [{"input_ids": list(range(50, 70))}] * n
    first = _collator(seed=0, denoisers=denoisers)(rows)["input_ids"][:, 0]
    counts = Counter(first.tolist())
    assert set(counts) == {MODES["R"], MODES["S"]}
    assert abs(counts[MODES["S"]] - 0.75 * n) < SIGMAS * (n * 0.75 * 0.25) ** 0.5


def test_a_seed_gives_the_same_sequence():
    rows = [pack(make_documents(0, lengths=(5, 20, 40)))]
    one, other = _collator(seed=3), _collator(seed=3)
    first, second = one(rows), one(rows)
    assert equal_batches(first, other(rows))
    assert equal_batches(second, other(rows))
    assert not equal_batches(first, second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "encoder"}, "architecture: 'encoder' is not one of encoder_decoder, decoder"),
        ({"denoisers": ()}, "denoisers: none has a weight above 0"),
        ({"denoisers": (Denoiser("R", 3, 0.15, weight=0),)}, "denoisers: none has a weight above 0"),
        (
            {"mode_token_ids": {"R": 5, "S": 6}},
            r"mode_token_ids: \['R', 'S'\] are given for the modes \['R', 'S', 'X'\]",
        ),
        ({"mode_token_ids": {**MODES, "X": VOCAB_SIZE}}, "mode_token_ids: 400 is outside"),
        ({"mode_token_ids": {**MODES, "X": SENTINELS[0]}}, "mode_token_ids, sentinel_token_ids, eos_token_id"),
        ({"mode_token_ids": {**MODES, "X": PAD}}, "pad_token_id: 0 is a mode token too"),
        ({"sentinel_token_ids": [EOS]}, "sentinel_token_ids, eos_token_id"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        _collator(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("R", 0.5, 0.15), "mean_span_length"), (("R", 3, 1.0), "noise_density"), (("R", 3, 0.5, -1.0), "weight")],
)
def test_bad_denoisers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(*arguments)


def test_a_mode_token_in_the_text_is_refused():
    with pytest.raises(
        ValueError, match="input_ids: 6 in row 0 at position 1 is among sentinel_token_ids, mode_token_ids"
    ):
        _collator()([{"input_ids": [50, MODES["S"]]}])


def test_the_paper_has_seven():
    assert [denoiser.mode for denoiser in UL2_DENOISERS] == ["R", "R", "S", "X", "X", "X", "X"]
