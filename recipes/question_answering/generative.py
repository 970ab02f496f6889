"""Teach a model to write answers to questions about a text: an encoder-decoder or decoder, from scratch or trained.

    python recipes/question_answering/generative.py recipes/question_answering/xquad_en_generative.yaml
    python recipes/question_answering/generative.py recipes/question_answering/debug_generative.yaml

Every field of the YAML can be overridden on the command line; --help lists them all. The steps of the run, from the
sections to the card, are `hf_ext/tasks/writing_run.py`.
"""

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.tasks import generative_question_answering
from hf_ext.tasks.source_and_target import HUB_TASKS
from hf_ext.tasks.writing_run import WritingTask, run_writing
from hf_ext.training.recipe import run_recipe_main


TASK = WritingTask(
    module=generative_question_answering,
    section="question_answering",
    load=generative_question_answering.load,
    target="answer_texts",
    card=lambda is_encoder_decoder: {"task": HUB_TASKS[is_encoder_decoder]},
)


def main(argv: list[str]) -> None:
    run_writing(TASK, "recipes/question_answering/generative.py", argv)


if __name__ == "__main__":
    run_recipe_main(main)
