"""A saved model scored on a file of rows, by the metrics of its task, as the recipe that trained it would.

found = evaluate_saved(model, tokenizer, sections, "held_out.jsonl")      # found.scores, found.predictions

What the task is, tell the model's head and the sections of the run's `recipe.yaml`; columns, prompt and
the way to write are taken from there too.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_ext.data import DataArguments, RowArguments, load_documents, load_rows, pack_dataset
from hf_ext.data.packing import utf8_bytes
from hf_ext.models.configuration_choices import check_choice, check_known
from hf_ext.tasks import (
    chain_of_thought,
    generative_question_answering,
    question_answering,
    summarization,
    text_classification,
    token_classification,
    translation,
)
from hf_ext.tasks import source_and_target as pairs
from hf_ext.tasks.document_scores import score_documents
from hf_ext.tasks.generation_section import GenerationArguments
from hf_ext.tasks.objective_section import read_objective
from hf_ext.tasks.pretraining import REPORTED, PackingArguments
from hf_ext.tasks.prompts_and_answers import PromptArguments, tokenize
from hf_ext.tasks.run import Run
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.split_metrics import SplitMetricsTrainer
from hf_ext.training.text_evaluation import TextEvaluation
from hf_ext.training.trainer import HfxTrainer


# what a run's data section says of the rows, whatever files they are in
KEPT_OF_DATA = ("columns", "column_names", "json_field", "text_column", "sample_by")


@dataclass(frozen=True)
class Evaluation:
    """scores: name -> number. predictions: a mapping a row, as `…_predictions.jsonl` of a run; empty for language models."""

    scores: dict[str, float]
    predictions: list[dict]


@dataclass(frozen=True)
class _Asked:
    """What is evaluated, and how. sections: of the run's recipe, as given. data: for `RowArguments` or `DataArguments`."""

    model: object
    tokenizer: object
    sections: Mapping[str, dict]
    data: dict
    batch_size: int
    max_rows: int | None

    @property
    def is_export(self) -> bool:
        """Whether it is a graph of another engine, without weights of torch's."""
        return next(self.model.parameters(), None) is None

    def section(self, name: str, kind: type):
        """A section as its task reads it."""
        return kind(**self.sections.get(name, {}))

    def rows(self) -> RowArguments:
        return RowArguments(**self._without("text_column", "sample_by"), max_validation_rows=self.max_rows)

    def documents(self) -> DataArguments:
        return DataArguments(**self._without("columns", "json_field"), max_validation_documents=self.max_rows)

    def _without(self, *names: str) -> dict:
        return {name: value for name, value in self.data.items() if name not in names}

    def arguments(self, folder: str) -> HfxTrainingArguments:
        return HfxTrainingArguments(
            output_dir=folder,
            per_device_eval_batch_size=self.batch_size,
            report_to=[],
            use_cpu=self.model.device.type == "cpu",
            disable_tqdm=True,
        )


def evaluate_saved(
    model,
    tokenizer,
    sections: Mapping[str, dict],
    data_files,
    *,
    columns: Mapping[str, str] | None = None,
    batch_size: int = 16,
    max_rows: int | None = None,
) -> Evaluation:
    """Scores and predictions of a model on rows from files.

    Args:
        model: with a head. sections: of the recipe that trained it, name -> fields; {} where there is none.
        data_files: a path, glob or list, or column -> text file, as of a recipe's data section. columns: the task's name of
            a column -> its name in the files; default the recipe's.
        batch_size: rows at a time. max_rows: the first of them only.

    Raises:
        ValueError: one line: rows that don't fit the task, or a model that is scored otherwise.
    """
    kept = {name: value for name, value in sections.get("data", {}).items() if name in KEPT_OF_DATA}
    if columns:
        kept["columns"] = dict(columns)
    # the same file as both: what is loaded for training is left alone
    data = {**kept, "data_files": {"train": data_files, "validation": data_files}, "validation_split": "validation"}
    asked = _Asked(model, tokenizer, sections, data, batch_size, max_rows)
    return _evaluation_for(asked)(asked)


