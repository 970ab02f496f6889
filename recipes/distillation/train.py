"""Teach a small classifier what a large one knows: its scores, its hidden states, or some of its layers to begin with.

    python recipes/text_classification/train.py recipes/text_classification/debug.yaml     # the teacher
    python recipes/distillation/train.py recipes/distillation/debug.yaml

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.data import load_rows
from hf_ext.tasks import distillation
from hf_ext.tasks import text_classification as task
from hf_ext.tasks.run import Run
from hf_ext.training.distillation import DistillationArguments, DistillationTrainer
from hf_ext.training.recipe import load_recipe, run_recipe_main


SECTIONS = {
    "teacher": distillation.TeacherArguments,
    "model": dict,
    "data": task.RowArguments,
    "classification": task.ClassificationArguments,
    "distillation": DistillationArguments,
    "training": task.HfxTrainingArguments,
}


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, SECTIONS)
    asked, taught = recipe.classification, recipe.distillation

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/distillation/train.py", argv)
    section = recipe.teacher.section
    teacher_config = section.config()
    distillation.check_student(recipe.model, taught)
    distillation.check_classification(asked)
    if not recipe.model:
        distillation.student_config(teacher_config, taught)
    tokenizer = AutoTokenizer.from_pretrained(section.path, revision=section.revision)
    config = run.model_section.config(tokenizer) if recipe.model else teacher_config

    rows = load_rows(recipe.data, task.COLUMNS, task.OPTIONAL_COLUMNS)
    labels = task.read_labels(rows["train"], asked)
    max_length = min(asked.max_length or config.max_position_embeddings, config.max_position_embeddings)
    tokenized = {split: task.tokenize(rows[split], tokenizer, labels, max_length, split) for split in rows}

    teacher = section.build(AutoModelForSequenceClassification, teacher_config, tokenizer)
    if recipe.model:
        model = run.build(
            AutoModelForSequenceClassification, run.model_section.config(tokenizer, **labels.head), tokenizer
        )
    else:
        model = run.take(distillation.layer_dropped(teacher, taught), tokenizer)
    trainer = DistillationTrainer(
        model=model,
        args=recipe.training,
        teacher=teacher,
        distillation=taught,
        hidden_layers=distillation.layer_pairs(model.config, teacher_config),
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["validation"],
        data_collator=task.collator(tokenizer, asked, max_length),
        eval_data_collator=task.collator(tokenizer),
        compute_metrics=task.metrics(labels, asked.threshold),
        processing_class=tokenizer,
    )
    trained = run.train(trainer)
    scores, outputs = run.evaluate(trainer, tokenized)
    for split, logits in outputs.items():
        lines = task.predictions(logits, rows[split], labels, asked.threshold)
        run.write_lines(f"{split}_predictions.jsonl", lines)

    compared = distillation.compare(trainer, tokenized["validation"], task.HEADLINES[labels.problem_type][0])
    run.write_lines("comparison.jsonl", compared)
    print(distillation.comparison_table(compared))

    facts = run.facts(
        trainer,
        trained,
        summary=distillation.summary(model, teacher),
        dataset=run.dataset_name,
        rows=rows,
        metrics=run.reported(scores),
        headline=task.HEADLINES[labels.problem_type],
        task="text-classification",
        samples=[{"prompt": rows["validation"][0]["text"], "text": str(lines[0]["prediction"])}],
        training={"teacher": f"`{distillation.name_of(section.path)}`", "temperature": f"{taught.temperature:g}"},
    )
    run.finish(trainer, facts, probe_text=rows["validation"][0]["text"])


if __name__ == "__main__":
    run_recipe_main(main)
