"""What somebody does with a saved model who has transformers, but not hf_ext: `python without_hf_ext.py FOLDER`.

FOLDER/<number>/ holds a model's folder and case.pt: the Auto class to load it by, what to ask it and what hf_ext's own class
has answered. Everything must come back the same.
"""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from huggingface_hub.constants import HF_HUB_CACHE


LABELS = ("labels", "start_positions", "end_positions")


@torch.no_grad()
def scores(model, batch: dict) -> dict[str, torch.Tensor]:
    """What the model says of a batch."""
    output = model(**{name: value for name, value in batch.items() if name not in LABELS})
    names = ("logits", "start_logits", "end_logits", "last_hidden_state")
    return {name: output[name] for name in names if name in output}


def answers(model, batch: dict) -> dict[str, torch.Tensor]:
    """Scores, greedy text, and the losses of two training steps; leaves the model trained, in eval mode."""
    found = scores(model, batch)
    if model.can_generate():
        prompt = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found["text"] = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    if set(LABELS) & set(batch):
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
        for step in range(2):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found[f"loss {step}"] = loss.detach()
        model.eval()
    return found


def assert_same(found: dict, expected: dict, case: str) -> None:
    assert found.keys() == expected.keys(), (case, sorted(found), sorted(expected))
    for name, value in expected.items():
        assert torch.equal(found[name], value), f"{case}: {name} differs by {(found[name] - value).abs().max()}"


def code_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.py")}


def auto_map_in(folder: Path) -> dict[str, str]:
    return json.loads((folder / "config.json").read_text())["auto_map"]


def load(folder: Path, case: dict, saved: Path | None = None):
    auto_class = getattr(transformers, case["auto_class"])
    return auto_class.from_pretrained(
        saved or folder / case["folder"], attn_implementation=case["attention"], trust_remote_code=True
    )


def check(folder: Path, work: Path) -> None:
    """Load, compare, train, save and load again."""
    case = torch.load(folder / "case.pt", weights_only=True)
    name, saved, again = case["name"], folder / case["folder"], work / folder.name / case["folder"]
    model = load(folder, case)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(model.config).__module__.rpartition(".")[0] == type(model).__module__.rpartition(".")[0]
    assert_same(answers(model, case["batch"]), case["expected"], name)

    model.save_pretrained(again)
    assert code_in(again) == code_in(saved), name
    assert auto_map_in(again) == auto_map_in(saved), name
    assert_same(scores(load(folder, case, again), case["batch"]), scores(model, case["batch"]), f"{name}, saved again")


def check_from_the_hub(folder: Path, work: Path) -> None:
    """By the name of a repository, whose files lie in the cache already: the loader then takes the code file by file."""
    case = torch.load(folder / "case.pt", weights_only=True)
    saved, commit, repository = folder / case["folder"], "0" * 40, Path(HF_HUB_CACHE) / "models--somebody--model"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model = transformers.AutoModelForCausalLM.from_pretrained("somebody/model", trust_remote_code=True, revision=commit)
    assert commit in type(model).__module__
    said = scores(model, case["batch"])
    assert_same(said, {name: case["expected"][name] for name in said}, f"{case['name']}, from the Hub")
    model.save_pretrained(work / "from the Hub")
    assert code_in(work / "from the Hub") == code_in(saved)
    assert auto_map_in(work / "from the Hub") == auto_map_in(saved)


