"""What is measured on held-out prompts: how much is right, with and without the Aligner, and what correcting costs.

Win rates alone hide what a corrector breaks, so every one of them stands beside how much was changed, how large the
edits are and how much of what was right survived.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from aligner_chain.exchange import Correction, Edit, Exchange, edits_between
from bootstrap.evaluation import PairedChange, paired_interval, wilson
from bootstrap.judges import Judge, fully_right, judged

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Answers and what became of them, judged. `minimal` holds exact minimal repairs, where there are such."""

    exchanges: tuple[Exchange, ...]
    texts: tuple[str, ...]
    alone: tuple[Mapping[str, bool], ...]
    aligned: tuple[Mapping[str, bool], ...]
    minimal: tuple[str, ...] | None = None
    garbled: tuple[bool, ...] | None = None

    @cached_property
    def right_alone(self) -> list[bool]:
        return fully_right(self.alone)

    @cached_property
    def right_aligned(self) -> list[bool]:
        return fully_right(self.aligned)

    @property
    def changed(self) -> list[bool]:
        return [text != exchange.answer for text, exchange in zip(self.texts, self.exchanges, strict=True)]

    @property
    def repaired(self) -> list[bool]:
        """Fully right, and nothing lost of what was right before (where minimal repairs are known)."""
        if self.minimal is None:
            return self.right_aligned
        rows = zip(self.right_aligned, self.exchanges, self.minimal, self.texts, strict=True)
        return [right and _kept(exchange.answer, minimal, text)[0] == 0 for right, exchange, minimal, text in rows]

    def figures(self) -> dict[str, Any]:
        """The measures as shares between 0 and 1, ready for JSON."""
        wrong_left = [not (right or moved) for right, moved in zip(self.right_alone, self.changed, strict=True)]
        figures = {
            "n": len(self.exchanges),
            "upstream_alone": share_figures(self.alone),
            "with_aligner": share_figures(self.aligned),
            "changed_share": share(self.changed),
            "wrong_left_share": share(wrong_left),
        }
        if self.garbled is not None:
            figures["garbled_share"] = share(self.garbled)
        return figures | (self._edit_figures() if self.minimal is not None else {})

    def _edit_figures(self) -> dict[str, Any]:
        ratios, lost, total = [], 0, 0
        rows = zip(self.exchanges, self.minimal or (), self.texts, self.changed, strict=True)
        for exchange, minimal, text, changed in rows:
            least = edit_size(exchange.answer, minimal)
            if changed and least:
                ratios.append(edit_size(exchange.answer, text) / least)
                missing, unchanged = _kept(exchange.answer, minimal, text)
                lost, total = lost + missing, total + unchanged
        return {
            "edit_ratio_vs_minimal": statistics.median(ratios) if ratios else None,
            "unchanged_sentences_kept_share": 1 - lost / total if total else None,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Yardstick:
    """How to judge and measure. `minimal` repairs exactly and is used for measuring only, never for training."""

    judge: Judge
    minimal: Callable[[Sequence[Exchange]], Sequence[str]] | None = None
    garbled: Callable[[str], bool] | None = None

    def measure(self, exchanges: Sequence[Exchange], texts: Sequence[str]) -> Measured:
        """Judges `exchanges` as they were answered and with `texts` in the place of their answers."""
        served = [replace(exchange, answer=text) for exchange, text in zip(exchanges, texts, strict=True)]
        garbled = self.garbled
        return Measured(
            exchanges=tuple(exchanges),
            texts=tuple(texts),
            alone=tuple(judged(self.judge, exchanges)),
            aligned=tuple(judged(self.judge, served)),
            minimal=tuple(self.minimal(exchanges)) if self.minimal else None,
            garbled=tuple(garbled(exchange.answer) for exchange in exchanges) if garbled else None,
        )

    def measure_corrections(self, corrections: Sequence[Correction]) -> Measured:
        return self.measure([one.exchange for one in corrections], [one.text for one in corrections])


def share(flags: Sequence[bool]) -> float:
    """The share of true ones; 0 for none at all."""
    return sum(flags) / len(flags) if flags else 0.0


def share_figures(verdicts: Sequence[Mapping[str, bool]]) -> dict[str, Any]:
    """The share of fully right answers with its Wilson interval, and the share that meets each criterion."""
    right = fully_right(verdicts)
    names = list(verdicts[0]) if verdicts else []
    criteria = {name: share([verdict[name] for verdict in verdicts]) for name in names}
    return {"fully_right": share(right), "interval": list(wilson(sum(right), len(right))), "criteria": criteria}


def criteria_changes(
    before: Sequence[Mapping[str, bool]], after: Sequence[Mapping[str, bool]]
) -> dict[str, PairedChange]:
    """How each criterion changed between two sets of answers to the same prompts."""
    return {
        name: paired_interval([one[name] for one in before], [one[name] for one in after])
        for name in (before[0] if before else ())
    }


def edit_size(before: str, after: str) -> int:
    """How many words and marks change: for each edit the longer of its two sides."""
    return sum(max(len(edit.before.split()), len(edit.after.split()), 1) for edit in _word_edits(before, after))


def _word_edits(before: str, after: str) -> list[Edit]:
    return [edit for edit in edits_between(before, after) if edit.before.strip() or edit.after.strip()]


def _kept(answer: str, minimal: str, text: str) -> tuple[int, int]:
    """Of the answer's sentences that need no change: how many `text` lost, and how many there are."""
    needed = set(_SENTENCE_END.split(minimal))
    unchanged = [sentence for sentence in _SENTENCE_END.split(answer) if sentence in needed]
    served = set(_SENTENCE_END.split(text))
    return sum(sentence not in served for sentence in unchanged), len(unchanged)
