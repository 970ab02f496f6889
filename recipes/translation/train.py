"""Teach a model to translate: an encoder-decoder or a decoder from scratch, or a trained one.

    python recipes/translation/train.py recipes/translation/multi30k_en_de.yaml
    python recipes/translation/train.py recipes/translation/debug.yaml
    python recipes/translation/train.py recipes/translation/multi30k_en_de.yaml --data.dataset_name opus_books \
        --data.dataset_config_name de-en --data.data_files null --data.validation_split null --data.test_split null

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.tasks import translation as task
from hf_ext.tasks.run import PREFIXES, Run
from hf_ext.tasks.source_and_target import collator, writing_class
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main
from hf_ext.training.trainer import HfxTrainer


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, task.SECTIONS)
    asked, generation = recipe.translation, recipe.generation

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/translation/train.py", argv)
    config = run.model_section.config(vocab_size=recipe.tokenizer.size)
    auto_class = writing_class(config)
    max_length = task.side_length(asked, generation, config)

    texts = task.load_texts(recipe.data, asked)
    tokens = task.special_tokens(asked, config)
    tokenizer = get_tokenizer(
        recipe.tokenizer,
        task.texts(texts["train"]),
        model_max_length=config.max_position_embeddings,
        special_tokens={"extra_tokens": tokens},
        **run.tokenizer_arguments(),
    )
    task.add_special_tokens(tokenizer, tokens)
    separator = None if config.is_encoder_decoder else task.SEPARATOR
    form = task.PairFormat(tokenizer, asked.tags, separator, max_length)
    rows = {split: task.pair_rows(texts[split], asked.pairs, form, split) for split in texts}

    model = run.build(auto_class, run.model_section.config(tokenizer), tokenizer)
    # a user's plain `model.generate` searches as the evaluation does
    model.generation_config = generation.config(model, tokenizer)
    wanted = {split: task.translations(texts[split], asked) for split in texts if split in PREFIXES}
    in_training = task.greedy(generation) if asked.greedy_while_training else {}
    trainer = HfxTrainer(
        model=model,
        args=recipe.training,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=collator(tokenizer, model.config),
        text_evaluations={
            "eval": task.evaluation(wanted["validation"], form, generation, model, "validation", **in_training)
        },
        processing_class=tokenizer,
    )
    trained = run.train(trainer)

    trainer.text_evaluations = {
        PREFIXES[split]: task.evaluation(wanted[split], form, generation, model, split) for split in wanted
    }
    scores, _ = run.evaluate(trainer, rows)
    lines = {split: wanted[split].lines(trainer.text_evaluations[PREFIXES[split]].texts) for split in wanted}
    for split in wanted:
        run.write_lines(f"{split}_predictions.jsonl", lines[split])

    samples = [
        {"prompt": form.source_text(line["source"], line["direction"].split("-")[1]), "text": line["prediction"]}
        for line in lines["validation"][:3]
    ]
    facts = run.facts(
        trainer,
        trained,
        dataset=run.dataset_name,
        rows=rows,
        metrics=run.reported(scores),
        headline=task.HEADLINE,
        task="translation" if config.is_encoder_decoder else "text-generation",
        samples=samples,
        training={"directions": ", ".join(asked.directions), "beams": str(generation.num_beams)},
    )
    run.finish(trainer, facts, probe_text=samples[0]["prompt"])


if __name__ == "__main__":
    run_recipe_main(main)
