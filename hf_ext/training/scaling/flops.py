"""Floating-point operations of any configuration: its matrix products, counted from their shapes as they are called.

A product of an (N, I) with an (I, O) matrix costs 2 N I O operations; norms, activations and softmax are left out, as usual.
Attention is counted by what its mask shows: H heads, D dims of a query, Dv of a value, P pairs of a query and a key that it
sees cost 2 P H (D + Dv). Over T tokens P is T² to both sides, T (T + 1) / 2 under a causal mask, and less in a window.

Training costs three times the forward pass: the backward pass has two products of the same size for each of the forward's,
for both factors' gradients. Checkpointing computes the blocks once more. The rule of thumb, 6 N a token, is the same without
the pairs: Kaplan et al. 2020, arXiv 2001.08361, sec. 2.1. What flash attention computes a second time in its backward pass
isn't counted: these are model FLOPs, over which MFU is defined; Chowdhery et al. 2022, arXiv 2204.02311, appendix B.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_ext.training.scaling.fake_model import (
    check_sizes,
    fake_batch,
    fake_model,
    fake_tensors,
    find_head,
    model_class_of,
)
from hf_ext.training.scaling.parameters import PARTS, ParameterCount, count_parameters_of, parts_of_modules


# besides the parts of the parameters: scores and weighted values, not the matrices around them
ATTENTION_PAIRS = "attention_pairs"

BACKWARD = 2  # products in the backward pass for each one of the forward pass


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention on a row: query_length and key_length in tokens, flops a pair that is visible, whether it is
    causal, window in tokens to a side or None."""

    query_length: int
    key_length: int
    flops_per_pair: int
    is_causal: bool
    window: int | None

    @property
    def flops(self) -> int:
        pairs = visible_pairs(self.query_length, self.key_length, is_causal=self.is_causal, window=self.window)
        return self.flops_per_pair * pairs

    @property
    def flops_of_next(self) -> int:
        """Of one more query, which sees all keys that there are and its own where the call is causal."""
        seen = self.key_length + (1 if self.is_causal else 0)
        return self.flops_per_pair * (seen if self.window is None else min(seen, self.window))


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one row.

    Attributes:
        forward: part -> FLOPs of a forward pass in training; the parts of `parameters.PARTS`, and "attention_pairs".
        decoding: FLOPs of the next token after this row, keys and values of all before it being cached; None for encoders.
        tokens: of the row, source and target together.
        blocks: the part of the forward pass that lies in blocks, which checkpointing computes again.
        parameters: of the model.
    """

    forward: dict[str, int]
    decoding: int | None
    tokens: int
    blocks: int
    parameters: ParameterCount

    @property
    def forward_per_token(self) -> float:
        return sum(self.forward.values()) / self.tokens

    @property
    def training_per_token(self) -> float:
        """Forward and backward."""
        return (1 + BACKWARD) * self.forward_per_token

    @property
    def checkpointed_per_token(self) -> float:
        """What is computed where the blocks' activations aren't kept."""
        return self.training_per_token + self.blocks / self.tokens

    @property
    def rule_per_token(self) -> float:
        """6 N, N parameters that a token is multiplied by."""
        return 6 * self.parameters.multiplied


def count_flops(
    config: PretrainedConfig,
    length: int,
    *,
    source_length: int | None = None,
    head: str | None = None,
    scored: float = 1.0,
) -> FlopCount:
    """FLOPs of a row of `length` tokens.

    Attention is counted by what it shows wherever a model calls it through transformers' interface or torch's own function;
    of one that multiplies its scores itself, such as BLOOM's, all pairs are counted, as it computes them.

    Args:
        length: T. source_length: of an encoder-decoder, the encoder's; default T.
        head: see `fake_model.find_head`.
        scored: share of the tokens that the language-modelling head is computed for, such as 0.15 of a masked language model
            which skips the others.

    Raises:
        ValueError: one line, for lengths and shares out of range.
    """
    check_sizes(config, length=length, source_length=source_length)
    if not 0 < scored <= 1:
        raise ValueError(f"scored={scored}: must be above 0 and at most 1, a share of the tokens")
    head = find_head(config, head)
    ours = type(config).__module__.startswith("hf_ext.")
    # hfx_tiled takes values of another size than queries, where sdpa would have them filled up with zeros; torch's own
    # grouped products want bf16, which changes no shape
    model_class = model_class_of(config, head)
    attention = (
        "hfx_tiled" if model_class._supports_attention_backend else "sdpa" if model_class._supports_sdpa else None
    )
    options = {"attn_implementation": attention} | ({} if ours else {"dtype": torch.bfloat16})
    with fake_tensors():
        model = fake_model(config, head=head, **options).train()
        batch = fake_batch(model, head, 1, length, source_length, labels=True)
        counter = ProductCounter(model)
        with counter, torch.no_grad(), counted_attention(counter):
            model(**batch)
        parameters = count_parameters_of(model)
    tokens = sum(ids.shape[1] for name, ids in batch.items() if name.endswith("input_ids"))
    forward = {part: counter.by_part[part] for part in (*PARTS, ATTENTION_PAIRS) if counter.by_part[part]}
    if "head" in forward:
        forward["head"] = round(scored * forward["head"])
    decoding = None
    if head in ("causal", "sequence_to_sequence"):
        # each product is as large for every token, but those of the encoder, and of the further tokens, aren't repeated
        dense = sum(counter.decoding.values()) // length
        decoding = dense + sum(call.flops_of_next for call in counter.decoding_calls)
    return FlopCount(forward, decoding, tokens, counter.in_blocks, parameters)


def visible_pairs(query_length: int, key_length: int, *, is_causal: bool, window: int | None = None) -> int:
    """Pairs of a query and a key that it sees.

    Args:
        is_causal: a query sees no later key; both lengths are then the same.
        window: keys that a query sees to a side, its own position included, as `ops/mask_rule.py` has it.
    """
    if not is_causal and window is None:
        return query_length * key_length
    reach = key_length if window is None else min(window, key_length)
    # query t sees min(t + 1, reach) keys up to its own
    to_the_left = reach * (reach + 1) // 2 + (query_length - reach) * reach
    return to_the_left if is_causal else 2 * to_the_left - query_length


class ProductCounter(TorchDispatchMode):
    """Adds up the matrix products of a model that runs within: `by_part`, `in_blocks`, and `decoding`, what a further token
    of the text that is generated repeats.

    Attributes:
        decoding_calls: attention calls of the stack that generates.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.by_part, self.decoding = defaultdict(int), defaultdict(int)
        self.in_blocks = 0
        self.decoding_calls: list[AttentionCall] = []
        self.model = model
        self.modules = dict(model.named_modules())
        self.parts = parts_of_modules(model)
        self.within: list[str] = []
        self.handles = []

    def __enter__(self):
        output = self.model.get_output_embeddings()
        for name, module in self.modules.items():
            # a hook on the head would have its loss computed in another way
            if name and module is not output:
                self.handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.within.append(name)))
                self.handles.append(module.register_forward_hook(lambda *_: self.within.pop() and None))
        return super().__enter__()

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        flops = product_flops(function, args, kwargs, output)
        if flops:
            self.add(flops)
        if "scaled_dot_product" in function.name():  # of a model that calls torch's attention itself
            query, key, value = args[:3]
            causal = kwargs.get("is_causal", any(a is True for a in args[3:6]))
            self.add_attention(attention_call(query, key, value, is_causal=causal, window=None), query.shape[0])
        return output

    def add(self, flops: int, part: str | None = None) -> None:
        where = self.within[-1] if self.within else ""
        part = part or (self.parts[where] if where else "head")
        part = "other" if part == "norms" else part
        again = not where and self.by_part[part]  # the head, for tokens further on, which generation does without
        self.by_part[part] += flops
        if self._generates() and part != ATTENTION_PAIRS and not again:
            self.decoding[part] += flops
        if self._is_in_block():
            self.in_blocks += flops

    def add_attention(self, call: AttentionCall, batch_size: int) -> None:
        self.add(batch_size * call.flops, ATTENTION_PAIRS)
        if self._generates():
            self.decoding_calls.append(call)

    def _generates(self) -> bool:
        """Whether what runs is run again for each further token: neither the encoder nor what predicts tokens ahead."""
        names = {part for where in self.within for part in where.split(".")}
        source_keys = {"cross_attn.k_proj", "cross_attn.v_proj", "encoder_attn.k_proj", "encoder_attn.v_proj"}
        repeated = not any(where.endswith(tuple(source_keys)) for where in self.within)
        return repeated and not names & {"encoder", "mtp"}

    def _is_in_block(self) -> bool:
        return any(isinstance(self.modules.get(where.rpartition(".")[0]), nn.ModuleList) for where in self.within)


