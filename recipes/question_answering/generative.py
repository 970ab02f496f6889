"""Teach a model to write answers to questions about a text: an encoder-decoder or decoder, from scratch or trained.

    python recipes/question_answering/generative.py recipes/question_answering/xquad_en_generative.yaml
    python recipes/question_answering/generative.py recipes/question_answering/debug_generative.yaml

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.tasks import generative_question_answering as task
from hf_ext.tasks import source_and_target as pairs
from hf_ext.tasks.question_answering import load_questions
from hf_ext.tasks.run import PREFIXES, Run
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main
from hf_ext.training.text_evaluation import TextEvaluation
from hf_ext.training.trainer import HfxTrainer


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, task.SECTIONS)
    asked, generation = recipe.question_answering, recipe.generation
    recipe.training.prediction_loss_only = True  # what is written is evaluated, not the logits of every token

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/question_answering/generative.py", argv)
    config = run.model_section.config(vocab_size=recipe.tokenizer.size)
    auto_class = pairs.writing_class(config)
    asked.source_length(config)

    rows = {split: task.targets(found) for split, found in load_questions(recipe.data, asked.null_answers).items()}
    tokenizer = get_tokenizer(
        recipe.tokenizer,
        task.texts(rows["train"]),
        model_max_length=config.max_position_embeddings,
        special_tokens=pairs.special_tokens(config),
        **run.tokenizer_arguments(),
    )
    pairs.check_tokenizer(tokenizer)
    config = run.model_section.config(tokenizer)
    encoded = {
        split: pairs.encode(rows[split], tokenizer, config, asked, split, target="answer_texts") for split in rows
    }
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
        task=pairs.HUB_TASKS[config.is_encoder_decoder],
        samples=samples,
        training={"prompt": repr(asked.template(config))},
    )
    run.finish(trainer, facts, probe_text=samples[0]["prompt"])


if __name__ == "__main__":
    run_recipe_main(main)
