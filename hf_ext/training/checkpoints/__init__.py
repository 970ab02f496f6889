"""Checkpoints that are complete or not there, and resumes that are exact or refused."""

from hf_ext.training.checkpoints.checkpointed_trainer import CheckpointedTrainer
from hf_ext.training.checkpoints.fingerprint import CHANGEABLE, difference, model_fields, plain
from hf_ext.training.checkpoints.folders import CheckpointError, checkpoints_in
from hf_ext.training.checkpoints.manifest import BrokenCheckpointError, Manifest, read_manifest, verify
from hf_ext.training.checkpoints.resume import newest_verified
from hf_ext.training.checkpoints.stop_request import STOPPED_EXIT_CODE, StoppedBySignal


__all__ = [
    "CHANGEABLE",
    "STOPPED_EXIT_CODE",
    "BrokenCheckpointError",
    "CheckpointError",
    "CheckpointedTrainer",
    "Manifest",
    "StoppedBySignal",
    "checkpoints_in",
    "difference",
    "model_fields",
    "newest_verified",
    "plain",
    "read_manifest",
    "verify",
]
