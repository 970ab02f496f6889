"""What a training run will take, and how large its model should be: parameters, FLOPs, memory, scaling laws."""

from hf_ext.training.scaling.flops import FlopCount, count_flops
from hf_ext.training.scaling.kv_cache import CacheSize, cache_size
from hf_ext.training.scaling.memory import MemoryEstimate, estimate_memory
from hf_ext.training.scaling.parameters import ParameterCount, count_parameters


__all__ = [
    "CacheSize",
    "FlopCount",
    "MemoryEstimate",
    "ParameterCount",
    "cache_size",
    "count_flops",
    "count_parameters",
    "estimate_memory",
]
