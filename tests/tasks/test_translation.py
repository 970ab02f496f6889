"""Translation: where texts are read from, what pairs become for either family, how translations are scored; refusals."""

import json

import pytest
import sacrebleu
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from hf_ext.data import RowArguments, train_tokenizer
from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM, HfxEncoderDecoderConfig
from hf_ext.models import HfxEncoderDecoderForConditionalGeneration as EncoderDecoder
from hf_ext.tasks import translation as task
from hf_ext.tasks.generation_section import GenerationArguments
from hf_ext.tasks.source_and_target import collator


TEXTS = {
    "en": ["A man runs.", "A woman is sleeping on the beach.", "A dog.", "Two men talk."],
    "de": ["Ein Mann rennt.", "Eine Frau schläft am Strand.", "Ein Hund.", "Zwei Männer reden."],
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}


def rows() -> Dataset:
    return Dataset.from_dict(TEXTS)


def asked(*directions, **more) -> task.TranslationArguments:
    return task.TranslationArguments(directions=list(directions or ["en-de"]), **more)


def make_form(arguments: task.TranslationArguments, *, decoder: bool = False, max_length: int = 40) -> task.PairFormat:
    config = (HfxDecoderConfig if decoder else HfxEncoderDecoderConfig)(**SIZES)
    tokens = task.special_tokens(arguments, config)
    tokenizer = train_tokenizer([*TEXTS["en"], *TEXTS["de"]], vocab_size=320, model_max_length=64, extra_tokens=tokens)
    return task.PairFormat(tokenizer, arguments.tags, task.SEPARATOR if decoder else None, max_length)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"directions": []}, "none given"),
        ({"directions": ["en"]}, "'en' must be two different languages"),
        ({"directions": ["en-de-fr"]}, "'en-de-fr' must be two"),
        ({"directions": ["en-en"]}, "'en-en' must be two different"),
        ({"directions": ["-de"]}, "'-de' must be two"),
        ({"directions": ["en-de", "en-de"]}, "names one twice"),
        ({"directions": ["en-de", "de-en"], "language_tags": False}, "language_tags=False"),
        ({"directions": ["en-de"], "max_length": 1}, "max_length=1"),
        ({"directions": ["en-de"], "bleu_tokenizer": "14a"}, "13a"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_meant(values, message):
    with pytest.raises(ValueError, match=message):
        task.TranslationArguments(**values)


def test_directions_and_tags():
    assert asked().tags == {}
    assert asked(language_tags=True).tags == {"de": "<2de>"}
    assert asked("en-de", "fr-de").tags == {}  # one language to translate into
    assert asked("en-de", "de-en", "en-fr").tags == {"de": "<2de>", "en": "<2en>", "fr": "<2fr>"}
    assert asked("en-de", "fr-de").languages == ["en", "de", "fr"]


def test_sides_fit_the_model():
    both, decoder = HfxEncoderDecoderConfig(**SIZES), HfxDecoderConfig(**SIZES)
    short = GenerationArguments(max_new_tokens=20)
    assert task.side_length(asked(), short, both) == 64
    assert task.side_length(asked(), short, decoder) == 31  # twice, and the separator
    assert task.side_length(asked(max_length=10), short, decoder) == 10
    for config, arguments, tokens, message in (
        (both, asked(max_length=65), 20, "max_length=65: above 64"),
        (decoder, asked(max_length=32), 20, "max_length=32: above 31"),
        (both, asked(), 65, "max_new_tokens=65: above 64"),
        (decoder, asked(max_length=20), 44, "max_new_tokens=44: above 43"),
    ):
        with pytest.raises(ValueError, match=message):
            task.side_length(arguments, GenerationArguments(max_new_tokens=tokens), config)


def write(folder, name, lines) -> str:
    path = folder / name
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def sources(folder) -> dict[str, RowArguments]:
    pairs = [{"en": en, "de": de} for en, de in zip(*TEXTS.values(), strict=True)]
    files = {language: write(folder, f"all.{language}", TEXTS[language]) for language in TEXTS}
    plain = write(folder, "plain.jsonl", map(json.dumps, pairs))
    other = write(folder, "other.csv", ["english\tde", *("\t".join(pair.values()) for pair in pairs)])
    (folder / "other.csv").rename(folder / "other.tsv")
    inside = write(folder, "inside.jsonl", (json.dumps({"id": "x", "translation": pair}) for pair in pairs))
    named = write(folder, "named.jsonl", (json.dumps({"both": pair}) for pair in pairs))
    kept = {"validation_split": "dev"}
    return {
        "parallel": RowArguments(data_files={"train": files, "dev": files}, **kept),
        "columns": RowArguments(data_files={"train": plain, "dev": plain}, **kept),
        "renamed": RowArguments(
            data_files={"train": other.replace(".csv", ".tsv"), "dev": other.replace(".csv", ".tsv")},
            columns={"en": "english"},
            **kept,
        ),
        "one column": RowArguments(data_files={"train": inside, "dev": inside}, **kept),
        "one column, renamed": RowArguments(
            data_files={"train": named, "dev": named}, columns={"translation": "both"}, **kept
        ),
    }


@pytest.mark.parametrize("kind", ["parallel", "columns", "renamed", "one column", "one column, renamed"])
def test_texts_are_read(kind, tmp_path):
    splits = task.load_texts(sources(tmp_path)[kind], asked())
    assert set(splits) == {"train", "validation"}
    for part in splits.values():
        assert {language: list(part[language]) for language in ("en", "de")} == TEXTS
    with pytest.raises(ValueError, match=r"'fr'.* not among the columns|has no 'fr', only"):
        task.load_texts(sources(tmp_path)[kind], asked("en-fr"))


def test_empty_texts_are_refused(tmp_path):
    lines = [json.dumps({"en": "A dog.", "de": "Ein Hund."}), json.dumps({"en": "A cat.", "de": " "})]
    file = write(tmp_path, "pairs.jsonl", lines)
    with pytest.raises(ValueError, match="de: row 1 of train is ' ', no text"):
        task.load_texts(RowArguments(data_files={"train": file, "v": file}, validation_split="v"), asked())


def test_pairs_of_an_encoder_decoder():
    form = make_form(asked())
    made = task.pair_rows(rows(), [("en", "de")], form, "train")
    for number, row in enumerate(made):
        assert form.tokenizer.decode(row["input_ids"]) == TEXTS["en"][number]
        assert form.tokenizer.decode(row["labels"]) == TEXTS["de"][number] + "<|endoftext|>"
    # what is trained on, what is asked, and what a user's tokenizer makes of the text
    prompts, cut = form.prompts(TEXTS["en"], "de")
    assert (prompts, cut) == (list(made["input_ids"]), 0)
    assert form.tokenizer(form.source_text(TEXTS["en"][1], "de"))["input_ids"] == prompts[1]


def test_pairs_of_a_decoder():
    form = make_form(asked(), decoder=True)
    made = task.pair_rows(rows(), [("en", "de")], form, "train")
    prompts, _ = form.prompts(TEXTS["en"], "de")
    for number, (row, prompt) in enumerate(zip(made, prompts, strict=True)):
        whole = TEXTS["en"][number] + task.SEPARATOR + TEXTS["de"][number] + "<|endoftext|>"
        assert form.tokenizer.decode(row["input_ids"]) == whole
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"] == [-100] * len(prompt) + row["input_ids"][len(prompt) :]
    assert form.tokenizer(form.source_text(TEXTS["en"][1], "de"))["input_ids"] == prompts[1]


@pytest.mark.parametrize("decoder", [False, True], ids=["encoder-decoder", "decoder"])
def test_several_directions(decoder):
    arguments = asked("en-de", "de-en")
    form = make_form(arguments, decoder=decoder)
    made = task.pair_rows(rows(), arguments.pairs, form, "train")
    assert len(made) == 8
    tags = [form.tokenizer.decode(row[:1]) for row in made["input_ids"]]
    assert tags == ["<2de>"] * 4 + ["<2en>"] * 4
    assert form.tokenizer.decode(made[4]["input_ids"]).startswith("<2en>Ein Mann rennt.")
    assert form.tokenizer(form.source_text("Ein Hund.", "en"))["input_ids"] == form.prompts(["Ein Hund."], "en")[0][0]


@pytest.mark.parametrize("decoder", [False, True], ids=["encoder-decoder", "decoder"])
def test_long_pairs_are_left_out_and_long_sources_cut(decoder, capsys):
    form = make_form(asked(), decoder=decoder, max_length=9)
    sides = [form.tokenizer(TEXTS[language])["input_ids"] for language in ("en", "de")]
    fits = [max(len(en), len(de) + 1) <= 9 for en, de in zip(*sides, strict=True)]
    assert 0 < sum(fits) < 4
    made = task.pair_rows(rows(), [("en", "de")], form, "train")
    assert len(made) == sum(fits)
    assert f"train: {4 - sum(fits)} pairs with a side of more than 9 tokens left out" in capsys.readouterr().out
    prompts, cut = form.prompts(TEXTS["en"], "de")
    assert cut == sum(len(ids) > 9 for ids in sides[0]) > 0
    assert [p[:9] for p in prompts] == [ids[:9] + p[len(ids[:9]) : 9] for ids, p in zip(sides[0], prompts, strict=True)]
    assert all(len(p) <= 9 + decoder for p in prompts)
    with pytest.raises(ValueError, match=r"max_length=1: every pair of train"):
        task.pair_rows(rows(), [("en", "de")], make_form(asked(), decoder=decoder, max_length=1), "train")


def test_forged_borders_are_refused():
    form = make_form(asked(), decoder=True)
    texts = Dataset.from_dict({"en": ["A dog.", f"A {task.SEPARATOR} cat."], "de": ["Ein Hund.", "Eine Katze."]})
    with pytest.raises(ValueError, match=r"en: row 1 of train holds the special token <\|translation\|>"):
        task.pair_rows(texts, [("en", "de")], form, "train")


def test_a_tokenizer_that_exists_gets_what_it_lacks():
    tokenizer = train_tokenizer(TEXTS["en"], vocab_size=300, model_max_length=64)
    before = len(tokenizer)
    task.add_special_tokens(tokenizer, ["<2de>", task.SEPARATOR])
    task.add_special_tokens(tokenizer, ["<2de>", task.SEPARATOR])
    assert len(tokenizer) == before + 2
    assert len(tokenizer("<2de>A dog.<|translation|>")["input_ids"]) == len(tokenizer("A dog.")["input_ids"]) + 2
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no eos_token"):
        task.add_special_tokens(endless, [])


def test_scores_are_sacrebleus():
    written = ["Ein Mann rennt.", "Eine Frau schläft im Park.", "Ein Hund.", "Zwei Leute reden."]
    one = task.translations(rows(), asked())
    scores = one.score(written)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(written, [TEXTS["de"]]).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, [TEXTS["de"]]).score)
    assert set(scores) == {"bleu", "chrf", "brevity_penalty"}
    both = task.translations(rows(), asked("en-de", "de-en"))
    scores = both.score([*written, *TEXTS["en"]])
    assert scores["bleu_de_en"] == pytest.approx(100)
    assert scores["bleu_en_de"] == pytest.approx(sacrebleu.corpus_bleu(written, [TEXTS["de"]]).score)
    assert scores["bleu"] == pytest.approx((100 + scores["bleu_en_de"]) / 2)
    assert both.lines([*written, *TEXTS["en"]])[5] == {
        "direction": "de-en",
        "source": TEXTS["de"][1],
        "reference": TEXTS["en"][1],
        "prediction": TEXTS["en"][1],
    }


