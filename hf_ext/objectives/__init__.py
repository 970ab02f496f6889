from hf_ext.objectives.causal import CausalCollator
from hf_ext.objectives.denoising import DenoisingCollator
from hf_ext.objectives.fill_in_the_middle import FillInTheMiddleCollator
from hf_ext.objectives.masked import MaskedCollator
from hf_ext.objectives.prefix import PrefixLMCollator
from hf_ext.objectives.sequence_to_sequence import SequenceToSequenceCollator
from hf_ext.objectives.span_corruption import SpanCorruptionCollator
from hf_ext.objectives.ul2 import UL2_DENOISERS, Denoiser, MixtureOfDenoisersCollator


__all__ = [
    "UL2_DENOISERS",
    "CausalCollator",
    "Denoiser",
    "DenoisingCollator",
    "FillInTheMiddleCollator",
    "MaskedCollator",
    "MixtureOfDenoisersCollator",
    "PrefixLMCollator",
    "SequenceToSequenceCollator",
    "SpanCorruptionCollator",
]
