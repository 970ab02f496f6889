from hf_ext.metrics.answers import extract_answer, majority_answer
from hf_ext.metrics.loading import METRICS, compute, load_metric


__all__ = ["METRICS", "compute", "extract_answer", "load_metric", "majority_answer"]
