"""A run in which a model learns to write one text of another: what the recipes of summaries and of written answers share.

The task's module gives what is its own: `SECTIONS`, `texts`, `score`, `predictions`, `HEADLINE`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from datasets import Dataset

from hf_ext.tasks import source_and_target as pairs
from hf_ext.tasks.run import PREFIXES, Run
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe
from hf_ext.training.text_evaluation import TextEvaluation
from hf_ext.training.trainer import HfxTrainer


@dataclass(frozen=True)
class WritingTask:
    """What a task of writing has of its own.

    Attributes:
        module: the task's module. section: name of its section in the recipe.
        load: (data section, the task's section) -> rows of each split. target: their column of what is to be written.
        card: facts for the model card by whether the model is an encoder-decoder.
    """

    module: ModuleType
    section: str
    load: Callable[[object, object], dict[str, Dataset]]
    target: str
    card: Callable[[bool], dict]


def run_writing(task: WritingTask, script: str, argv: list[str]) -> None:
    """Train, evaluate by what is written, and leave everything in the run's folder.

    Args:
        script: the recipe's script, as a user types it. argv: its arguments.
    """
    recipe = load_recipe(argv, task.module.SECTIONS)
    asked, generation = recipe.sections[task.section], recipe.generation
    recipe.training.prediction_loss_only = True  # what is written is evaluated, not the logits of every token

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, script, argv)
    config = run.model_section.config(vocab_size=recipe.tokenizer.size)
    auto_class = pairs.writing_class(config)
    asked.source_length(config)

    rows = task.load(recipe.data, asked)
    held_out = [split for split in rows if split != "train"]
    tokenizer = get_tokenizer(
        recipe.tokenizer,
        task.module.texts(rows["train"]),
        model_max_length=config.max_position_embeddings,
        special_tokens=pairs.special_tokens(config),
        **run.tokenizer_arguments(),
    )
    pairs.check_tokenizer(tokenizer)
    config = run.model_section.config(tokenizer)
    encoded = {split: pairs.encode(rows[split], tokenizer, config, asked, split, target=task.target) for split in rows}
    inputs = {split: pairs.training_rows(encoded[split], config, asked) for split in rows}

    model = run.build(auto_class, config, tokenizer)
    # a user's plain `model.generate` searches as the evaluation does
    model.generation_config = generation.config(model, tokenizer)
    evaluations = {
        split: TextEvaluation(
            encoded[split]["prompt"],
            task.module.score(rows[split], asked),
            model.generation_config,
            batch_size=generation.batch_size,
        )
        for split in held_out
    }
    trainer = HfxTrainer(
        model=model,
        args=recipe.training,
        train_dataset=inputs["train"],
        eval_dataset=inputs["validation"],
        data_collator=pairs.collator(tokenizer, config),
        text_evaluations={PREFIXES[split]: evaluations[split] for split in held_out},
        processing_class=tokenizer,
    )
    trained = run.train(trainer)

    scores, _ = run.evaluate(trainer, inputs)
    lines = {split: task.module.predictions(evaluations[split].texts, rows[split]) for split in held_out}
    for split in held_out:
        run.write_lines(f"{split}_predictions.jsonl", lines[split])

    samples = pairs.samples(asked, config, rows["validation"], [line["prediction"] for line in lines["validation"]])
    facts = run.facts(
        trainer,
        trained,
        dataset=run.dataset_name,
        rows=rows,
        metrics=run.reported(scores),
        headline=task.module.HEADLINE,
        samples=samples,
        training={"prompt": repr(asked.template(config))},
        **task.card(config.is_encoder_decoder),
    )
    run.finish(trainer, facts, probe_text=samples[0]["prompt"])
