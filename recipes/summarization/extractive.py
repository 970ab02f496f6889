"""Teach an encoder to choose the sentences of a text that make its summary, from scratch or from a trained one.

    python recipes/summarization/extractive.py recipes/summarization/dialogsum_extractive.yaml
    python recipes/summarization/extractive.py recipes/summarization/debug_extractive.yaml

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

from transformers import AutoModelForTokenClassification

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.tasks import extractive_summarization as task
from hf_ext.tasks.run import PREFIXES, Run
from hf_ext.tasks.summarization import load_documents_with_summaries, texts
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main
from hf_ext.training.split_metrics import SplitMetricsTrainer


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, task.SECTIONS)
    asked = recipe.summarization

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/summarization/extractive.py", argv)
    config = run.model_section.config(vocab_size=recipe.tokenizer.size)
    task.check_model(config)

    documents = load_documents_with_summaries(recipe.data, asked)
    tokenizer = get_tokenizer(
        recipe.tokenizer,
        texts(documents["train"]),
        model_max_length=config.max_position_embeddings,
        special_tokens=task.SPECIAL_TOKENS,
        **run.tokenizer_arguments(),
    )
    task.check_tokenizer(tokenizer)
    rows = {split: task.split_documents(documents[split], asked, split) for split in documents}
    inputs = {split: task.tokenize(rows[split], tokenizer, config, asked, split) for split in rows}
    held_out = [split for split in rows if split != "train"]
    baselines = {split: task.baselines(rows[split], asked) for split in held_out}

    model = run.build(AutoModelForTokenClassification, run.model_section.config(tokenizer, **task.HEAD), tokenizer)
    trainer = SplitMetricsTrainer(
        model=model,
        args=recipe.training,
        train_dataset=inputs["train"],
        eval_dataset=inputs["validation"],
        data_collator=task.collator(tokenizer),
        split_metrics={PREFIXES[split]: task.metrics(inputs[split], rows[split], asked) for split in held_out},
        preprocess_logits_for_metrics=task.summary_logits,
        processing_class=tokenizer,
    )
    trained = run.train(trainer)

    scores, outputs = run.evaluate(trainer, inputs)
    lines = {}
    for split in held_out:
        beside = {f"{PREFIXES[split]}_{name}": value for name, value in baselines[split].items()}
        trainer.log_metrics(f"{split} baselines", beside)
        trainer.save_metrics(f"{PREFIXES[split]}_baselines", beside)
        scores |= beside
        lines[split] = task.predictions(task.sentence_scores(outputs[split], inputs[split]), rows[split], asked)
        run.write_lines(f"{split}_predictions.jsonl", lines[split])

    facts = run.facts(
        trainer,
        trained,
        dataset=run.dataset_name,
        rows=rows,
        metrics=run.reported(scores),
        headline=task.HEADLINE,
        task="summarization",
        usage=task.USAGE,
        samples=[
            {"prompt": document, "text": line["prediction"]}
            for document, line in zip(documents["validation"]["document"][:3], lines["validation"], strict=False)
        ],
        training={"chosen": f"{asked.unit}, {asked.num_sentences or 'by threshold'}"},
    )
    run.finish(trainer, facts, probe_text=documents["validation"][0]["document"])


if __name__ == "__main__":
    run_recipe_main(main)
