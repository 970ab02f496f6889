"""Train a classifier of texts, or take a trained one further, and quantize it: after training, or in its knowledge.

    python recipes/quantization/train.py recipes/quantization/post_training_dynamic.yaml
    python recipes/quantization/train.py recipes/quantization/quantization_aware.yaml --model '{path: outputs/sst2}'
    python recipes/quantization/train.py recipes/quantization/debug.yaml

The run's folder has the floats, `quantized/` in it the integers, and `comparison.txt` what they cost and say.
Every field of the YAML can be overridden on the command line; --help lists them all.
"""

import dataclasses

from transformers import AutoModelForSequenceClassification

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.data import load_rows
from hf_ext.hub.card_sections import put_section
from hf_ext.quantization import quantize, save_quantized
from hf_ext.quantization.evaluation import compare, markdown, table
from hf_ext.quantization.methods import METHODS
from hf_ext.quantization.saving import check_new_folder
from hf_ext.quantization.section import QuantizationArguments
from hf_ext.quantization.training import leave_training, prepare_training
from hf_ext.tasks import text_classification as task
from hf_ext.tasks.run import Run, trained_model
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main


SECTIONS = {name: kind for name, kind in task.SECTIONS.items() if name != "adapter"}
SECTIONS["quantization"] = QuantizationArguments
COMPARED = (
    "The floats and `quantized/`, each in a process of its own on what was held out: weights in MB, the most memory, "
    "milliseconds for one text and for all, how far the logits are from the floats' over their spread, predictions alike."
)


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, SECTIONS)
    asked, few_bits = recipe.classification, recipe.quantization

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/quantization/train.py", argv)
    check_new_folder(run.output / "quantized")
    config = run.model_section.config(vocab_size=recipe.tokenizer.size)

    rows = load_rows(recipe.data, task.COLUMNS)
    labels = task.read_labels(rows["train"], asked)
    if labels.problem_type != "single_label_classification":
        raise ValueError(
            f"classification.problem_type={labels.problem_type!r}: models are compared by one class a text"
        )
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
    how = {**few_bits.options, "exclude": few_bits.exclude or ()}
    if few_bits.aware:
        prepare_training(model, few_bits.method, **how)
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
    scores, _ = run.evaluate(trainer, tokenized)
    model = trained_model(trainer)
    if few_bits.aware:
        leave_training(model)

    facts = run.facts(
        trainer,
        trained,
        dataset=run.dataset_name,
        rows=rows,
        metrics=run.reported(scores),
        headline=task.HEADLINES[labels.problem_type],
        task="text-classification",
        training={"quantized": METHODS[few_bits.method].summary, "known in training": str(few_bits.aware).lower()},
    )
    calibration = None
    if METHODS[few_bits.method].calibrates:
        batch = task.collator(tokenizer)(list(tokenized["train"].select(range(few_bits.calibration_rows))))
        calibration = [{name: tensor for name, tensor in batch.items() if name != "labels"}]
    held_out = [
        {"text": row["text"], "label": labels.names[labels.encode(row["label"], "validation")]}
        for row in rows["validation"]
    ]

    def compare_with_integers() -> None:
        quantize(model, few_bits.method, calibration=calibration, **how)
        save_quantized(model, run.output / "quantized", tokenizer)
        run.write_lines("validation.jsonl", held_out)
        folders = [str(run.output), str(run.output / "quantized")]
        compared = compare(folders, str(run.output / "validation.jsonl"))
        run.write_lines("comparison.jsonl", [dataclasses.asdict(row) for row in compared])
        (run.output / "comparison.txt").write_text(table(compared) + "\n", encoding="utf-8")
        put_section(run.output, "## In fewer bits", f"{COMPARED}\n\n{markdown(compared)}")
        print(table(compared))

    probe_text = rows["validation"][0]["text"]
    run.finish(trainer, facts, probe_text=probe_text, before_push=compare_with_integers)


if __name__ == "__main__":
    run_recipe_main(main)
