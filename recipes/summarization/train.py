"""Teach a model to write summaries: an encoder-decoder or decoder, from scratch or trained.

    python recipes/summarization/train.py recipes/summarization/dialogsum.yaml
    python recipes/summarization/train.py recipes/summarization/debug.yaml

Every field of the YAML can be overridden on the command line; --help lists them all. The steps of the run, from the
sections to the card, are `hf_ext/tasks/writing_run.py`.
"""

import hf_ext  # noqa: F401  registers our architectures
from hf_ext.hub.model_card import USAGE
from hf_ext.tasks import summarization
from hf_ext.tasks.source_and_target import HUB_TASKS
from hf_ext.tasks.writing_run import WritingTask, run_writing
from hf_ext.training.recipe import run_recipe_main


TASK = WritingTask(
    module=summarization,
    section="summarization",
    load=summarization.load_documents_with_summaries,
    target="references",
    card=lambda is_encoder_decoder: {"task": "summarization", "usage": USAGE[HUB_TASKS[is_encoder_decoder]]},
)


def main(argv: list[str]) -> None:
    run_writing(TASK, "recipes/summarization/train.py", argv)


if __name__ == "__main__":
    run_recipe_main(main)
