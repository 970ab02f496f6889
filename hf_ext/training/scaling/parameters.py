"""Parameters of any configuration by what they are part of, counted on a model without memory."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from transformers import PretrainedConfig

from hf_ext.training.scaling.fake_model import fake_model, fake_tensors


PARTS = ("embeddings", "attention", "feed_forward", "experts", "router", "norms", "head", "other")

# how configurations name the number of experts that a token is sent to
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")


@dataclass(frozen=True)
class ParameterCount:
    """by_part: part -> parameters, tied ones once. experts_per_token, num_experts: of a mixture, or 0. is_tied: whether the
    output matrix is the embedding. lookup: of the embeddings, those that are looked up and never multiplied by."""

    by_part: dict[str, int]
    experts_per_token: int
    num_experts: int
    is_tied: bool
    lookup: int

    @cached_property
    def total(self) -> int:
        return sum(self.by_part.values())

    @cached_property
    def active(self) -> int:
        """Those that one token meets: all but the experts that it isn't sent to."""
        return self.total - self.idle_experts

    @property
    def idle_experts(self) -> int:
        experts = self.by_part.get("experts", 0)
        return experts - experts * self.experts_per_token // self.num_experts if experts else 0

    @property
    def multiplied(self) -> int:
        """N of the rule "6 N training FLOPs a token": active parameters that a token is multiplied by, so the embedding only
        where it is the output matrix too; Kaplan et al. 2020, arXiv 2001.08361, table 1 and sec. 2.1."""
        return self.active - self.lookup


def count_parameters(config: PretrainedConfig, *, head: str | None = None) -> ParameterCount:
    """Parameters of a model of `config`; nothing is allocated.

    Args:
        head: see `fake_model.find_head`.
    """
    with fake_tensors():
        return count_parameters_of(fake_model(config, head=head))


def count_parameters_of(model: nn.Module) -> ParameterCount:
    """Parameters of a model, part by part, tied ones once."""
    parts, by_part, num_experts, lookup = parts_of_modules(model), defaultdict(int), 0, 0
    seen, output = set(), model.get_output_embeddings()
    output_weight = getattr(output, "weight", None)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if parameter in seen:
                continue
            seen.add(parameter)
            part = parts[name]
            by_part[part] += parameter.numel()
            if part == "embeddings" and parameter is not output_weight:
                lookup += parameter.numel()
            if part == "experts" and parameter.ndim == 3:
                num_experts = parameter.shape[0]
    per_token = next((k for k in (getattr(model.config, n, None) for n in EXPERTS_PER_TOKEN) if k), 0)
    if num_experts == 0:  # a list of modules
        num_experts = getattr(model.config, "num_experts", None) or getattr(model.config, "num_local_experts", 0)
    if by_part.get("experts") and not (per_token and num_experts):
        raise ValueError(
            f"config: {type(model.config).__name__} has experts, but none of {', '.join(EXPERTS_PER_TOKEN)} says how many a "
            "token is sent to; set num_experts_per_tok"
        )
    is_tied = output_weight is not None and output_weight is getattr(model.get_input_embeddings(), "weight", None)
    ordered = {part: by_part[part] for part in PARTS if by_part[part]}
    return ParameterCount(ordered, per_token if num_experts else 0, num_experts, is_tied, lookup)


def parts_of_modules(model: nn.Module) -> dict[str, str]:
    """Name of each module -> its part, one of `PARTS`.

    The innermost module that says what it is decides, by its class or its name; what says nothing is a feed-forward inside
    the blocks, that is the items of the body's lists, and belongs to the head outside of the body.
    """
    body = getattr(model, "base_model_prefix", "") or ""
    has_body = hasattr(model, body)
    blocks = {f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    parts = {}
    for name, module in model.named_modules():
        above = parts.get(name.rpartition(".")[0], "other")
        if name in ("", body):
            parts[name] = "other"
            continue
        own = _part_by_name(name, module)
        if own == "norms" or (own is not None and above not in ("attention", "experts", "embeddings")):
            parts[name] = own
        elif above != "other":
            parts[name] = above
        elif has_body and not f"{name}.".startswith(f"{body}."):
            parts[name] = "head"
        else:
            parts[name] = "feed_forward" if _is_inside_a_block(name, blocks) else "other"
    return parts


def _part_by_name(name: str, module: nn.Module) -> str | None:
    kind, last = type(module).__name__.lower(), name.rpartition(".")[2].lower()
    if "norm" in kind and not list(module.children()):  # blocks are named after their norms too
        return "norms"
    if isinstance(module, nn.Embedding) or "embedding" in kind or "embed" in last:
        return "embeddings"
    if "router" in kind:
        return "router"
    if "expert" in last and "shared" not in last:
        return "experts"
    # transformers' mixtures that name their router a gate: a single matrix beside the experts
    if last == "gate" and not list(module.children()):
        return "router"
    return "attention" if "attention" in kind or last in ("self_attn", "attn") else None


def _is_inside_a_block(name: str, lists: set[str]) -> bool:
    """Whether a module lies beneath an item of a list, or is one."""
    return any(name.startswith(prefix) for prefix in lists)
