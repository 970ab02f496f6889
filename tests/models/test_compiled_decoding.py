"""Compiled steps over a static cache: the tokens of the plain loop, whatever the model, the padding and the criteria.

The compiler's front end alone runs here, `backend="eager"`: it is what could take a number for a constant. That the code
inductor writes gives the same tokens is the last test.
"""

import pytest
import torch
from models.decoder_grid import VARIANTS, attentions_for, make_model, tokens
from models.encoder_decoder_grid import make_model as make_encoder_decoder
from transformers import CompileConfig, DynamicCache, StaticCache
from transformers.generation import MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from hf_ext.models import checked_generation


NEW_TOKENS = 8
GREEDY = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
# the short form, of steps that differ; `make test-full` runs all
SHORT = (
    "grouped, QK-norm by head",
    "local and global, softcaps, unit offset norms, scaled embeddings",
    "sliding window, reordered norm, biases",
    "attention sinks, sliding window",
    "ALiBi, norm after the embeddings",
    "latent, queries too, interleaved",
    "longrope",
)
CHANGING = ("dynamic", "longrope")


def compiled(**options) -> dict:
    return {"cache_implementation": "static", "compile_config": CompileConfig(backend="eager", mode=None, **options)}


def prompts() -> dict:
    """Rows of 5 and 9 tokens, padded on the left."""
    short, long = tokens(B=1, T=5), tokens(B=1, T=9, seed=1)
    ids = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], dim=1), long])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.fixture
def preparations(monkeypatch) -> list:
    """A list that grows with every step that transformers' loop prepares, the prompt's included."""
    torch._dynamo.reset()
    made, prepare = [], checked_generation.CheckedGenerationMixin.prepare_inputs_for_generation

    def counted(self, *args, **kwargs):
        made.append(1)
        return prepare(self, *args, **kwargs)

    monkeypatch.setattr(checked_generation.CheckedGenerationMixin, "prepare_inputs_for_generation", counted)
    return made


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.full]) for name in VARIANTS]
)
def test_same_tokens_of_a_padded_batch(name, preparations):
    options = VARIANTS[name]
    model, batch = make_model(attentions_for(options)[-2], **options), prompts()
    expected = model.generate(**batch, use_cache=False, **GREEDY)
    preparations.clear()
    got = model.generate(**batch, **compiled(), **GREEDY)
    assert torch.equal(got, expected)
    assert len(preparations) == (NEW_TOKENS if name.startswith(CHANGING) else 1)


class Received(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], 0

    def put(self, value):
        self.tokens.append(value.clone())

    def end(self):
        self.ended += 1