def product_flops(function, args, kwargs, output) -> int:
    """FLOPs of one operator of torch or of ours; 0 for what multiplies no matrices."""
    name = function.name() if hasattr(function, "name") else str(function)
    if "grouped_m" in name:  # ours, and torch's and transformers' grouped_mm: rows times a matrix of their group
        return 2 * output.numel() * args[0].shape[-1]
    if name.endswith("::linear_cross_entropy"):
        hidden_states, weight = args[:2]
        return 2 * hidden_states.numel() * weight.shape[0]
    packet = getattr(function, "_overloadpacket", None)
    if packet not in flop_registry:
        return 0
    return int(flop_registry[packet](*args, **kwargs, out_val=output))


def attention_call(query, key, value, *, is_causal: bool, window: int | None) -> AttentionCall:
    """What attention of (B, H, T, D), (B, K, S, D) and (B, K, S, Dv) costs a row."""
    _, H, T, D = query.shape
    return AttentionCall(T, key.shape[2], 2 * H * (D + value.shape[-1]), is_causal, window)


@contextmanager
def counted_attention(counter: ProductCounter) -> Iterator[None]:
    """Attention is counted by what it shows rather than computed, wherever transformers' interface is asked for it."""
    before = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)

    def count(module, query, key, value, attention_mask, *args, sliding_window=None, **kwargs):
        (B, H, T, _), S = query.shape, key.shape[2]
        is_causal = kwargs.get("is_causal")
        if is_causal is None:
            is_causal = T == S and bool(getattr(module, "is_causal", False))
        call = attention_call(query, key, value, is_causal=is_causal, window=sliding_window)
        counter.add_attention(call, B)
        return query.new_empty(B, T, H, value.shape[-1]), None

    try:
        for name in list(ALL_ATTENTION_FUNCTIONS):
            ALL_ATTENTION_FUNCTIONS[name] = count
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS._local_mapping.clear()
        ALL_ATTENTION_FUNCTIONS._local_mapping.update(before)
