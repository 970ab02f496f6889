"""What a training run will take, and how large its model should be: parameters, FLOPs, memory, scaling laws."""

from hf_ext.training.scaling.compute_optimal import LAWS, Plan, budget, compute_optimal, plans, propose_decoder
from hf_ext.training.scaling.flops import FlopCount, count_flops
from hf_ext.training.scaling.kv_cache import CacheSize, cache_size
from hf_ext.training.scaling.memory import MemoryEstimate, estimate_memory
from hf_ext.training.scaling.parameters import ParameterCount, count_parameters
from hf_ext.training.scaling.runs import read_runs
from hf_ext.training.scaling.scaling_law import FittedLaw, Run, ScalingLaw, fit_scaling_law


__all__ = [
    "LAWS",
    "CacheSize",
    "FittedLaw",
    "FlopCount",
    "MemoryEstimate",
    "ParameterCount",
    "Plan",
    "Run",
    "ScalingLaw",
    "budget",
    "cache_size",
    "compute_optimal",
    "count_flops",
    "count_parameters",
    "estimate_memory",
    "fit_scaling_law",
    "plans",
    "propose_decoder",
    "read_runs",
]