@pytest.mark.parametrize("decoder", [False, True], ids=["encoder-decoder", "decoder"])
def test_evaluation_asks_every_text_of_every_direction(decoder):
    arguments = asked("en-de", "de-en")
    form = make_form(arguments, decoder=decoder)
    ids = {"vocab_size": len(form.tokenizer), "pad_token_id": form.tokenizer.pad_token_id}
    model = (
        HfxDecoderForCausalLM(HfxDecoderConfig(**SIZES, **ids))
        if decoder
        else EncoderDecoder(HfxEncoderDecoderConfig(**SIZES, **ids))
    )
    generation = GenerationArguments(num_beams=3, length_penalty=0.8, max_new_tokens=3, batch_size=3)
    wanted = task.translations(rows(), arguments)
    evaluation = task.evaluation(wanted, form, generation, model, "test")
    assert (evaluation.generation.num_beams, evaluation.generation.length_penalty) == (3, 0.8)
    greedy = task.evaluation(wanted, form, generation, model, "test", **task.greedy(generation))
    assert greedy.generation.num_beams == 1
    scores = evaluation(model, form.tokenizer)
    assert len(evaluation.texts) == 8
    assert scores == wanted.score(evaluation.texts)


@pytest.mark.parametrize("decoder", [False, True], ids=["encoder-decoder", "decoder"])
def test_batches_score_the_translation_alone(decoder):
    form = make_form(asked(), decoder=decoder)
    made = task.pair_rows(rows(), [("en", "de")], form, "train")
    config = (HfxDecoderConfig if decoder else HfxEncoderDecoderConfig)(**SIZES, vocab_size=len(form.tokenizer))
    batch = collator(form.tokenizer, config)([made[i] for i in range(4)])
    scored = [[token for token in row if token != -100] for row in batch["labels"].tolist()]
    assert [form.tokenizer.decode(row) for row in scored] == [text + "<|endoftext|>" for text in TEXTS["de"]]
