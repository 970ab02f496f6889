"""From text to rows: seconds and tokens a second of tokenizer training, tokenisation and packing on Python's library.

python tests/benchmarks/packing.py
"""

import platform
import time

from hf_ext.data import iter_python_library, pack_documents, train_tokenizer


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def main() -> None:
    texts = [document["text"] for document in iter_python_library()]
    size = sum(len(text.encode("utf-8")) for text in texts)
    print(f"{platform.machine()}, {len(texts)} documents, {size / 1e6:.1f} MB\n")
    print("| step | seconds | million tokens a second |\n| --- | --- | --- |")
    tokenizer, seconds = timed(lambda: train_tokenizer(texts, vocab_size=8192, model_max_length=1024))
    print(f"| training the tokenizer, vocabulary 8,192 | {seconds:.1f} | |")
    documents, seconds = timed(lambda: tokenizer(texts, verbose=False)["input_ids"])
    tokens = sum(map(len, documents))
    print(f"| tokenising | {seconds:.1f} | {tokens / seconds / 1e6:.1f} |")
    for strategy in ("split", "best_fit"):
        packing = {"row_length": 1024, "strategy": strategy, "eos_token_id": 0, "pad_token_id": 1}
        rows, seconds = timed(lambda p=packing: sum(1 for _ in pack_documents(documents, **p)))
        padding = 1 - (tokens + len(documents)) / (rows * 1024)
        print(f"| packing, {strategy} ({padding:.1%} padding) | {seconds:.2f} | {tokens / seconds / 1e6:.1f} |")


if __name__ == "__main__":
    main()
