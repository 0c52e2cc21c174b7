"""Inspectors: which answers need correcting, and by which criterion. Pre-inspection saves the Aligner's work.

The Aligner is one itself (`Aligner.inspect`). `CallableInspector` takes a function, `ClassifierInspector` a classifier of
Hugging Face, which pays before a remote Aligner, `TrainedInspector` learns a small one from labelled answers, and
`AllInspectors` asks several. A score means little before a threshold was calibrated for it: `aligner_chain.calibration`.
"""

from __future__ import annotations

from aligner_chain.inspectors.base import AllInspectors, CallableInspector, Inspector, passes, scored, worst
from aligner_chain.inspectors.classifier import ClassifierInspector
from aligner_chain.inspectors.trained import TrainedInspector

__all__ = [
    "AllInspectors",
    "CallableInspector",
    "ClassifierInspector",
    "Inspector",
    "TrainedInspector",
    "passes",
    "scored",
    "worst",
]
