"""Takes personal data out of corrections, with the same placeholder in question, passages, answer and correction.

    from bootstrap.redact import Redactor

    redact = Redactor()
    clean = redact(correction)

`patterns` finds by rules, `presidio` by a model; whatever found them, `placeholders` replaces the values in all texts
of a correction together.
"""

from __future__ import annotations

from bootstrap.redact.builtin import BUILT_IN
from bootstrap.redact.patterns import Pattern, Span
from bootstrap.redact.presidio import presidio_detector
from bootstrap.redact.redactor import Redactor

__all__ = ["BUILT_IN", "Pattern", "Redactor", "Span", "presidio_detector"]
