"""Teach a model to write summaries: an encoder-decoder or decoder, from scratch or trained.

    python recipes/summarization/train.py recipes/summarization/dialogsum.yaml
    python recipes/summarization/train.py recipes/summarization/debug.yaml

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.hub.model_card import USAGE
from hf_ext.tasks import source_and_target as pairs
from hf_ext.tasks import summarization as task
from hf_ext.tasks.run import PREFIXES, Run
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main
from hf_ext.training.text_evaluation import TextEvaluation
from hf_ext.training.trainer import HfxTrainer


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, task.SECTIONS)
    asked, generation = recipe.summarization, recipe.generation
    recipe.training.prediction_loss_only = True  # what is written is evaluated, not the logits of every token

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/summarization/train.py", argv)
    config = run.model_section.config(vocab_size=recipe.tokenizer.size)
    auto_class = pairs.writing_class(config)
    asked.source_length(config)

    rows = task.load_documents_with_summaries(recipe.data, asked)
    tokenizer = get_tokenizer(
        recipe.tokenizer,
        task.texts(rows["train"]),
        model_max_length=config.max_position_embeddings,
        special_tokens=pairs.special_tokens(config),
        **run.tokenizer_arguments(),
    )
    pairs.check_tokenizer(tokenizer)
    config = run.model_section.config(tokenizer)
    encoded = {split: pairs.encode(rows[split], tokenizer, config, asked, split, target="references") for split in rows}
    inputs = {split: pairs.training_rows(encoded[split], config, asked) for split in rows}

    model = run.build(auto_class, config, tokenizer)
    model.generation_config = generation.config(model, tokenizer)
    trainer = HfxTrainer(
        model=model,
        args=recipe.training,
        train_dataset=inputs["train"],
        eval_dataset=inputs["validation"],
        data_collator=pairs.collator(tokenizer, config),
        text_evaluations={
            PREFIXES[split]: TextEvaluation(
                encoded[split]["prompt"],
                task.score(rows[split], asked),
                model.generation_config,
                batch_size=generation.batch_size,
            )
            for split in rows
            if split != "train"
        },
        processing_class=tokenizer,
    )
    trained = run.train(trainer)

    scores, _ = run.evaluate(trainer, inputs)
    lines = {
        split: task.predictions(trainer.text_evaluations[PREFIXES[split]].texts, rows[split])
        for split in rows
        if split != "train"
    }
    for split, predicted in lines.items():
        run.write_lines(f"{split}_predictions.jsonl", predicted)

    samples = pairs.samples(asked, config, rows["validation"], [line["prediction"] for line in lines["validation"]])
    facts = run.facts(
        trainer,
        trained,
        dataset=run.dataset_name,
        dataset_summary=run.describe_rows(rows),
        metrics=run.reported(scores),
        headline=task.HEADLINE,
        task="summarization",
        usage=USAGE[pairs.HUB_TASKS[config.is_encoder_decoder]],
        samples=samples,
        training={"prompt": repr(asked.template(config))},
    )
    run.finish(trainer, facts, probe_text=samples[0]["prompt"])


if __name__ == "__main__":
    run_recipe_main(main)
