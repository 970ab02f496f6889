import json
import os
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from hf_ext.data import TOKENIZER_KINDS, train_tokenizer


CORPUS = [
    "def add(first, second):\n\treturn first + second\n",
    "The cat sat on the mat.  The cat sat on the hat.\n",
    "naïve café — Ünïcödé, 日本語, עברית",
] * 5
TRICKY = [
    "",
    " ",
    "  leading and trailing  ",
    "\ttabs\t\tand\nnew\r\nlines\n\n\n",
    "don't , wait . it 's clean_up bait !",
    "emoji 👩‍👩‍👧‍👦🏽 flags 🇺🇦, combining e\u0301 vs é, zero\u200bwidth, bom\ufeff, nul\x00",
    "日本語テキスト العربية हिन्दी 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff",
    "ﬁ ligature, ① NFKC bait, İstanbul ß ẞ",
    "\u2028 separators \u2029\u0085\u00a0",
    "<not special> <| endoftext |>",
]


def _bpe(**settings):
    return train_tokenizer(CORPUS, **{"kind": "byte_level_bpe", "vocab_size": 300, "model_max_length": 64, **settings})


def _characters(texts=CORPUS, **settings):
    return train_tokenizer(texts, **{"kind": "characters", "model_max_length": 64, **settings})


def _ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", TRICKY)
def test_byte_level_bpe_gives_any_text_back(text):
    tokenizer = _bpe()
    assert tokenizer.decode(_ids(tokenizer, text)) == text
    assert tokenizer.unk_token is None


@pytest.mark.parametrize("text", [text for text in TRICKY if text])
def test_characters_are_one_token_per_code_point(text):
    tokenizer = _characters([*CORPUS, text])
    ids = _ids(tokenizer, text)
    assert tokenizer.convert_ids_to_tokens(ids) == list(text)
    assert tokenizer.decode(ids) == text


def test_unknown_character_becomes_the_unknown_token():
    tokenizer = _characters(["ab\n"])
    assert _ids(tokenizer, "aéb") == [tokenizer.convert_tokens_to_ids("a"), 2, tokenizer.convert_tokens_to_ids("b")]
    assert tokenizer.unk_token_id == 2
    assert len(tokenizer) == 3 + 3


@pytest.mark.parametrize("build", [_bpe, _characters])
def test_special_tokens_come_first_and_are_never_added(build):
    tokenizer = build()
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", 0)
    assert (tokenizer.bos_token_id, tokenizer.pad_token, tokenizer.pad_token_id) == (0, "<|pad|>", 1)
    assert tokenizer("the cat")["input_ids"] == _ids(tokenizer, "the cat")
    assert 0 not in _ids(tokenizer, "the cat")
    assert _ids(tokenizer, "<|endoftext|>") == [0]
    assert tokenizer.model_max_length == 64


@pytest.mark.parametrize("build", [_bpe, _characters])
def test_same_text_gives_the_same_files(build, tmp_path):
    build().save_pretrained(tmp_path / "first")
    build().save_pretrained(tmp_path / "second")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert "tokenizer.json" in names
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


@pytest.mark.heavy
def test_reloads_in_a_fresh_process_without_this_package(tmp_path):
    """Also beside the config of a model type that transformers does not know, as in a folder of one of our models."""
    script = (
        "import json, sys\n"
        "sys.modules['hf_ext'] = None\n"
        "from transformers import AutoTokenizer\n"
        "texts = json.load(open(sys.argv[1]))\n"
        "result = []\n"
        "for folder in sys.argv[2:]:\n"
        "    t = AutoTokenizer.from_pretrained(folder)\n"
        "    ids = [t(x, add_special_tokens=False)['input_ids'] for x in texts]\n"
        "    result.append([ids, [t.decode(i) for i in ids], t.eos_token_id, t.pad_token_id, t.model_max_length])\n"
        "print(json.dumps(result))\n"
    )
    tokenizers = {"bpe": _bpe(), "characters": _characters([*CORPUS, *TRICKY])}
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "hfx_of_another_package"}))
    (tmp_path / "texts.json").write_text(json.dumps(TRICKY))
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "texts.json", *(tmp_path / name for name in tokenizers)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )
    assert run.returncode == 0, run.stderr
    for tokenizer, loaded in zip(tokenizers.values(), json.loads(run.stdout.splitlines()[-1]), strict=True):
        assert loaded == [[_ids(tokenizer, text) for text in TRICKY], TRICKY, 0, 1, 64]


