from hf_ext.objectives.causal import CausalCollator
from hf_ext.objectives.fill_in_the_middle import FillInTheMiddleCollator
from hf_ext.objectives.masked import MaskedCollator
from hf_ext.objectives.prefix import PrefixLMCollator
from hf_ext.objectives.sequence_to_sequence import SequenceToSequenceCollator
from hf_ext.objectives.span_corruption import SpanCorruptionCollator


__all__ = [
    "CausalCollator",
    "FillInTheMiddleCollator",
    "MaskedCollator",
    "PrefixLMCollator",
    "SequenceToSequenceCollator",
    "SpanCorruptionCollator",
]
