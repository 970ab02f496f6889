"""Decoders: causal language models."""

from hf_ext.models.decoder.configuration_decoder import HfxDecoderConfig
from hf_ext.models.decoder.modeling_decoder import HfxDecoderForCausalLM, HfxDecoderModel, HfxDecoderPreTrainedModel


__all__ = ["HfxDecoderConfig", "HfxDecoderForCausalLM", "HfxDecoderModel", "HfxDecoderPreTrainedModel"]
