"""Greedy search and sampling over a static cache: one compiled step a token, and little else.

Between two steps transformers' loop makes the step's mask, copies the tokens, and lengthens mask and positions by a column.
Over a static cache all of this is known before the first token: the mask is as wide as the cache, and the step itself finds
its row of it; a position is the one before plus one. What is chosen from the logits is chosen as there, with the same
processors and criteria in the same order, so the tokens are the same.

B rows, T tokens of the prompt, S tokens that the cache has room for, V vocabulary.
"""

from dataclasses import replace

import torch
from torch.nn import functional as F
from transformers import CompileConfig
from transformers.generation import GenerateDecoderOnlyOutput


# what a prompt may come with; anything else changes its length with every token, and transformers' loop knows how
KNOWN_ARGUMENTS = {"past_key_values", "attention_mask", "position_ids", "use_cache", "logits_to_keep"}
# attention implementations that take a mask as wide as the cache
TAKE_WIDE_MASKS = ("eager", "sdpa", "hfx_tiled")


def compiles_here(compile_config: CompileConfig | None, device: torch.device) -> CompileConfig | None:
    """The same for a CPU too, which transformers compiles for only where a private field says so."""
    if compile_config is None or device.type != "cpu":
        return compile_config
    compile_config = replace(compile_config)
    compile_config._compile_all_devices = True
    return compile_config


def check_compiled(generation_config, is_compiled: bool) -> None:
    """Raises ValueError where a `compile_config` would be left aside."""
    if generation_config.compile_config is None or generation_config.disable_compile or is_compiled:
        return
    if generation_config.cache_implementation == "static":
        raise ValueError(
            "compile_config: these weights, quantized or held in several places, can't be compiled; leave it out"
        )
    raise ValueError(
        f"compile_config: needs a static cache, cache_implementation={generation_config.cache_implementation!r} is none; "
        "set cache_implementation='static', or leave it out"
    )


def why_not_static(model, generation_config, model_kwargs: dict, synced_gpus: bool) -> str | None:
    """What of a call makes its steps differ by more than a token, in a few words; None where nothing does."""
    if synced_gpus:
        return "ranks wait for one another"
    if model.config.is_encoder_decoder:
        return "two caches"
    if generation_config.is_assistant:
        return "drafts are taken back"
    if generation_config.output_attentions or generation_config.output_hidden_states:
        return "states of every step are asked for"
    if any(rope.depends_on_length for rope in model.base_model.rotary_emb.values()):
        return "rotary frequencies change with the length"
    if model.config._attn_implementation not in TAKE_WIDE_MASKS:
        return f"the masks of {model.config._attn_implementation}"
    further = {name for name, value in model_kwargs.items() if value is not None} - KNOWN_ARGUMENTS
    return f"further arguments: {', '.join(sorted(further))}" if further else None


def sample_over_static_cache(
    model, input_ids, logits_processor, stopping_criteria, generation_config, streamer=None, **model_kwargs
) -> GenerateDecoderOnlyOutput | torch.LongTensor:
    """As `GenerationMixin._sample`, with the same arguments and results, for what `why_not_static` has nothing against.

    Args:
        input_ids: (B, T). model_kwargs: a `StaticCache` as past_key_values, position_ids (B, T), a 2-D mask or None.
    """
    keeps = {
        name: [] for name in ("scores", "logits") if generation_config.return_dict_in_generate
        and getattr(generation_config, f"output_{name}")
    }  # fmt: skip
    ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    unfinished = torch.ones(input_ids.shape[0], dtype=torch.long, device=input_ids.device)
    cache = model_kwargs["past_key_values"]
    outputs = model._prefill(input_ids, generation_config, model_kwargs)
    step = model.get_compiled_call(generation_config.compile_config)
    mask = model_kwargs.get("attention_mask")
    if mask is not None:  # tokens to come are seen once they are there: the causal order hides them till then
        layers = getattr(cache, "self_attention_cache", cache).layers
        longest = max(layer.max_cache_len for layer in layers)
        columns = max(longest, generation_config.max_length - 1)  # a cache of windows alone is shorter
        mask = F.pad(mask, (0, max(0, columns - mask.shape[1])), value=1)
    positions = model_kwargs["position_ids"][:, -1:]
    while True:
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)  # (B, V)
        del outputs
        scores = logits_processor(input_ids, logits)
        for name, values in (("scores", scores), ("logits", logits)):
            if name in keeps:
                keeps[name].append(values)
        if generation_config.do_sample:
            chosen = torch.multinomial(F.softmax(scores, dim=-1), num_samples=1).squeeze(1)
        else:
            chosen = torch.argmax(scores, dim=-1)
        if ends:
            chosen = chosen * unfinished + generation_config._pad_token_tensor.to(chosen.device) * (1 - unfinished)
        input_ids = torch.cat((input_ids, chosen[:, None]), dim=-1)
        if streamer is not None:
            streamer.put(chosen.cpu())
        unfinished = unfinished & ~stopping_criteria(input_ids, tuple(keeps["scores"]) if "scores" in keeps else None)
        if not bool(unfinished.any()):
            break
        positions = positions + 1
        outputs = step(
            input_ids=chosen[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return input_ids
    kept = {name: tuple(values) for name, values in keeps.items()}
    return GenerateDecoderOnlyOutput(sequences=input_ids, past_key_values=cache, **kept)