def _evaluation_for(asked: _Asked) -> Callable[[_Asked], Evaluation]:
    def has(auto_class) -> bool:
        head = auto_class._model_mapping.get(type(asked.model.config), None)
        if asked.is_export:
            return head is not None and head.__name__ in (asked.model.config.architectures or ())
        return head is type(asked.model)

    if has(AutoModelForSequenceClassification):
        return _classes
    if has(AutoModelForTokenClassification) and "summarization" not in asked.sections:
        return _tags
    if has(AutoModelForQuestionAnswering):
        return _spans
    if has(AutoModelForSeq2SeqLM) or has(AutoModelForCausalLM):
        if "translation" in asked.sections:
            return _translations
        if "summarization" in asked.sections:
            return lambda _: _written(
                asked, summarization, "summarization", summarization.SummaryArguments, "references", _load_summaries
            )
        if "question_answering" in asked.sections:
            module = generative_question_answering
            return lambda _: _written(
                asked, module, "question_answering", module.WrittenAnswerArguments, "answer_texts", module.load
            )
        if "voting" in asked.sections or "answers" in asked.sections:
            return _worked_answers
    if has(AutoModelForSeq2SeqLM) or has(AutoModelForCausalLM) or has(AutoModelForMaskedLM):
        return _language_model
    raise ValueError(f"evaluate: doesn't know how a {type(asked.model).__name__} of such a recipe is scored")


def _classes(asked: _Asked) -> Evaluation:
    task = text_classification
    options = asked.section("classification", task.ClassificationArguments)
    rows = load_rows(asked.rows(), task.COLUMNS, task.OPTIONAL_COLUMNS)["validation"]
    labels = _labels(asked.model.config, options)
    longest = asked.model.config.max_position_embeddings
    tokenized = task.tokenize(rows, asked.tokenizer, labels, min(options.max_length or longest, longest), "the file")
    output = _predict(
        asked,
        HfxTrainer,
        tokenized,
        data_collator=task.collator(asked.tokenizer),
        compute_metrics=task.metrics(labels, options.threshold),
    )
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    return Evaluation(_reported(output), task.predictions(logits, rows, labels, options.threshold))


def _labels(config, options) -> text_classification.Labels:
    """The classes in the order of the head, with the labels that the data has for them."""
    names = [config.id2label[number] for number in range(config.num_labels)]
    kind = config.problem_type or options.problem_type or "single_label_classification"
    if kind == "regression":
        return text_classification.Labels(kind, [], [])
    values = list(names)
    if options.label_names:
        by_name = {name: str(value) for value, name in options.label_names.items()}
        check_known("classification.label_names", names, by_name)
        values = [by_name[name] for name in names]
    return text_classification.Labels(kind, values, names)


def _tags(asked: _Asked) -> Evaluation:
    task = token_classification
    options = asked.section("tagging", task.TaggingArguments)
    rows = load_rows(asked.rows(), (), task.OPTIONAL_COLUMNS)["validation"]
    rows = task.tagged_texts(rows, options, "the file")
    config = asked.model.config
    labels = task.TagLabels([config.id2label[number] for number in range(config.num_labels)])
    for tag in sorted({tag for tags in rows["tags"] for tag in tags}):
        check_choice("tags", tag, labels.names)
    read = task.windows(rows, asked.tokenizer, labels, options, config.max_position_embeddings, "the file")
    output = _predict(
        asked,
        SplitMetricsTrainer,
        read,
        data_collator=task.collator(asked.tokenizer),
        split_metrics={"eval": task.metrics(read, rows, labels)},
    )
    return Evaluation(_reported(output), task.predictions(output.predictions, read, rows, labels))


def _spans(asked: _Asked) -> Evaluation:
    task = question_answering
    options = asked.section("question_answering", task.AnswerArguments)
    rows = task.load_questions(asked.rows(), options.null_answers)["validation"]
    tokenizer = task.with_pair_template(asked.tokenizer)
    windows = task.cut_into_windows(rows, tokenizer, asked.model.config, options, "the file")
    output = _predict(
        asked,
        SplitMetricsTrainer,
        task.model_inputs(windows),
        data_collator=task.collator(tokenizer),
        split_metrics={"eval": task.metrics(windows, rows, options)},
        preprocess_logits_for_metrics=task.scores_only,
    )
    answers = task.read_answers(output.predictions, windows, rows, options)
    return Evaluation(_reported(output), task.predictions(answers, rows, options))


