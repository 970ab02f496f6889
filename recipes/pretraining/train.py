"""Pretrain a language model from scratch on any text, by one YAML.

    python recipes/pretraining/train.py recipes/pretraining/quickstart.yaml
    python recipes/pretraining/train.py recipes/pretraining/quickstart.yaml --learning_rate 1e-3 --resume auto
    python recipes/pretraining/train.py recipes/pretraining/masked.yaml --data.dataset_name null --data.data_files my.txt

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

import math
import shlex
import sys
from pathlib import Path

from transformers import set_seed

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.data import load_documents, pack_dataset, utf8_bytes
from hf_ext.hub import RunFacts, model_card
from hf_ext.tasks import pretraining as steps
from hf_ext.tasks.objective_section import read_objective
from hf_ext.tasks.reload_check import probe
from hf_ext.tasks.samples import write_samples
from hf_ext.training.loss_curve import draw_loss_curve
from hf_ext.training.recipe import load_recipe, run_recipe_main
from hf_ext.training.trainer import HfxTrainer


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, steps.SECTIONS)
    training, row_length = recipe.training, recipe.packing.row_length
    output = Path(training.output_dir)

    # everything that can be refused without reading the data is refused here
    config = steps.build_config(recipe.model, None, vocab_size=recipe.tokenizer.size)
    objective = read_objective(recipe.objective, config)
    steps.check_run(training, recipe.data, config, row_length)
    checkpoint = steps.find_checkpoint(training.output_dir, recipe.resume)
    steps.check_writable(training.output_dir)
    set_seed(training.seed)

    train_documents, eval_documents = load_documents(recipe.data, seed=training.seed)
    texts = (d["text"] for d in train_documents.take(recipe.tokenizer.max_documents or sys.maxsize))
    tokenizer = steps.get_tokenizer(
        recipe.tokenizer,
        texts,
        model_max_length=config.max_position_embeddings,
        checkpoint=checkpoint,
        special_tokens=objective.entry.special_tokens,
    )
    train_rows, eval_rows = (
        pack_dataset(d, tokenizer, add_bos_token=objective.entry.has_bos, **vars(recipe.packing))
        for d in (train_documents, eval_documents)
    )

    config = steps.build_config(recipe.model, tokenizer, vocab_size=0)
    steps.check_same_run(checkpoint, config, recipe.values)
    model = objective.auto_class.from_config(config)
    print(f"{type(model).__name__}: {model.num_parameters():,} parameters, vocabulary {len(tokenizer):,}")
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
    output.mkdir(parents=True, exist_ok=True)
    (output / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")

    if checkpoint is not None:
        print(f"going on from {checkpoint} ({steps.steps_done(checkpoint)} steps done)")
    metrics = steps.train(trainer, checkpoint)
    trainer.save_model()  # with the tokenizer
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()

    scores = trainer.evaluate()
    trainer.log_metrics("eval", scores)
    trainer.save_metrics("eval", scores)
    draw_loss_curve(trainer.state.log_history, output / "loss.png")

    # without the mixed precision that training wrapped around it: what is saved, sampled and probed is the model itself
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    samples = write_samples(model, tokenizer, recipe.samples, seed=training.seed, sees_prefix=objective.sees_prefix)
    for sample in samples:
        before = sample["prompt"] if objective.kind == "causal" else ""
        print(f"\n--- {sample['prompt']!r}\n{before}{sample['text']}")

    seen = trainer.state.global_step * trainer.get_total_train_batch_size(training) * row_length
    facts = RunFacts(
        title=output.name,
        summary=f"A `{config.model_type}` of {model.num_parameters() / 1e6:.2f}M parameters, trained from scratch.",
        limits="A small model from a short run: it shows that the recipe works, its text is not to be relied on.",
        dataset=steps.dataset_name(recipe.data),
        dataset_summary=steps.describe_data(recipe.data, train_rows, scores["eval_tokens"], row_length),
        metrics={k.removeprefix("eval_"): scores[k] for k in scores if k in steps.REPORTED},
        headline=tuple(name for name in ("perplexity", "bits_per_byte") if f"eval_{name}" in scores),
        task=steps.HUB_TASKS[objective.kind],
        training={
            "steps": f"{trainer.state.global_step:,}",
            "objective": objective.name,
            "tokens seen": f"{seen:,}",
            "training loss": f"{metrics['train_loss']:.4f}",
            "seconds": f"{metrics['train_runtime']:.0f}" if "train_runtime" in metrics else "not known",
            "optimizer": f"{training.matrix_optimizer or training.optim}, learning rate {training.learning_rate:g}",
        },
        command=shlex.join(["python", "recipes/pretraining/train.py", *map(str, argv)]),
        recipe=recipe.to_yaml(),
        samples=samples,
        curve="loss.png",
    )
    model_card(model, output, facts).save(output / "README.md")

    # the proof: a fresh process, which knows the folder only, computes the same
    prompt = recipe.samples.prompts[0] if recipe.samples.prompts else "import os"
    here, there = probe(model, tokenizer, prompt), steps.reload_in_fresh_process(training.output_dir, prompt)
    same = all(here[k] == there[k] for k in ("class", "weights", "greedy"))
    if not same or not math.isclose(here["prompt_loss"], there["prompt_loss"], rel_tol=1e-5):
        raise RuntimeError(f"{output}: a fresh process computes something else: {there} instead of {here}")
    print(f"\nreloaded in a fresh process: {there['class']}, weights {there['weights'][:12]}, same text")
    print(f"everything is in {output}")


if __name__ == "__main__":
    run_recipe_main(main)
