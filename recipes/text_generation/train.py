"""Train a decoder on texts and let it write by many samplers, or under constraints; or let a trained model do so.

    python recipes/text_generation/train.py recipes/text_generation/tinyshakespeare.yaml
    python recipes/text_generation/train.py recipes/text_generation/debug.yaml --constraints.pattern "[a-z ]*[.]"
    python recipes/text_generation/train.py recipes/text_generation/compare.yaml --model.path outputs/tinyshakespeare

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

import json

from transformers import AutoModelForCausalLM

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.data import load_documents, pack_dataset, utf8_bytes
from hf_ext.hub.card_sections import put_section
from hf_ext.objectives import CausalCollator
from hf_ext.tasks import text_generation as task
from hf_ext.tasks.pretraining import REPORTED, check_run, describe_data
from hf_ext.tasks.run import Run, trained_model
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main
from hf_ext.training.trainer import HfxTrainer


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, task.SECTIONS)
    training, writing, row_length = recipe.training, recipe.writing, recipe.packing.row_length
    training.prediction_loss_only = True  # else the logits of every held-out token would be kept

    # everything that can be refused without reading the data is refused here
    if writing.only and training.push_to_hub:
        raise ValueError("training.push_to_hub=True: no model comes out of writing.only; leave one of them out")
    run = Run(recipe, "recipes/text_generation/train.py", argv)
    config = run.model_section.config(vocab_size=recipe.tokenizer.size)
    check_run(training, recipe.data, config, row_length)
    task.check_writing(writing, config, run.model_section.path)

    train_documents, eval_documents = load_documents(recipe.data, seed=training.seed)
    tokenizer = get_tokenizer(
        recipe.tokenizer,
        (document["text"] for document in train_documents),
        model_max_length=config.max_position_embeddings,
        **run.tokenizer_arguments(),
    )
    train_rows, eval_rows = (
        pack_dataset(d, tokenizer, **vars(recipe.packing)) for d in (train_documents, eval_documents)
    )
    held_out = (document["text"] for document in eval_documents)
    prompts, followed = task.beginnings(held_out, tokenizer, writing)

    model = run.build(AutoModelForCausalLM, run.model_section.config(tokenizer), tokenizer)
    trainer = HfxTrainer(
        model=model,
        args=training,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        data_collator=CausalCollator(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
        eval_num_bytes=utf8_bytes(eval_documents),
    )
    trained = None if writing.only else run.train(trainer)
    scores, _ = run.evaluate(trainer, {"validation": eval_rows})

    table, lines = task.compare(
        trained_model(trainer), tokenizer, prompts, followed, writing, recipe.constraints, seed=training.seed
    )
    if run.is_main:
        (run.output / "samplers.md").write_text(task.as_markdown(table), encoding="utf-8")
        (run.output / "samplers.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
        task.draw(table, run.output / "samplers.png")
        print(f"\n{task.as_markdown(table)}")
    run.write_lines("samplers.jsonl", lines)
    if writing.only:
        run.print_where()
        return

    facts = run.facts(
        trainer,
        trained,
        dataset=run.dataset_name,
        dataset_summary=describe_data(run.dataset_name, train_rows, scores["eval_tokens"], row_length),
        metrics={name.removeprefix("eval_"): scores[name] for name in scores if name in REPORTED},
        headline=("perplexity", "bits_per_byte"),
        training={"tokens seen": f"{run.rows_seen(trainer) * row_length:,}"},
        samples=task.samples(lines),
    )
    samplers = f"{task.as_markdown(table)}\n![Perplexity by repetition](samplers.png)"
    run.finish(
        trainer,
        facts,
        probe_text=tokenizer.decode(prompts[0]),
        before_push=lambda: put_section(run.output, "## Samplers", samplers),
    )


if __name__ == "__main__":
    run_recipe_main(main)
