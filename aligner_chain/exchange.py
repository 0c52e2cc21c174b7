"""The values that flow through every room: what was asked, what was answered, what became of it.

All are frozen and keyword-only and hold tuples, so that one value can be shared by threads, kept in a
queue and compared in a test. A stage adds to a value by making a new one (`dataclasses.replace`).
"""

from __future__ import annotations

import difflib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal
from uuid import UUID

Outcome = Literal["approved", "corrected", "kept", "skipped", "failed"]
Format = Literal["text", "terminal", "markdown", "html"]

_LONG = 1000
"""Words and marks from which on a text is compared by its sentences."""
_VERY_LONG = 2000
"""Sentences from which on not even these are told apart."""
_MANY_PAIRS = 50_000
"""Pairs of equal words from which on only seldom ones are looked for: a thousand words of prose have a tenth of that."""
_ENDS = frozenset(".!?:;。！？：；")
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Characters of scripts without spaces between words (Thai to Khmer, Japanese, Chinese): each is a piece of its own."""
_PIECES = re.compile(rf"\s+|[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message of a conversation as plain text.

    `role` is "system", "user", "assistant" or "tool".
    """

    role: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """What was asked and the answer that was given to it.

    `turns` holds the conversation before the answer, oldest first; the last turn is normally the user's
    question. `context` holds retrieved passages. `upstream` names the model that answered, as
    `name@version`. The other fields join a record to what belongs to it later: feedback (`message_id`,
    `run_id`), deletion (`subject`, `tenant`) and the held-out split (`split_key`).
    """

    turns: tuple[Turn, ...]
    answer: str
    context: tuple[str, ...] = ()
    upstream: str | None = None
    message_id: str | None = None
    run_id: str | None = None
    subject: str | None = None
    tenant: str | None = None
    split_key: str | None = None

    @classmethod
    def of(cls, question: str, answer: str, *, context: tuple[str, ...] = ()) -> Exchange:
        """An exchange of one question and one answer. Raises `TypeError` for what is no text."""
        for name, text in (("question", question), ("answer", answer)):
            if not isinstance(text, str):
                raise TypeError(f"The {name} of an Exchange is a text, and this is a {type(text).__name__}.")
        return cls(turns=(Turn(role="user", text=question),), answer=answer, context=context)

    @property
    def question(self) -> str:
        """The text of the last user turn, or "" where there is none."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "user"), "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """One change: characters `start` to `end` of the answer, `before`, became `after`."""

    start: int
    end: int
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenScore:
    """Characters `start` to `end` of the answer, and the log-probability (nats) with which the Aligner leaves them.

    It holds behind the prompt and all of the answer before, unchanged.
    """

    start: int
    end: int
    logprob: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a check found in a correction, and what was done about it.

    `check` is its name. `action` is "warn" (noted), "restore" (the original's text put back) or "keep" (the original
    served). `message` holds no text of the answer, so that it can be logged. `start` and `end` are the characters of
    the answer that it is about, None where it is about all of it or about what the correction added.
    """

    check: str
    action: Literal["warn", "restore", "keep"]
    message: str
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a correction cost. `forwards` counts runs of the model that this request took part in."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    forwards: int = 0
    accepted_draft_tokens: int = 0
    latency_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """What became of one exchange. There is exactly one for every answer with a known question.

    `text` is what to serve: the correction, or the original where nothing was changed or the correction failed. `outcome` is
    `approved` (nothing to change), `corrected`, `kept` (a correction was written and refused: the original is served, or
    the refusal text of the policy), `skipped` (not eligible) or `failed` (an error, held in `error`). `scores` are between
    0 and 1 (`keep`: the probability of the Aligner's verdict that the answer needs nothing; `leave`: that it leaves the answer
    as it is, by its verdict or by writing it again), and `thresholds` hold under the same names what they were held against. `criteria` are the ones that the Aligner says were broken. `aligner` names the model as
    `name@version`. `tokens` are those of the answer that the decoder drafted before it knew of a change: none where a verdict
    to keep came first, or an engine drafts nothing. `findings` are what the checks found in the correction that was written.
    `pair` is the promoted pair that the Aligner was taken from, None where it was named; `mismatched` says that the answer is of
    another upstream than that pair's.
    """

    exchange: Exchange
    text: str
    outcome: Outcome
    reason: str = ""
    edits: tuple[Edit, ...] = ()
    scores: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    thresholds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}), compare=False)
    criteria: tuple[str, ...] = ()
    tokens: tuple[TokenScore, ...] = field(default=(), compare=False, repr=False)
    aligner: str = ""
    template: str = ""
    findings: tuple[Finding, ...] = ()
    pair: str | None = field(default=None, compare=False)
    mismatched: bool = field(default=False, compare=False)
    usage: Usage = field(default_factory=Usage)
    error: Exception | None = field(default=None, compare=False)
    id: str = field(default_factory=lambda: str(uuid7()))

    @property
    def changed(self) -> bool:
        """Whether the served text differs from the answer."""
        return self.text != self.exchange.answer

    def refused(self, reason: str) -> Correction:
        """The correction as it is served where a check did not let it pass: `kept`, with the original's text."""
        return replace(self, outcome="kept", reason=reason, text=self.exchange.answer, edits=(), criteria=())

    def raise_for_failure(self) -> Correction:
        """Raises the error of a failed correction; returns every other one."""
        if self.error is not None:
            raise self.error
        return self

    def diff(self, format: Format = "text") -> str:  # noqa: A002  (the word that everybody looks for)
        """The answer with each change in place; changes within one phrase are shown as one.

        `format` is "text" (`[-before-]{+after+}`), "terminal" (struck red and underlined green), "markdown"
        (`~~before~~ **after**`) or "html" (`<del>` and `<ins>`). In all but "text" nothing in the texts can play a mark,
        a tag or an escape sequence.
        """
        from aligner_chain.showing import diff

        return diff(self, format)

    def explain(self, format: Format = "text") -> str:  # noqa: A002
        """What became of the answer and why, for a person.

        As "text" it is one line: the outcome, why, and how much changed. The other formats, those of `diff`, go on with
        scores, criteria, findings of checks, what the Aligner doubted and left, usage, versions and the diff.
        """
        from aligner_chain.explaining import explain

        return explain(self, format)

    def summary(self, *, keep_original: bool = False) -> dict[str, Any]:
        """What the metadata of an answer tells of its correction; the original's text only with `keep_original`."""
        told: dict[str, Any] = {
            "outcome": self.outcome,
            "reason": self.reason,
            "correction_id": self.id,
            "aligner": self.aligner,
            "edits": len(self.edits),
        }
        if keep_original:
            told |= {"original": self.exchange.answer, "edit_list": [asdict(edit) for edit in self.edits]}
        return told


