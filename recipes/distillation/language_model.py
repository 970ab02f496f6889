"""Teach a small language model what a large one knows, on any text: causal, masked or one that denoises.

    make quickstart                                                                         # the teacher
    python recipes/distillation/language_model.py recipes/distillation/quickstart.yaml
    python recipes/distillation/language_model.py recipes/distillation/debug_language_model.yaml

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

from transformers import AutoTokenizer

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.data import load_documents, pack_dataset
from hf_ext.tasks import distillation, pretraining
from hf_ext.tasks.objective_section import read_objective
from hf_ext.tasks.run import Run, trained_model
from hf_ext.tasks.samples import write_samples
from hf_ext.training.distillation import DistillationArguments, DistillationTrainer
from hf_ext.training.recipe import load_recipe, run_recipe_main


SECTIONS = {
    "teacher": distillation.TeacherArguments,
    "distillation": DistillationArguments,
    # the teacher's tokenizer is the student's, and a student is trained whole
    **{name: kind for name, kind in pretraining.SECTIONS.items() if name not in ("tokenizer", "adapter")},
}


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, SECTIONS)
    training, taught, row_length = recipe.training, recipe.distillation, recipe.packing.row_length

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/distillation/language_model.py", argv)
    section = recipe.teacher.section
    teacher_config = section.config()
    distillation.check_student(recipe.model, taught)
    tokenizer = AutoTokenizer.from_pretrained(section.path, revision=section.revision, trust_remote_code=False)
    config = (
        run.model_section.config(tokenizer) if recipe.model else distillation.student_config(teacher_config, taught)
    )
    objective = read_objective(recipe.objective, config)
    for either in (config, teacher_config):
        pretraining.check_run(training, recipe.data, either, row_length)

    rows, held_out = (
        pack_dataset(d, tokenizer, add_bos_token=objective.entry.has_bos, **vars(recipe.packing))
        for d in load_documents(recipe.data, seed=training.seed)
    )
    teacher = section.build(objective.auto_class, teacher_config, tokenizer)
    if recipe.model:
        model = run.build(objective.auto_class, config, tokenizer)
    else:
        model = run.take(distillation.layer_dropped(teacher, taught), tokenizer)
    trainer = DistillationTrainer(
        model=model,
        args=training,
        teacher=teacher,
        distillation=taught,
        hidden_layers=distillation.layer_pairs(model.config, teacher_config),
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=objective.collator(tokenizer, config),
        eval_data_collator=objective.collator(tokenizer, config, seed=training.seed),
        processing_class=tokenizer,
    )
    trained = run.train(trainer)
    scores, _ = run.evaluate(trainer, {"validation": held_out})
    compared = distillation.compare(trainer, held_out, "perplexity")
    run.write_lines("comparison.jsonl", compared)
    print(distillation.comparison_table(compared))

    samples = write_samples(
        trained_model(trainer), tokenizer, recipe.samples, seed=training.seed, sees_prefix=objective.sees_prefix
    )
    facts = run.facts(
        trainer,
        trained,
        summary=distillation.summary(model, teacher),
        dataset=run.dataset_name,
        dataset_summary=pretraining.describe_data(run.dataset_name, rows, scores["eval_tokens"], row_length),
        metrics={"perplexity": scores["eval_perplexity"], "teacher_perplexity": compared[0]["perplexity"]},
        headline=("perplexity",),
        task=pretraining.HUB_TASKS[objective.kind],
        training={
            "objective": objective.name,
            "teacher": f"`{distillation.name_of(section.path)}`",
            "temperature": f"{taught.temperature:g}",
        },
        samples=samples,
    )
    run.finish(trainer, facts, probe_text=recipe.samples.prompts[0] if recipe.samples.prompts else "import os")


if __name__ == "__main__":
    run_recipe_main(main)
