"""Text written by exports: the tokens of the models that they were made of, however they are chosen."""

import copy

import pytest
import torch
from hub.conftest import make_tokenizer
from hub.loopback_hub import reachable_hub
from models.grid import ALL_FAMILIES
from transformers import DynamicCache, pipeline

from hf_ext.export import HfxExportedModelForCausalLM, HfxExportedModelForSeq2SeqLM, export_model
from hf_ext.hub.push import push


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "without a cache": {"use_cache": False},
}


def prompt(pad: str) -> dict[str, torch.Tensor]:
    """Two rows, one of them shorter."""
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, slice(0, 4) if pad == "left" else slice(5, 9)] = 0
    return {"input_ids": ids, "attention_mask": mask}


def texts(model, inputs: dict, **options) -> torch.Tensor:
    torch.manual_seed(0)
    return model.generate(**inputs, max_new_tokens=12, pad_token_id=0, **options)


@pytest.fixture(scope="module")
def writer(exported_decoder):
    return HfxExportedModelForCausalLM.from_pretrained(exported_decoder)


@pytest.fixture(scope="module")
def exported_seq2seq(exported_translator):
    return HfxExportedModelForSeq2SeqLM.from_pretrained(exported_translator)


@pytest.mark.parametrize("way", WAYS)
def test_a_decoder_writes_the_same(decoder, writer, way):
    inputs = prompt("left")
    assert torch.equal(texts(writer, inputs, **WAYS[way]), texts(decoder, inputs, **WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
def test_an_encoder_decoder_writes_the_same(translator, exported_seq2seq, way):
    inputs = prompt("right")
    assert torch.equal(texts(exported_seq2seq, inputs, **WAYS[way]), texts(translator, inputs, **WAYS[way]))


def test_a_prompt_in_chunks_and_a_text_gone_on_with(decoder, writer):
    inputs = prompt("left")
    expected = texts(decoder, inputs)
    assert torch.equal(texts(writer, inputs, prefill_chunk_size=4), expected)
    cache = DynamicCache()
    first = writer.generate(**inputs, max_new_tokens=5, pad_token_id=0, past_key_values=cache)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 5, dtype=torch.long)], dim=1)
    more = writer.generate(first, attention_mask=mask, max_new_tokens=7, pad_token_id=0, past_key_values=cache)
    assert torch.equal(more, expected)


def test_what_a_step_takes_is_the_memory_that_the_last_one_gave(writer, monkeypatch):
    """No tensor of the cache is copied between two steps."""
    graph, taken = writer.graphs["model"], []
    session = graph.session

    class Watched:
        def io_binding(self):
            binding = session.io_binding()
            bind = binding.bind_input
            binding.bind_input = lambda *given: taken.append((given[0], given[-1])) or bind(*given)
            return binding

        def __getattr__(self, name):
            return getattr(session, name)

    cache = writer(prompt("left")["input_ids"]).past_key_values
    given = {f"past_key_values.{i}.key": layer.keys.data_ptr() for i, layer in enumerate(cache.layers)}
    monkeypatch.setattr(graph, "session", Watched())
    writer(torch.tensor([[5], [6]]), past_key_values=cache)
    assert given.items() <= dict(taken).items()


def test_frequencies_that_change_while_writing(tmp_path):
    """All tokens go through again then, as in torch."""
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
    model = ALL_FAMILIES["decoder"].make(
        "text", "sdpa", rope_parameters=rope, max_position_embeddings=14, num_hidden_layers=1
    )
    exported = HfxExportedModelForCausalLM.from_pretrained(export_model(model, "onnx", tmp_path / "out").folder)
    inputs = {name: value[:1] for name, value in prompt("left").items()}
    assert torch.equal(texts(exported, inputs), texts(model, inputs))


def test_in_a_pipeline(decoder, writer):
    tokenizer = make_tokenizer()
    options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    expected = pipeline("text-generation", model=copy.deepcopy(decoder), tokenizer=tokenizer, device="cpu")(
        "a b c", **options
    )
    assert pipeline("text-generation", model=writer, tokenizer=tokenizer, device="cpu")("a b c", **options) == expected


def test_saved_and_opened_again(writer, tmp_path):
    writer.save_pretrained(tmp_path / "again")
    again = HfxExportedModelForCausalLM.from_pretrained(tmp_path / "again", verify=True)
    assert torch.equal(texts(again, prompt("left")), texts(writer, prompt("left")))
    with pytest.raises(ValueError, match=r"exists already"):
        writer.save_pretrained(tmp_path / "again")


def test_from_the_hub(writer, exported_decoder, monkeypatch, tmp_path):
    with reachable_hub(monkeypatch):
        push(exported_decoder, "me/exported", tell=lambda line: None)
        pulled = HfxExportedModelForCausalLM.from_pretrained("me/exported", cache_dir=tmp_path)
    assert torch.equal(texts(pulled, prompt("left")), texts(writer, prompt("left")))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda model: texts(model, prompt("left"), cache_implementation="static"),
            r"has a cache that grows; leave it out",
        ),
        (
            lambda model: model(torch.ones(1, 2, dtype=torch.long), labels=torch.ones(1, 2)),
            r"^labels: the exported graph",
        ),
        (
            lambda model: model(torch.ones(2, 2, dtype=torch.long), torch.ones(2, 3)),
            r"attention_mask: shape \(2, 3\) must",
        ),
        (
            lambda model: model(torch.ones(1, 1, dtype=torch.long), past_key_values=DynamicCache(config=model.config)),
            r"cache holds every token; give DynamicCache\(\)",
        ),
        (lambda model: model.to("meta"), r"to\(meta\): an export runs on the CPU"),
        (lambda model: model.train(), r"can't be trained"),
        (lambda model: model.push_to_hub("me/it"), r"push_to_hub: push the folder"),
    ],
)
def test_what_an_export_cannot_do(writer, act, message):
    with pytest.raises(ValueError, match=message):
        act(writer)


def test_padding_in_what_is_written_is_refused(exported_seq2seq):
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"decoder_attention_mask: the exported decoder reads no padding"):
        exported_seq2seq(ids, decoder_input_ids=ids, decoder_attention_mask=torch.tensor([[0, 1, 1]]))
