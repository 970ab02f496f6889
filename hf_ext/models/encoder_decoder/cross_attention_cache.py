"""The two caches of a decoder that reads an encoder: its own keys and values, which grow, and the encoder's, made once."""

import copy

from transformers import DynamicCache, EncoderDecoderCache, StaticCache


def with_whole_cross_cache(cache: EncoderDecoderCache, config, encoder_length: int) -> EncoderDecoderCache:
    """The same with an empty cache for all `encoder_length` tokens of the encoder, whatever the decoder's layers see.

    transformers gives the cross-attention the decoder's layer types, and a sliding layer's cache would cut the source.
    """
    if not isinstance(cache.cross_attention_cache, StaticCache):
        return EncoderDecoderCache(cache.self_attention_cache, DynamicCache())
    whole = copy.deepcopy(config)
    whole.sliding_window = None
    whole.layer_types = ["full_attention"] * whole.num_hidden_layers
    return EncoderDecoderCache(cache.self_attention_cache, StaticCache(config=whole, max_cache_len=encoder_length))


def check_cross_attention_cache(cache, encoder_length: int) -> None:
    """Whether a cache can hold, or holds, the keys of `encoder_length` tokens.

    Raises:
        ValueError: it is one for the decoder alone; or it cuts the encoder's keys, or holds another source's.
    """
    if cache is None:
        return
    if not isinstance(cache, EncoderDecoderCache):
        raise ValueError(
            f"past_key_values: {type(cache).__name__} must be an EncoderDecoderCache; give "
            "EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache())"
        )
    cross = cache.cross_attention_cache
    if any(cross.is_sliding):
        raise ValueError(
            "past_key_values: its cross-attention cache has sliding layers, which would cut the encoder's keys; make it "
            "without the config, DynamicCache()"
        )
    filled = cache.is_updated.get(0) and cross.layers[0].keys.shape[-2]
    if filled and filled != encoder_length:
        raise ValueError(
            f"past_key_values: holds {filled} of the encoder's keys, encoder_outputs {encoder_length}; give the outputs "
            "that it was filled from"
        )
