"""What goes to the Hub with a model."""

from hf_ext.hub.model_card import RunFacts, model_card


__all__ = ["RunFacts", "model_card"]