def _translations(asked: _Asked) -> Evaluation:
    options = asked.section("translation", translation.TranslationArguments)
    generation = asked.section("generation", GenerationArguments)
    texts = translation.load_texts(asked.rows(), options)["validation"]
    config = asked.model.config
    separator = None if config.is_encoder_decoder else translation.SEPARATOR
    form = translation.PairFormat(
        asked.tokenizer, options.tags, separator, translation.side_length(options, generation, config)
    )
    wanted = translation.translations(texts, options)
    evaluation = translation.evaluation(wanted, form, generation, asked.model, "the file")
    evaluation.batch_size = asked.batch_size
    scores = evaluation(asked.model, asked.tokenizer)
    return Evaluation(scores, wanted.lines(evaluation.texts))


def _load_summaries(data: RowArguments, options) -> dict:
    return summarization.load_documents_with_summaries(data, options)


def _written(asked: _Asked, module, section: str, kind: type, target: str, load: Callable) -> Evaluation:
    """Texts that the model writes of others."""
    options = asked.section(section, kind)
    rows = load(asked.rows(), options)["validation"]
    pairs.check_tokenizer(asked.tokenizer)
    encoded = pairs.encode(rows, asked.tokenizer, asked.model.config, options, "the file", target=target)
    generation = asked.section("generation", GenerationArguments).config(asked.model, asked.tokenizer)
    evaluation = TextEvaluation(encoded["prompt"], module.score(rows, options), generation, batch_size=asked.batch_size)
    scores = evaluation(asked.model, asked.tokenizer)
    return Evaluation(scores, module.predictions(evaluation.texts, rows))


def _worked_answers(asked: _Asked) -> Evaluation:
    """Written greedily, and drawn to vote where the recipe has it so."""
    task, model, tokenizer = chain_of_thought, asked.model, asked.tokenizer
    answers, voting = asked.section("answers", task.AnswerArguments), asked.section("voting", task.VotingArguments)
    prompts = asked.section("prompts", PromptArguments)
    rows = load_rows(asked.rows(), task.COLUMNS)["validation"]
    prompts.prepare(tokenizer)
    examples = tokenize(rows, tokenizer, prompts, where="the file", columns=task.COLUMNS)
    generation = asked.section("generation", GenerationArguments).config(model, tokenizer)
    evaluation = task.evaluation(examples, rows, generation, answers, tokenizer, asked.batch_size)
    scores, drawn = evaluation(model, tokenizer), None
    if voting.num_samples:
        drawn = task.draw_answers(
            model,
            tokenizer,
            evaluation.prompts,
            task.voting_config(generation, voting),
            answers,
            batch_size=asked.batch_size,
            seed=asked.sections.get("training", {}).get("seed", 42),
        )
        scores = scores | task.vote_scores(drawn, rows, fallback=answers.fallback)
    return Evaluation(scores, task.predictions(evaluation.texts, drawn, rows, fallback=answers.fallback))


def _language_model(asked: _Asked) -> Evaluation:
    """Loss, perplexity and, of a causal model, bits per byte of documents."""
    config, tokenizer = asked.model.config, asked.tokenizer
    objective = read_objective(asked.sections.get("objective", {}), config)
    packing = asked.section("packing", PackingArguments)
    packing.row_length = min(packing.row_length, config.max_position_embeddings)
    _, documents = load_documents(asked.documents(), seed=0)
    rows = pack_dataset(documents, tokenizer, add_bos_token=objective.entry.has_bos, **vars(packing))
    collator = objective.collator(tokenizer, config, seed=0)
    num_bytes = utf8_bytes(documents) if objective.name == "causal" else None
    if asked.is_export:
        scored = score_documents(
            asked.model,
            rows,
            collator,
            pad_token_id=tokenizer.pad_token_id,
            batch_size=asked.batch_size,
            shifts=objective.kind == "causal",
        )
        return Evaluation(scored.metrics(num_bytes), [])
    output = _predict(asked, HfxTrainer, rows, data_collator=collator, eval_num_bytes=num_bytes, loss_only=True)
    return Evaluation(
        {name.removeprefix("eval_"): output.metrics[name] for name in REPORTED if name in output.metrics}, []
    )


def _predict(asked: _Asked, trainer_class: type[HfxTrainer], rows, *, loss_only: bool = False, **options):
    """The Trainer's output on rows, with the prefix "eval"; it leaves nothing on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = asked.arguments(folder)
        arguments.prediction_loss_only = loss_only
        trainer = trainer_class(model=asked.model, args=arguments, processing_class=asked.tokenizer, **options)
        return trainer.predict(rows, metric_key_prefix="eval")


def _reported(output) -> dict[str, float]:
    return Run.reported(output.metrics)
