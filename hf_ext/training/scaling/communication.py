"""Bytes that a rank sends in one optimizer step, engine by engine.

Collectives are counted as their ring algorithms: of n ranks each sends (n - 1) / n of what is reduced and scattered, or
gathered, and twice that of what is reduced for all. With W bytes of weights, G of gradients, p forward passes a step:

    DDP         one all-reduce of the gradients                            (n - 1) / n · 2 G
    ZeRO 1      gradients reduced and scattered, weights gathered          (n - 1) / n · (G + W)
    ZeRO 2      the same, the gradients of each pass                       (n - 1) / n · (p G + W)
    ZeRO 3      weights gathered twice a pass, gradients scattered         (n - 1) / n · p (2 W + G)

ZeRO: Rajbhandari et al. 2019, arXiv 1910.02054, sec. 7. FSDP2 is ZeRO 3. Tensor parallelism reduces the output of each
attention and each feed-forward for all, forward, and their inputs' gradients, backward: Shoeybi et al. 2019,
arXiv 1909.08053, sec. 3; and so it does with the embedding, and gathers the logits. Ulysses sends queries, keys, values and
outputs from all to all: Jacobs et al. 2023, arXiv 2309.14509, sec. 3.
"""

from transformers import PretrainedConfig


def ring_share(ranks: int) -> float:
    """(n - 1) / n: what a rank sends of each byte."""
    return (ranks - 1) / ranks


def data_parallel_bytes(weights: int, gradients: int, *, zero_stage: int, ranks: int, passes: int = 1) -> int:
    """Bytes a rank sends a step for weights and gradients.

    Args:
        weights, gradients: bytes of all of them, not of a shard.
        passes: forward passes a step (accumulation); engines other than ZeRO 2 and 3 send once.
    """
    sent = {
        0: 2 * gradients,
        1: gradients + weights,
        2: passes * gradients + weights,
        3: passes * (2 * weights + gradients),
    }
    return round(ring_share(ranks) * sent[zero_stage])


def tensor_parallel_bytes(
    config: PretrainedConfig, *, rows: int, length: int, ranks: int, itemsize: int, checkpointing: bool = False
) -> int:
    """Bytes a rank sends for `rows` rows of `length` tokens, forward and backward.

    Args:
        itemsize: bytes of an activation. checkpointing: the blocks' forward pass, and what it sends, is done once more.
    """
    reduced = blocks_reduced(config) * (3 if checkpointing else 2)
    ends = 2  # the embedding's output, forward; the gradient of what goes into the output matrix, backward
    output = rows * length * config.hidden_size * itemsize
    logits = rows * length * config.vocab_size * itemsize
    return round(ring_share(ranks) * (2 * output * (reduced + ends) + logits))


def blocks_reduced(config: PretrainedConfig) -> int:
    """Attentions and feed-forwards of a model, whose outputs tensor parallelism adds up over the ranks."""
    if config.is_encoder_decoder:
        return 2 * config.encoder_layers + 3 * config.num_hidden_layers
    return 2 * config.num_hidden_layers


def sequence_parallel_bytes(config: PretrainedConfig, *, rows: int, length: int, ranks: int, itemsize: int) -> int:
    """Bytes a rank sends in Ulysses' exchanges for `rows` rows of `length` tokens, each split over `ranks`; a decoder's."""
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads  # queries and outputs, keys and values
    own = rows * (length // ranks) * heads * head_dim * itemsize
    return round(2 * ring_share(ranks) * own * config.num_hidden_layers)
