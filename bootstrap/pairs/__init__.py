"""Training data from corrections: preference pairs for the upstream, question-answer-correction triples for the Aligner.

What is left out is counted by its reason, and a manifest pins down what is left. `bootstrap.pairs.exports` writes files of
rows for trainers, `bootstrap.pairs.imports` takes others' files into a store.
"""

from __future__ import annotations

from bootstrap.pairs.building import Kept, PairMaker, Stream, build_pairs, collect_pairs, human_triples, stream
from bootstrap.pairs.filters import FILTERS, Filters
from bootstrap.pairs.reading import read_pairs, read_triples, write_pairs, write_triples
from bootstrap.pairs.triples import VouchedTriples, triples
from bootstrap.pairs.values import Manifest, Pair, PairSet, Source, Triple, TripleSet, manifest

__all__ = [
    "FILTERS",
    "Filters",
    "Kept",
    "Manifest",
    "Pair",
    "PairMaker",
    "PairSet",
    "Source",
    "Stream",
    "Triple",
    "TripleSet",
    "VouchedTriples",
    "build_pairs",
    "collect_pairs",
    "human_triples",
    "manifest",
    "read_pairs",
    "read_triples",
    "stream",
    "triples",
    "write_pairs",
    "write_triples",
]
