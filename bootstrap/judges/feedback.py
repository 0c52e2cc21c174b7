"""Judges made of what people said: thumbs, reviews and edits in a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aligner_chain.exchange import Exchange
from bootstrap.judges.preference import FIRST, SECOND, Preference, compared, paired
from bootstrap.records import Kind, Record, Split, normalised_prompt

if TYPE_CHECKING:
    from bootstrap.store import CorrectionStore

WRITTEN, GOOD, BAD = 2, 1, -1
"""What people said of an answer: one of them wrote it, they called it good, or bad."""
_WORDS = {WRITTEN: "a person wrote the {}", GOOD: "people call the {} good", BAD: "people call the {} bad"}


@dataclass(frozen=True, kw_only=True, slots=True)
class HumanLabel:
    """What people said of the answer that was served: whether it is `right`, and by which kind of feedback.

    `exchange` holds the served text as its answer. An edit says that it was right only where it changed nothing.
    """

    correction_id: str
    exchange: Exchange
    right: bool
    said_by: Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class HumanPreference:
    """Which of two answers to `prompt` people prefer; `score` is that of the second, 1.0 or 0.0."""

    correction_id: str
    prompt: Exchange
    first: str
    second: str
    score: float


def human_labels(store: CorrectionStore, split: Split | None = None) -> list[HumanLabel]:
    """One label for each record that people decided about: by the newest edit or review, else by the newest thumb."""
    labels = (_label(record) for record in store.records(split, feedback=True))
    return [label for label in labels if label is not None]


def human_preferences(store: CorrectionStore, split: Split | None = None) -> list[HumanPreference]:
    """One preference for each record where people's feedback compares two texts, in order of ids.

    An edit is better than the text that was served, or than the answer where it agrees with the served one; an accepted
    correction is better than the answer. Which of the two comes first depends on the record's id and on nothing else, so
    that a judge who always says "the second" agrees with half of them.
    """
    found = (_preferred(record) for record in store.records(split, feedback=True))
    return [preference for preference in found if preference is not None]


class Opinions:
    """What people said of answers to prompts, by the texts: also of a text that another model writes again later.

    Of an edited answer the edit is `WRITTEN` and the texts it replaced are `BAD`; an accepted correction is `GOOD` and
    the answer it replaced `BAD`; a rejected one is `BAD`. A thumb makes the served text `GOOD` or `BAD`. Where several
    speak of one text, edits and reviews outrank thumbs, and then the newest counts. Prompts are the same where turns
    (but for case and white space) and passages are.

    Args:
        store: read once, now; what is said later is not seen.
        split: of which split; None for all.
    """

    def __init__(self, store: CorrectionStore, split: Split | None = None) -> None:
        self._known: dict[bytes, tuple[int, int, int]] = {}  # key -> decided, when in ms, level
        for record in store.records(split, feedback=True):
            for text, opinion in _opinions(record):
                key = _key(record.correction.exchange, text)
                self._known[key] = max(opinion, self._known.get(key, opinion))

    def of(self, prompt: Exchange, text: str) -> int | None:
        """`WRITTEN`, `GOOD`, `BAD`, or None where nobody said anything of this text as an answer to this prompt."""
        opinion = self._known.get(_key(prompt, text))
        return None if opinion is None else opinion[2]


class FeedbackJudge:
    """A judge of preference that knows what people said, and nothing else.

    What a person wrote is better than what people call good, and that is better than what they call bad. Where nothing
    was said of one of the two texts it is a tie.

    Args:
        store: read once, now.
        split: of which split; None for all.
    """

    def __init__(self, store: CorrectionStore, split: Split | None = None) -> None:
        self._opinions = Opinions(store, split)

    def prefer(self, prompts: Sequence[Exchange], first: Sequence[str], second: Sequence[str]) -> list[Preference]:
        """As `PreferenceJudge.prefer`."""
        return [self._preference(*row) for row in paired(prompts, first, second)]

    def _preference(self, prompt: Exchange, first: str, second: str) -> Preference:
        one, other = self._opinions.of(prompt, first), self._opinions.of(prompt, second)
        if one is None or other is None:
            return Preference(score=0.5, reason="nobody compared them")
        reason = f"{_WORDS[one].format('first')}, {_WORDS[other].format('second')}"
        return Preference(score=compared(one, other), reason=reason)


def _opinions(record: Record) -> Iterator[tuple[str, tuple[int, int, int]]]:
    served, decision, thumb = record.correction.text, record.decision, record.latest("thumb")
    if decision is not None:
        best = _best(record)
        if best is None:
            yield served, (1, decision.at_ms, BAD)
            return
        yield best, (1, decision.at_ms, WRITTEN if decision.kind == "edit" else GOOD)
        for other in {served, record.correction.exchange.answer} - {best}:
            yield other, (1, decision.at_ms, BAD)
    elif thumb is not None:
        yield served, (0, thumb.at_ms, GOOD if thumb.value else BAD)


def _best(record: Record) -> str | None:
    """The text that the newest edit or review calls the best; None where there is none."""
    decision = record.decision
    if decision is None:
        return None
    if decision.kind == "edit":
        return str(decision.value)
    return record.correction.text if decision.value else None


def _label(record: Record) -> HumanLabel | None:
    said = record.decision or record.latest("thumb")
    if said is None:
        return None
    served = record.correction.text
    return HumanLabel(
        correction_id=record.correction.id,
        exchange=replace(record.correction.exchange, answer=served),
        right=said.value == served if said.kind == "edit" else bool(said.value),
        said_by=said.kind,
    )


def _preferred(record: Record) -> HumanPreference | None:
    served, answer, best = record.correction.text, record.correction.exchange.answer, _best(record)
    worse = next((text for text in (served, answer) if text != best), None)
    if best is None or worse is None:
        return None
    ident = record.correction.id
    comes_first = hashlib.sha256(ident.encode()).digest()[0] % 2 == 0
    first, second = (best, worse) if comes_first else (worse, best)
    return HumanPreference(
        correction_id=ident,
        prompt=record.correction.exchange,
        first=first,
        second=second,
        score=FIRST if comes_first else SECOND,
    )


def _key(prompt: Exchange, text: str) -> bytes:
    content = json.dumps([normalised_prompt(prompt.turns), prompt.context, text])
    return hashlib.sha256(content.encode()).digest()