def test_texts_are_read_once_from_an_iterator():
    tokenizer = train_tokenizer(iter(CORPUS), kind="byte_level_bpe", vocab_size=300, model_max_length=64)
    assert tokenizer.get_vocab() == _bpe().get_vocab()


def test_vocab_size_is_filled_or_the_real_size_is_logged(caplog):
    assert len(_bpe(vocab_size=300)) == 300
    assert not caplog.records
    tokenizer = _bpe(vocab_size=5000)
    assert f"fills {len(tokenizer)} of the 5000" in caplog.text


def test_characters_keep_the_most_frequent():
    tokenizer = _characters(["aaabbc"], vocab_size=5)
    assert set(tokenizer.get_vocab()) == {"<|endoftext|>", "<|pad|>", "<|unk|>", "a", "b"}
    assert set(_characters(["aab"], min_frequency=2).get_vocab()) == {"<|endoftext|>", "<|pad|>", "<|unk|>", "a"}


def test_special_tokens_can_be_renamed(tmp_path):
    _bpe(eos_token="</s>", pad_token="[PAD]").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens([0, 1]) == ["</s>", "[PAD]"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "charakters"}, "kind: 'charakters' .* did you mean 'characters'"),
        ({"vocab_size": 257}, "vocab_size: 257 is below 258"),
        ({"kind": "characters", "vocab_size": 3}, "vocab_size: 3 is below 4"),
        ({"min_frequency": 0}, "min_frequency: 0"),
        ({"model_max_length": 1}, "model_max_length: 1"),
        ({"pad_token": "<|endoftext|>"}, "must be different"),
        ({"kind": "characters", "min_frequency": 10**6}, "min_frequency: no character"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        _bpe(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts: no text"),
        (["", ""], "texts: no text"),
        ("one string", "texts: a single str"),
        (["text", 3], "texts: item 1 is int"),
    ],
)
@pytest.mark.parametrize("kind", ["byte_level_bpe", "characters"])
def test_bad_texts_are_refused_in_one_line(texts, message, kind):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, kind=kind, model_max_length=64)


def test_real_text_round_trip(real_data):
    text = (real_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    characters = _characters([text])
    assert len(characters) == 65 + 3  # the data set's well-known 65 characters
    assert characters.decode(_ids(characters, text[:20_000])) == text[:20_000]
    bpe = train_tokenizer([text], vocab_size=1000, model_max_length=64)
    assert bpe.decode(_ids(bpe, text)) == text


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_special_tokens_of_other_objectives(kind, tmp_path):
    options = {"bos_token": "<|cls|>", "mask_token": "<|mask|>", "num_sentinels": 3, "extra_tokens": ("[X]",)}
    texts = ["a text to learn from, and another"] * 3
    plain = train_tokenizer(texts, kind=kind, vocab_size=400, model_max_length=64)
    trained = train_tokenizer(texts, kind=kind, vocab_size=400, model_max_length=64, wraps=True, **options)
    trained.save_pretrained(tmp_path)
    for tokenizer in (trained, AutoTokenizer.from_pretrained(tmp_path)):
        names = ["<|cls|>", "<|mask|>", "<extra_id_0>", "<extra_id_1>", "<extra_id_2>", "[X]"]
        ids = tokenizer.convert_tokens_to_ids(names)
        first = 2 + (kind == "characters")
        assert ids == list(range(first, first + 6))
        assert set(ids) <= set(tokenizer.all_special_ids)
        assert (tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (first + 1, first, 0)
        text = "a text <|mask|> learn"
        inner = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.mask_token_id in inner
        assert tokenizer(text).input_ids == [first, *inner, 0]
        pair = tokenizer("a", "to", return_token_type_ids=True)
        one, other = (tokenizer.encode(part, add_special_tokens=False) for part in ("a", "to"))
        assert pair.input_ids == [first, *one, 0, *other, 0]
        assert pair.token_type_ids[:3] == [0, 0, 0]
        assert pair.token_type_ids[3:] == [1] * len(pair.token_type_ids[3:])
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).split() == ["a", "text", "learn"]
    assert plain("a text").input_ids == plain("a text", add_special_tokens=False).input_ids
    with pytest.raises(ValueError, match="must be different"):
        train_tokenizer(texts, kind=kind, vocab_size=400, model_max_length=64, mask_token="<|pad|>")
