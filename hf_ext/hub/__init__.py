"""What a model is saved and pushed with: its code, cards, the way to the Hub and back, the forms other libraries load."""

from hf_ext.hub.bundle import bundle_of, check_bundle, write_bundle
from hf_ext.hub.model_card import RunFacts, model_card
from hf_ext.hub.pull import PulledFolder, pull
from hf_ext.hub.push import push
from hf_ext.hub.repository import HubError
from hf_ext.hub.sentence_embeddings import save_for_sentence_transformers


__all__ = [
    "HubError",
    "PulledFolder",
    "RunFacts",
    "bundle_of",
    "check_bundle",
    "model_card",
    "pull",
    "push",
    "save_for_sentence_transformers",
    "write_bundle",
]
