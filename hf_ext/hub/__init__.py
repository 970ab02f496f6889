"""What a model is saved and pushed with: its code, cards, and the forms that other libraries load."""

from hf_ext.hub.bundle import bundle_of, check_bundle, write_bundle
from hf_ext.hub.model_card import RunFacts, model_card
from hf_ext.hub.sentence_embeddings import save_for_sentence_transformers


__all__ = ["RunFacts", "bundle_of", "check_bundle", "model_card", "save_for_sentence_transformers", "write_bundle"]