def edits_between(before: str, after: str) -> tuple[Edit, ...]:
    """The changes that turn `before` into `after`, by words, in order and without overlap; by characters where no spaces part words.

    In a long text they are looked for sentence by sentence, and a passage of which little is left is one change.
    """
    old, new = _PIECES.findall(before), _PIECES.findall(after)
    starts = _offsets(old)
    return tuple(
        Edit(start=starts[i], end=starts[k], before="".join(old[i:k]), after="".join(new[j:m]))
        for i, k, j, m in _changes(old, new)
    )


Change = tuple[int, int, int, int]
"""Pieces of the old text from the first number to before the second, and in their place those of the new one."""


def _changes(old: Sequence[str], new: Sequence[str]) -> Iterator[Change]:
    if max(len(old), len(new)) <= _LONG:
        yield from _differing(old, new)
        return
    ends, others = _sentence_ends(old), _sentence_ends(new)
    sentences, other_sentences = (
        ["".join(pieces[start:end]) for start, end in pairwise(borders)]
        for pieces, borders in ((old, ends), (new, others))
    )
    for a, b, c, d in _differing(sentences, other_sentences):
        i, k, j, m = ends[a], ends[b], others[c], others[d]
        # To align two passages of thousands of words takes minutes where they repeat themselves.
        if max(k - i, m - j) > _LONG:
            yield i, k, j, m
        else:
            yield from ((i + s, i + t, j + u, j + v) for s, t, u, v in _differing(old[i:k], new[j:m]))


def _differing(old: Sequence[str], new: Sequence[str]) -> list[Change]:
    if max(len(old), len(new)) > _VERY_LONG:
        return _middle(old, new)
    # Without guesses at what is junk: in an answer the same word is often right many times. But one that goes round in
    # circles would take seconds.
    guess = max(len(old), len(new)) > _LONG or _equal_pairs(old, new) > _MANY_PAIRS
    opcodes = difflib.SequenceMatcher(None, old, new, autojunk=guess).get_opcodes()
    return [(i, k, j, m) for tag, i, k, j, m in opcodes if tag != "equal"]


def _equal_pairs(old: Sequence[str], new: Sequence[str]) -> int:
    counts = Counter(piece for piece in old if not piece.isspace())
    return sum(counts[piece] for piece in new)


def _middle(old: Sequence[str], new: Sequence[str]) -> list[Change]:
    """All between what both begin and end with."""
    shorter = min(len(old), len(new))
    head = next((at for at in range(shorter) if old[at] != new[at]), shorter)
    tail = next((at for at in range(shorter - head) if old[-1 - at] != new[-1 - at]), shorter - head)
    change = head, len(old) - tail, head, len(new) - tail
    return [change] if old != new else []


def _sentence_ends(pieces: Sequence[str]) -> list[int]:
    ends = [at + 1 for at, piece in enumerate(pieces[:-1]) if piece in _ENDS or "\n" in piece]
    return [0, *ends, len(pieces)] if pieces else [0]


def uuid7() -> UUID:
    """A time-ordered UUID (RFC 9562, version 7): 48 bits of milliseconds, then 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def _offsets(pieces: list[str]) -> list[int]:
    offsets = [0]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    return offsets