class Until(StoppingCriteria):
    """Ends a row at a length, and all at another."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([input_ids.shape[1] >= 12, input_ids.shape[1] >= 15])


def a_token_of(text: torch.Tensor, row: int, place: int) -> int:
    return int(text[row, place])


@pytest.mark.parametrize("attention", ["eager", "sdpa", "hfx_tiled"])
def test_the_same_choices_and_ends(attention, preparations):
    """Each way to choose or to stop, on steps that are compiled once."""
    model, batch = make_model(attention, num_key_value_heads=2), prompts()
    text = model.generate(**batch, **GREEDY)
    eos = [a_token_of(text, 0, 11), a_token_of(text, 1, 13)]  # rows that end one after the other, before the last step
    ways = {
        "an end for each row": {**GREEDY, "eos_token_id": eos, "pad_token_id": 0},
        "the least length": {**GREEDY, "eos_token_id": eos, "min_new_tokens": 6},
        "sampling": {**GREEDY, "do_sample": True, "top_k": 20, "temperature": 0.8},
        "penalties": {**GREEDY, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        "own criteria": {**GREEDY, "stopping_criteria": StoppingCriteriaList([Until()])},
        "two of each row": {**GREEDY, "do_sample": True, "num_return_sequences": 2},
        "one token": {**GREEDY, "max_new_tokens": 1},
        "chunks": {**GREEDY, "prefill_chunk_size": 4},
    }
    for name, options in ways.items():
        results = []
        for how in ({}, compiled()):
            torch.manual_seed(7)
            preparations.clear()
            rows = {k: v[:1] for k, v in batch.items()} if name == "one token" else batch
            out = model.generate(
                **rows, **how, **options, return_dict_in_generate=True, output_scores=True, output_logits=True
            )
            results.append(out)
            if how and "prefill_chunk_size" not in options:
                assert len(preparations) == 1, name
        plain, ours = results
        assert torch.equal(plain.sequences, ours.sequences), name
        for kept in ("scores", "logits"):
            assert len(plain[kept]) == len(ours[kept]), name
            for a, b in zip(plain[kept], ours[kept], strict=True):
                torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
        assert isinstance(ours.past_key_values, StaticCache)
    ended = model.generate(**batch, **compiled(), **ways["an end for each row"])
    assert ended.shape[1] < text.shape[1]
    assert (ended[0, 12:] == 0).all()


def test_a_streamer_gets_every_token(preparations):
    model, ids = make_model(), tokens(B=1, T=5)
    received = []
    for how in ({}, compiled()):
        streamer = Received()
        text = model.generate(ids, streamer=streamer, **how, **GREEDY)
        assert streamer.ended == 1
        assert torch.equal(torch.cat([part.flatten() for part in streamer.tokens]), text[0])
        received.append(len(streamer.tokens))
    assert received == [1 + NEW_TOKENS] * 2


def test_going_on_from_a_static_cache(preparations):
    model, ids = make_model(), tokens(B=2, T=9)
    expected = model.generate(ids, **GREEDY)
    cache = StaticCache(config=model.config, max_cache_len=40)
    first = model.generate(
        ids, past_key_values=cache, compile_config=compiled()["compile_config"], **{**GREEDY, "max_new_tokens": 3}
    )
    assert torch.equal(first, expected[:, :12])
    more = model.generate(
        first, past_key_values=cache, compile_config=compiled()["compile_config"], **{**GREEDY, "max_new_tokens": 5}
    )
    assert torch.equal(more, expected)


def test_steps_are_compiled_once(preparations):
    """Not once a token, nor once a call."""
    model, batch = make_model("sdpa"), prompts()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    options = {
        "cache_implementation": "static",
        "compile_config": CompileConfig(backend=backend, mode=None, fullgraph=True),
    }
    for _ in range(2):
        model.generate(**batch, **options, **GREEDY)
    assert len(graphs) == 1
    ops = {str(node.target) for node in graphs[0].graph.nodes}
    assert any("scaled_dot_product_attention" in op for op in ops)


def test_what_can_not_be_compiled_is_refused(preparations):
    model, ids = make_model(), tokens()
    for cache in ({}, {"past_key_values": DynamicCache(config=model.config)}, {"use_cache": False}):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared as text
            model.generate(ids, compile_config=CompileConfig(), **cache, **GREEDY)
        assert "compile_config: needs a static cache" in str(caught.value)
        assert "\n" not in str(caught.value)
    expected = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, compile_config=CompileConfig(), disable_compile=True, **GREEDY), expected)
    own = compiled()
    assert torch.equal(model.generate(ids, **own, **GREEDY), expected)
    assert own["compile_config"]._compile_all_devices is None  # left as it was


def test_arguments_that_grow_are_transformers_own(preparations):
    """A prompt of embeddings: its steps are prepared, and compiled all the same."""
    model, ids = make_model(), tokens(T=6)
    embeds = model.get_input_embeddings()(ids)
    expected = model.generate(ids, **GREEDY)[:, 6:]
    preparations.clear()
    assert torch.equal(model.generate(inputs_embeds=embeds, **compiled(), **GREEDY), expected)
    assert len(preparations) == NEW_TOKENS
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


def test_encoder_decoders_are_compiled_by_transformers_loop(preparations):
    model = make_encoder_decoder()
    source = tokens(T=9) % 60 + 1
    expected = model.generate(source, **GREEDY)
    assert torch.equal(model.generate(source, **compiled(), **GREEDY), expected)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


def test_a_length_is_a_criterion_too(preparations):
    model, ids = make_model(), tokens(T=6)
    options = {**GREEDY, "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(9)])}
    assert model.generate(ids, **compiled(), **options).shape[1] == 9


@pytest.mark.heavy
def test_what_inductor_writes_gives_the_same_tokens():
    """One row as sums over the rows of each matrix, six rows as products."""
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    model = make_model("sdpa", num_hidden_layers=1)
    for rows in (1, 6):
        ids = tokens(B=rows, T=5)
        expected = model.generate(ids, **GREEDY)
        options = {"cache_implementation": "static", "compile_config": CompileConfig(mode="default", fullgraph=True)}
        got, code = run_and_get_code(lambda ids=ids, options=options: model.generate(ids, **options, **GREEDY))
        assert torch.equal(got, expected)
        assert any("extern_kernels.mm" in part for part in code) == (rows > 1)
