"""Pretrain a language model from scratch on any text, by one YAML.

    python recipes/pretraining/train.py recipes/pretraining/quickstart.yaml
    python recipes/pretraining/train.py recipes/pretraining/quickstart.yaml --learning_rate 1e-3 --resume auto
    python recipes/pretraining/train.py recipes/pretraining/masked.yaml --data.dataset_name null --data.data_files my.txt

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.data import load_documents, pack_dataset, utf8_bytes
from hf_ext.tasks import pretraining
from hf_ext.tasks.objective_section import read_objective
from hf_ext.tasks.run import Run, trained_model
from hf_ext.tasks.samples import write_samples
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main
from hf_ext.training.trainer import HfxTrainer


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, pretraining.SECTIONS)
    training, row_length = recipe.training, recipe.packing.row_length

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/pretraining/train.py", argv)
    config = run.model_section.config(vocab_size=recipe.tokenizer.size)
    objective = read_objective(recipe.objective, config)
    pretraining.check_run(training, recipe.data, config, row_length)

    train_documents, eval_documents = load_documents(recipe.data, seed=training.seed)
    tokenizer = get_tokenizer(
        recipe.tokenizer,
        (document["text"] for document in train_documents),
        model_max_length=config.max_position_embeddings,
        special_tokens=objective.entry.special_tokens,
        **run.tokenizer_arguments(),
    )
    train_rows, eval_rows = (
        pack_dataset(d, tokenizer, add_bos_token=objective.entry.has_bos, **vars(recipe.packing))
        for d in (train_documents, eval_documents)
    )

    config = run.model_section.config(tokenizer)
    model = run.build(objective.auto_class, config, tokenizer)
    trainer = HfxTrainer(
        model=model,
        args=training,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        data_collator=objective.collator(tokenizer, config),
        eval_data_collator=objective.collator(tokenizer, config, seed=training.seed),
        processing_class=tokenizer,
        # other objectives predict a part of the text only
        eval_num_bytes=utf8_bytes(eval_documents) if objective.name == "causal" else None,
    )
    metrics = run.train(trainer)
    scores, _ = run.evaluate(trainer, {"validation": eval_rows})

    # without the mixed precision that training wrapped around it: what is saved, sampled and probed is the model itself
    model = trained_model(trainer)
    samples = write_samples(model, tokenizer, recipe.samples, seed=training.seed, sees_prefix=objective.sees_prefix)
    for sample in samples:
        before = sample["prompt"] if objective.kind == "causal" else ""
        print(f"\n--- {sample['prompt']!r}\n{before}{sample['text']}")

    facts = run.facts(
        trainer,
        metrics,
        dataset=run.dataset_name,
        dataset_summary=pretraining.describe_data(run.dataset_name, train_rows, scores["eval_tokens"], row_length),
        metrics={name.removeprefix("eval_"): scores[name] for name in scores if name in pretraining.REPORTED},
        headline=tuple(name for name in ("perplexity", "bits_per_byte") if f"eval_{name}" in scores),
        task=pretraining.HUB_TASKS[objective.kind],
        training={
            "objective": objective.name,
            "tokens seen": f"{run.rows_seen(trainer) * row_length:,}",
        },
        samples=samples,
    )
    run.finish(trainer, facts, probe_text=recipe.samples.prompts[0] if recipe.samples.prompts else "import os")


if __name__ == "__main__":
    run_recipe_main(main)
