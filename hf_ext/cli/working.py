"""The part of a subcommand that needs torch: hf_ext is loaded for it, and its mistakes are one line with an exit code."""

import sys
from collections.abc import Callable


INTERRUPTED = 130
# what is imported -> the extra of hf_ext that brings it
EXTRAS = {
    "accelerate": "train",
    "datasets": "train",
    "matplotlib": "train",
    "tokenizers": "train",
    "evaluate": "evaluate",
    "sacrebleu": "evaluate",
    "seqeval": "evaluate",
    "sklearn": "evaluate",
    "rouge_score": "evaluate",
    "peft": "peft",
    "gguf": "export",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "optimum": "export",
    "torchao": "export",
    "nncf": "openvino",
    "openvino": "openvino",
}


def work(do: Callable[[], int | None]) -> None:
    """Call `do` with hf_ext loaded; exits with what it returns, or as recipes do: 2, 3, 75, 130.

    Raises:
        SystemExit: unless `do` returns None or 0.
    """
    import hf_ext

    hf_ext.load()
    from hf_ext.training.recipe import run_recipe_main

    def main(argv: list[str]) -> None:
        try:
            code = do()
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package not in EXTRAS:
                raise
            raise ValueError(f"{package} is not installed; pip install 'hf-ext[{EXTRAS[package]}]'") from error
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = INTERRUPTED
        if code:
            raise SystemExit(code)

    run_recipe_main(main, [])
