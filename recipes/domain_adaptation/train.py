"""Go on pretraining a model on another domain's text; says what it gains there and what it forgets.

    make quickstart                                                                        # the model, on Python code
    python recipes/domain_adaptation/train.py recipes/domain_adaptation/tinyshakespeare.yaml
    python recipes/domain_adaptation/train.py recipes/domain_adaptation/tinyshakespeare.yaml --old_domain.replay 0.3
    python recipes/domain_adaptation/train.py recipes/domain_adaptation/tinyshakespeare_lora.yaml

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.data import load_documents, pack_dataset
from hf_ext.tasks import domain_adaptation as task
from hf_ext.tasks import pretraining
from hf_ext.tasks.objective_section import read_objective
from hf_ext.tasks.run import Run, trained_model
from hf_ext.tasks.samples import write_samples
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main
from hf_ext.training.trainer import HfxTrainer


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, task.SECTIONS)
    training, row_length = recipe.training, recipe.packing.row_length

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/domain_adaptation/train.py", argv)
    if run.model_section.path is None:
        raise ValueError("model.path: is missing; name the trained model to adapt")
    config = run.model_section.config()
    objective = read_objective(recipe.objective, config)
    pretraining.check_run(training, recipe.data, config, row_length)

    tokenizer = get_tokenizer(
        recipe.tokenizer, iter(()), model_max_length=config.max_position_embeddings, **run.tokenizer_arguments()
    )
    rows, held_out = {}, {}
    for domain, arguments in (("new", recipe.data), ("old", recipe.old_domain)):
        rows[domain], held_out[domain] = (
            pack_dataset(d, tokenizer, add_bos_token=objective.entry.has_bos, **vars(recipe.packing))
            for d in load_documents(arguments, seed=training.seed)
        )

    model = run.build(objective.auto_class, config, tokenizer)
    trainer = HfxTrainer(
        model=model,
        args=training,
        train_dataset=task.with_replay(rows["new"], rows["old"], recipe.old_domain.replay, training.seed),
        eval_dataset=held_out["new"],
        data_collator=objective.collator(tokenizer, config),
        eval_data_collator=objective.collator(tokenizer, config, seed=training.seed),
        processing_class=tokenizer,
    )
    before = task.perplexities(trainer, held_out)
    metrics = run.train(trainer)
    scores, _ = run.evaluate(trainer, {"validation": held_out["new"]})
    after = task.perplexities(trainer, held_out)
    print(task.table(before, after))
    run.write_lines("domains.jsonl", [{"domain": d, "before": before[d], "after": after[d]} for d in before])

    samples = write_samples(
        trained_model(trainer), tokenizer, recipe.samples, seed=training.seed, sees_prefix=objective.sees_prefix
    )
    facts = run.facts(
        trainer,
        metrics,
        dataset=run.dataset_name,
        dataset_summary=pretraining.describe_data(run.dataset_name, rows["new"], scores["eval_tokens"], row_length),
        metrics={"perplexity": after["new"], "old_domain_perplexity": after["old"]},
        headline=("perplexity",),
        task=pretraining.HUB_TASKS[objective.kind],
        training={
            "perplexity before": f"{before['new']:.2f}, of the old domain {before['old']:.2f}",
            "rows of the old domain": f"{recipe.old_domain.replay:.0%}",
        },
        samples=samples,
    )
    run.finish(trainer, facts, probe_text=recipe.samples.prompts[0] if recipe.samples.prompts else "import os")


if __name__ == "__main__":
    run_recipe_main(main)
