"""Teach a model to answer questions by a span of a text: an encoder, decoder or encoder-decoder, from scratch or trained.

    python recipes/question_answering/train.py recipes/question_answering/xquad_en.yaml
    python recipes/question_answering/train.py recipes/question_answering/debug.yaml
    python recipes/question_answering/train.py recipes/question_answering/xquad_en.yaml --model '{path: outputs/masked}' \
        --tokenizer '{}'

Every field of the YAML can be overridden on the command line; --help lists them all.
"""

from transformers import AutoModelForQuestionAnswering

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.tasks import question_answering as task
from hf_ext.tasks.run import PREFIXES, Run
from hf_ext.tasks.tokenizer_section import get_tokenizer
from hf_ext.training.recipe import load_recipe, run_recipe_main
from hf_ext.training.split_metrics import SplitMetricsTrainer


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv, task.SECTIONS)
    asked = recipe.question_answering

    # everything that can be refused without reading the data is refused here
    run = Run(recipe, "recipes/question_answering/train.py", argv)
    config = run.model_section.config(vocab_size=recipe.tokenizer.size)

    rows = task.load_questions(recipe.data, asked.null_answers)
    tokenizer = get_tokenizer(
        recipe.tokenizer,
        task.texts(rows["train"]),
        model_max_length=config.max_position_embeddings,
        special_tokens=task.SPECIAL_TOKENS,
        **run.tokenizer_arguments(),
    )
    tokenizer = task.with_pair_template(tokenizer)
    windows = {split: task.cut_into_windows(rows[split], tokenizer, config, asked, split) for split in rows}
    inputs = {split: task.model_inputs(windows[split]) for split in rows}

    model = run.build(AutoModelForQuestionAnswering, run.model_section.config(tokenizer), tokenizer)
    trainer = SplitMetricsTrainer(
        model=model,
        args=recipe.training,
        train_dataset=inputs["train"],
        eval_dataset=inputs["validation"],
        data_collator=task.collator(tokenizer),
        split_metrics={
            PREFIXES[split]: task.metrics(windows[split], rows[split], asked) for split in rows if split != "train"
        },
        preprocess_logits_for_metrics=task.scores_only,
        processing_class=tokenizer,
    )
    trained = run.train(trainer)

    scores, outputs = run.evaluate(trainer, inputs)
    answers = {
        split: task.read_answers(output, windows[split], rows[split], asked) for split, output in outputs.items()
    }
    for split, found in answers.items():
        run.write_lines(f"{split}_predictions.jsonl", task.predictions(found, rows[split], asked))
        run.write_lines(f"{split}_nbest.jsonl", task.n_best_lists(found, rows[split], asked))

    facts = run.facts(
        trainer,
        trained,
        dataset=run.dataset_name,
        rows=rows,
        metrics=run.reported(scores),
        headline=task.HEADLINE,
        task="question-answering",
        samples=task.samples(answers["validation"], rows["validation"]),
        training={"windows": f"{len(windows['train']):,}"},
    )
    run.finish(trainer, facts, probe_text=rows["validation"][0]["question"])


if __name__ == "__main__":
    run_recipe_main(main)
