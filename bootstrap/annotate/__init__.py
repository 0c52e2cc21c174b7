"""A strong chat model as annotator: a first training set for a team that has no Aligner yet."""

from __future__ import annotations

from bootstrap.annotate.rows import AnnotationReport, Estimate
from bootstrap.annotate.running import annotate, estimate, journal_of
from bootstrap.annotate.spending import Budget, Prices, Tokens

__all__ = ["AnnotationReport", "Budget", "Estimate", "Prices", "Tokens", "annotate", "estimate", "journal_of"]
