"""Training in a process of its own, so that a crash or too little memory is a failed job and not a dead caller.

    run_job -> accelerate launch -> bootstrap.training.worker -> checkpoints, figures.json, the model's folder

A job that was stopped goes on from its newest whole checkpoint when it is run again, and refuses where its data, base,
settings or versions are others than when it began.
"""

from __future__ import annotations

from bootstrap.training.configurations import CONFIGURATIONS, configuration
from bootstrap.training.jobs import TrainingJob
from bootstrap.training.launching import Launcher, join_job, run_job
from bootstrap.training.plans import PLAN, as_json, claim, fingerprint, versions

__all__ = [
    "CONFIGURATIONS",
    "PLAN",
    "Launcher",
    "TrainingJob",
    "as_json",
    "claim",
    "configuration",
    "fingerprint",
    "join_job",
    "run_job",
    "versions",
]
