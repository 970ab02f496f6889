"""Teach a model to classify texts, or to give them a number: an encoder or decoder from scratch, or a trained one.

    python recipes/text_classification/train.py recipes/text_classification/sst2.yaml
    python recipes/text_classification/train.py recipes/text_classification/debug.yaml
    python recipes/text_classification/train.py recipes/text_classification/sst2.yaml --model '{path: outputs/masked}'

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

from transformers import AutoModelForSequenceClassification

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.data import load_rows
from hf_ext.tasks import text_classification as task
from hf_ext.tasks.run import Run
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, task.SECTIONS)
    asked = recipe.classification

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/text_classification/train.py", argv)
    config = run.model_section.config(vocab_size=recipe.tokenizer.size)

    rows = load_rows(recipe.data, task.COLUMNS, task.OPTIONAL_COLUMNS)
    labels = task.read_labels(rows["train"], asked)
    tokenizer = get_tokenizer(
        recipe.tokenizer,
        task.texts(rows["train"]),
        model_max_length=config.max_position_embeddings,
        special_tokens=task.SPECIAL_TOKENS,
        **run.tokenizer_arguments(),
    )
    max_length = min(asked.max_length or config.max_position_embeddings, config.max_position_embeddings)
    tokenized = {split: task.tokenize(rows[split], tokenizer, labels, max_length, split) for split in rows}

    model = run.build(AutoModelForSequenceClassification, run.model_section.config(tokenizer, **labels.head), tokenizer)
    trainer = task.trainer(
        asked,
        model=model,
        args=recipe.training,
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["validation"],
        data_collator=task.collator(tokenizer, asked, max_length),
        eval_data_collator=task.collator(tokenizer),
        compute_metrics=task.metrics(labels, asked.threshold),
        processing_class=tokenizer,
    )
    trained = run.train(trainer)

    scores, outputs = run.evaluate(trainer, tokenized)
    predicted = {split: task.predictions(o, rows[split], labels, asked.threshold) for split, o in outputs.items()}
    for split, lines in predicted.items():
        run.write_lines(f"{split}_predictions.jsonl", lines)

    facts = run.facts(
        trainer,
        trained,
        dataset=run.dataset_name,
        rows=rows,
        metrics=run.reported(scores),
        headline=task.HEADLINES[labels.problem_type],
        task="text-classification",
        samples=[{"prompt": line["text"], "text": str(line["prediction"])} for line in predicted["validation"][:3]],
        training={"problem": labels.problem_type, "classes": ", ".join(labels.names) or "a number"},
    )
    run.finish(trainer, facts, probe_text=rows["validation"][0]["text"])


if __name__ == "__main__":
    run_recipe_main(main)
