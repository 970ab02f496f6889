"""The model families."""

from hf_ext.models.decoder import HfxDecoderConfig, HfxDecoderForCausalLM, HfxDecoderModel


__all__ = ["HfxDecoderConfig", "HfxDecoderForCausalLM", "HfxDecoderModel"]
