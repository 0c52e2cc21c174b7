"""Ten thousand hostile exchanges for each template, over tokenizers of five families: no escape and no crash.

    python -m pytest -m soak -s tests/soak/test_injection.py

Takes ten to twenty minutes on one core and prints what was in the cases.
"""

from __future__ import annotations

import random
import sys
from dataclasses import asdict

import pytest
from injection import OWN, Structure
from vocabularies import LOSSLESS, VOCABULARIES

from aligner_chain.templates import template_names

pytestmark = pytest.mark.soak

CASES = 10_000
"""For each template, shared out among the tokenizers."""


@pytest.mark.parametrize("name", template_names())
def test_no_text_plays_the_frame(name: str) -> None:
    done = 0
    for vocabulary in VOCABULARIES:
        structure = Structure(name, vocabulary(), lossless=vocabulary in LOSSLESS)
        for number in range(CASES // len(VOCABULARIES)):
            structure.case(random.Random(f"soak, {name}, {vocabulary.__name__}, {number}"))
        counts = structure.counts
        sys.stdout.write(f"\n{name}, {vocabulary.__name__}: {asdict(counts)}")  # seen with -s
        assert counts.corrections == 2 * counts.cases
        assert min(counts.spelt, counts.read, counts.unreadable) > counts.cases // 20
        assert counts.delimiters == 0 if name == OWN else counts.delimiters > counts.cases // 10
        assert counts.refused == counts.delimiters
        done += counts.cases
    assert done == CASES
