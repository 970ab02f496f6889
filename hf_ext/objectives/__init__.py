from hf_ext.objectives.causal import CausalCollator


__all__ = ["CausalCollator"]