def train(saved: Path, auto_class: type, batch: dict, work: Path) -> None:
    """The stock Trainer, with label smoothing, which it does by the names of the causal models."""
    model = auto_class.from_pretrained(saved, trust_remote_code=True)
    rows = [{name: value[i] for name, value in batch.items()} for i in range(len(batch["input_ids"]))]
    arguments = transformers.TrainingArguments(
        output_dir=str(work / "trained"),
        max_steps=2,
        per_device_train_batch_size=2,
        label_smoothing_factor=0.1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    before = model.get_input_embeddings().weight.clone()
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    assert not torch.equal(before, model.get_input_embeddings().weight)
    trainer.save_model(str(work / "trained"))
    assert code_in(work / "trained") == code_in(saved)


def check_side_by_side(folders: list[Path]) -> None:
    """Models of several families at once, each with its own attention of one name."""
    cases = [torch.load(folder / "case.pt", weights_only=True) for folder in folders]
    biased = [(folder, case) for folder, case in zip(folders, cases, strict=True) if case["attention"] == "hfx_tiled"]
    assert len({case["folder"] for _, case in biased}) > 2
    models = [load(folder, case) for folder, case in biased]
    for model, (_, case) in zip(models, biased, strict=True):
        said = scores(model, case["batch"])
        assert_same(said, {name: case["expected"][name] for name in said}, f"{case['name']}, among others")


@torch.no_grad()
def check_flex_attention(folders: list[Path]) -> None:
    """With a bias in the scores: the same number, or one line where transformers would leave it out, as 5.5 does."""
    asked = 0
    for folder in folders:
        case = torch.load(folder / "case.pt", weights_only=True)
        config = json.loads((folder / case["folder"] / "config.json").read_text())
        if config["position_embedding_type"] not in ("alibi", "relative") or config["model_type"] != "hfx_decoder":
            continue
        asked, said, refusal = asked + 1, {}, None
        try:
            said = scores(load(folder, case | {"attention": "flex_attention"}), case["batch"])
        except ValueError as error:
            refusal = str(error)
        assert (refusal is not None) == transformers.__version__.startswith("5.5."), refusal
        assert refusal is None or "does not support position_embedding_type" in refusal
        real = case["batch"]["attention_mask"].bool()
        for name, value in said.items():
            if value.shape[:2] == real.shape:
                torch.testing.assert_close(value[real], case["expected"][name][real], atol=1e-4, rtol=1e-4)
    assert asked


def check_ways_to_generate(folder: Path) -> None:
    """Drafted tokens, and a step over a static cache as a compiler sees it, give the text of the plain loop."""
    case = torch.load(folder / "case.pt", weights_only=True)
    model = load(folder, case)
    prompt = {name: case["batch"][name][:1] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    text = model.generate(**prompt, **options)
    static = {"cache_implementation": "static"}
    graph = {"compile_config": transformers.CompileConfig(backend="eager", mode=None)}
    for further in (static, static | graph, {"prompt_lookup_num_tokens": 2}):
        assert torch.equal(model.generate(**prompt, **options, **further), text), (case["name"], further)


def check_requests_together(folder: Path) -> None:
    """Continuous batching gives `generate`'s tokens, and leaves the model as it was: 5.5 leaves its attention in pages."""
    case = torch.load(folder / "case.pt", weights_only=True)
    model = load(folder, case)
    row = case["batch"]["input_ids"][0].tolist()
    prompts = [row[:2], row[:5], row[1:4]]
    config = transformers.GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    alone = [
        model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), generation_config=config
        )[0, len(ids) :].tolist()
        for ids in prompts
    ]
    sizes = transformers.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32)  # else most of the memory
    together = model.generate_batch(
        prompts, generation_config=config, continuous_batching_config=sizes, progress_bar=False
    )
    assert sorted(output.generated_tokens for output in together.values()) == sorted(alone), case["name"]
    said = scores(model, case["batch"])
    assert_same(said, {name: case["expected"][name] for name in said}, f"{case['name']}, after requests together")


def main(folder: Path) -> None:
    assert find_spec("hf_ext") is None, "hf_ext can be imported here"
    work = folder / f"with {transformers.__version__}"
    cases = sorted(path.parent for path in folder.glob("*/case.pt"))
    for case in cases:
        check(case, work)
    check_side_by_side(cases)
    check_flex_attention(cases)
    check_ways_to_generate(folder / "0")
    check_requests_together(folder / "0")
    check_from_the_hub(folder / "0", work)
    first = torch.load(folder / "0" / "case.pt", weights_only=True)
    train(folder / "0" / first["folder"], transformers.AutoModelForCausalLM, first["batch"], work)
    print(f"{len(cases)} models without hf_ext, transformers {transformers.__version__}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
