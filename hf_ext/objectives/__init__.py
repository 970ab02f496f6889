from hf_ext.objectives.causal import CausalCollator
from hf_ext.objectives.prefix import PrefixLMCollator


__all__ = ["CausalCollator", "PrefixLMCollator"]
