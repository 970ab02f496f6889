"""Teach a decoder to answer questions in worked steps, and let several of its answers vote.

    python recipes/chain_of_thought/train.py recipes/chain_of_thought/gsm8k.yaml
    python recipes/chain_of_thought/train.py recipes/chain_of_thought/debug.yaml
    python recipes/chain_of_thought/train.py recipes/chain_of_thought/debug.yaml --prompts.format chat --num_samples 8

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

from transformers import AutoModelForCausalLM

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.data import load_rows
from hf_ext.objectives import CausalCollator
from hf_ext.tasks import chain_of_thought as task
from hf_ext.tasks.prompts_and_answers import tokenize, training_rows
from hf_ext.tasks.run import PREFIXES, Run, trained_model
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main
from hf_ext.training.trainer import HfxTrainer


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, task.SECTIONS)
    training, prompts, generation = recipe.training, recipe.prompts, recipe.generation
    fallback = recipe.answers.fallback
    training.prediction_loss_only = (
        True  # answers are judged as texts; the logits of every token would be kept for nothing
    )

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/chain_of_thought/train.py", argv)
    max_length = run.model_section.config(vocab_size=recipe.tokenizer.size).max_position_embeddings

    rows = load_rows(recipe.data, task.COLUMNS)
    tokenizer = get_tokenizer(
        recipe.tokenizer,
        task.texts(rows["train"]),
        model_max_length=max_length,
        special_tokens=prompts.special_tokens,
        **run.tokenizer_arguments(),
    )
    prompts.prepare(tokenizer)
    examples = {split: tokenize(rows[split], tokenizer, prompts, where=split, columns=task.COLUMNS) for split in rows}
    packed = {split: training_rows(examples[split], prompts, max_length, split) for split in rows}

    model = run.build(AutoModelForCausalLM, run.model_section.config(tokenizer), tokenizer)
    config = generation.config(model, tokenizer)
    evaluations = {
        split: task.evaluation(examples[split], rows[split], config, recipe.answers, tokenizer, generation.batch_size)
        for split in rows
        if split != "train"
    }
    trainer = HfxTrainer(
        model=model,
        args=training,
        train_dataset=packed["train"],
        eval_dataset=packed["validation"],
        data_collator=CausalCollator(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
        text_evaluations={PREFIXES[split]: evaluation for split, evaluation in evaluations.items()},
    )
    trained = run.train(trainer)
    scores, _ = run.evaluate(trainer, packed)

    lines = {}
    for split, evaluation in evaluations.items():
        drawn = None
        if recipe.voting.num_samples:
            drawn = task.draw_answers(
                trained_model(trainer),
                tokenizer,
                evaluation.prompts,
                task.voting_config(config, recipe.voting),
                recipe.answers,
                batch_size=generation.batch_size,
                seed=training.seed,
            )
            votes = task.vote_scores(drawn, rows[split], fallback=fallback)
            scores |= run.report(trainer, split, votes)
        lines[split] = task.predictions(evaluation.texts, drawn, rows[split], fallback=fallback)
        run.write_lines(f"{split}_predictions.jsonl", lines[split])

    facts = run.facts(
        trainer,
        trained,
        dataset=run.dataset_name,
        rows=rows,
        metrics=run.reported(scores),
        headline=task.HEADLINE,
        samples=[
            {"prompt": tokenizer.decode(prompt), "text": line["written"]}
            for prompt, line in zip(evaluations["validation"].prompts[:3], lines["validation"], strict=False)
        ],
        training={"learnt": f"{prompts.loss_on}, {prompts.format}", "calculator": str(recipe.answers.calculator)},
    )
    run.finish(trainer, facts, probe_text=rows["validation"][0]["question"])


if __name__ == "__main__":
    run_recipe_main(main)
