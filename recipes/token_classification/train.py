"""Teach a model to find entities in texts: an encoder or decoder from scratch, or a trained one.

    python recipes/token_classification/train.py recipes/token_classification/python_code.yaml
    python recipes/token_classification/train.py recipes/token_classification/debug.yaml
    python recipes/token_classification/train.py recipes/token_classification/debug.yaml --tagging.label_pieces first

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

from transformers import AutoModelForTokenClassification

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.data import load_rows
from hf_ext.tasks import token_classification as task
from hf_ext.tasks.run import PREFIXES, Run
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main
from hf_ext.training.split_metrics import SplitMetricsTrainer


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, task.SECTIONS)
    asked = recipe.tagging

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/token_classification/train.py", argv)
    config = run.model_section.config(vocab_size=recipe.tokenizer.size)

    rows = load_rows(recipe.data, (), task.OPTIONAL_COLUMNS)
    rows = {split: task.tagged_texts(split_rows, asked, split) for split, split_rows in rows.items()}
    labels = task.read_labels(rows["train"])
    tokenizer = get_tokenizer(
        recipe.tokenizer,
        rows["train"]["text"],
        model_max_length=config.max_position_embeddings,
        special_tokens=task.special_tokens(recipe.tokenizer),
        **run.tokenizer_arguments(),
    )
    max_length = config.max_position_embeddings
    read = {split: task.windows(rows[split], tokenizer, labels, asked, max_length, split) for split in rows}

    model = run.build(AutoModelForTokenClassification, run.model_section.config(tokenizer, **labels.head), tokenizer)
    trainer = SplitMetricsTrainer(
        model=model,
        args=recipe.training,
        train_dataset=read["train"],
        eval_dataset=read["validation"],
        data_collator=task.collator(tokenizer),
        split_metrics={
            PREFIXES[split]: task.metrics(read[split], rows[split], labels) for split in rows if split != "train"
        },
        processing_class=tokenizer,
    )
    trained = run.train(trainer)

    scores, outputs = run.evaluate(trainer, read)
    predicted = {split: task.predictions(output, read[split], rows[split], labels) for split, output in outputs.items()}
    for split, lines in predicted.items():
        run.write_lines(f"{split}_predictions.jsonl", lines)

    facts = run.facts(
        trainer,
        trained,
        dataset=run.dataset_name,
        rows=rows,
        dataset_summary=run.describe_rows(rows) + task.describe_rule(asked),
        metrics=run.reported(scores),
        headline=task.HEADLINE,
        task="token-classification",
        usage=task.usage(asked),
        samples=[{"prompt": line["text"], "text": task.in_words(line)} for line in predicted["validation"][:3]],
        training={"types": ", ".join(labels.types)},
    )
    run.finish(trainer, facts, probe_text=rows["validation"][0]["text"])


if __name__ == "__main__":
    run_recipe_main(main)
