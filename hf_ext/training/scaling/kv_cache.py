"""Bytes of the keys and values that generation keeps, of any configuration: those of the cache that its model returns."""

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from hf_ext.training.scaling.fake_model import check_sizes, fake_batch, fake_model, fake_tensors, find_head


@dataclass(frozen=True)
class CacheSize:
    """Bytes of one sequence. own: of the text that is generated. growth: what a further token adds to it, nothing in layers
    whose window is full. source: of an encoder-decoder's source, or 0."""

    own: int
    growth: int
    source: int


def cache_size(
    config: PretrainedConfig,
    length: int,
    *,
    source_length: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    head: str | None = None,
) -> CacheSize:
    """The cache after `length` tokens.

    Args:
        source_length: tokens that an encoder-decoder has read; default `length`. dtype: of the model.

    Raises:
        ValueError: one line, for lengths out of range and models that keep none.
    """
    check_sizes(config, length=length, source_length=source_length)
    head = find_head(config, head)
    if head not in ("causal", "sequence_to_sequence"):
        raise ValueError(f"head={head!r}: {type(config).__name__} generates nothing and keeps no keys and values")
    sizes = []
    with fake_tensors():
        model = fake_model(config, head=head, dtype=dtype).eval()
        for tokens in (length, length + 1):
            batch = fake_batch(model, head, 1, tokens, source_length or length, labels=False) | {"use_cache": True}
            with torch.no_grad():
                cache = model(**batch).past_key_values
            own = getattr(cache, "self_attention_cache", cache)
            sizes.append((_bytes_of(own), _bytes_of(getattr(cache, "cross_attention_cache", None))))
    (own, source), (longer, _) = sizes
    return CacheSize(own, longer - own, source)


def _bytes_of(cache) -> int:
    """Of all tensors that the layers of a cache hold."""
    tensors = [
        value
        for layer in getattr(cache, "layers", ())
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    ]
    storages = {tensor.untyped_storage()._cdata: tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in storages.values())
