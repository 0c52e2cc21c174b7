"""The rows that an annotator is asked about, what asking costs at most, and where an annotation stands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from aligner_chain.engines.chat import INSTRUCTIONS
from aligner_chain.exchange import Exchange
from bootstrap.annotate.journal import Entry, key_of
from bootstrap.annotate.spending import Tokens
from bootstrap.judges import Annotation
from bootstrap.pairs import Triple
from bootstrap.records import is_unicode

BYTES_PER_TOKEN = 4
FRAME_TOKENS = 12
"""What names and brackets around a text of the prompt come to, about."""

Stop = Literal["", "budget", "failures", "interrupted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationReport:
    """Where an annotation stands. Rows are those of the input; tokens and money are those of all runs into the output.

    `corrected` and `kept_as_right` rows are in the output. `refused` counts by check the others that were paid for, where
    several checks may have refused one row (`refused_rows`). `failed` rows of this run are tried again by the next one;
    `skipped` rows are never paid for, by reason; `left` ones were not reached. `untold_replies` are those whose provider told
    no tokens: theirs are estimated. `money` is None without prices. `stopped` says what ended the run before its end.
    """

    rows: int = 0
    corrected: int = 0
    kept_as_right: int = 0
    refused_rows: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    failed: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    left: int = 0
    tokens: Tokens = field(default_factory=Tokens)
    untold_replies: int = 0
    money: float | None = None
    stopped: Stop = ""
    last_error: str = ""

    @property
    def written(self) -> int:
        """Rows of the output."""
        return self.corrected + self.kept_as_right

    @property
    def keep_share(self) -> float | None:
        """The share of the output whose answers are right; None where it is empty."""
        return self.kept_as_right / self.written if self.written else None

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "written": self.written, "keep_share": self.keep_share}


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What is left to pay for, before a call is made: at most about so many tokens, as if every answer were rewritten."""

    rows: int
    done: int
    skipped: int
    calls: int
    tokens: Tokens
    money: float | None

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Row:
    """An exchange with its key in the journal, about what asking costs, and why it is not asked about ("": it is)."""

    exchange: Exchange
    key: str
    estimate: Tokens
    obstacle: str


def row_of(exchange: Exchange, criteria: Sequence[str]) -> Row:
    """The row of an exchange; its estimate is as if the answer were rewritten whole."""
    texts = [turn.text for turn in exchange.turns] + list(exchange.context)
    read = sum(map(_about_tokens, (INSTRUCTIONS, *criteria, *texts, exchange.answer)))
    frame = FRAME_TOKENS * (len(texts) + 3)
    return Row(
        exchange,
        key_of(exchange, criteria),
        Tokens(read=read + frame, written=_about_tokens(exchange.answer) + FRAME_TOKENS),
        _obstacle(exchange, texts),
    )


def _about_tokens(text: str) -> int:
    return math.ceil(len(text.encode(errors="surrogatepass")) / BYTES_PER_TOKEN)


def _obstacle(exchange: Exchange, texts: Iterable[str]) -> str:
    if not exchange.question.strip():
        return "no question"
    if not exchange.answer.strip():
        return "empty answer"
    return "" if all(map(is_unicode, (*texts, exchange.answer))) else "not unicode"


def pending(rows: Iterable[Row], done: Mapping[str, Entry]) -> list[Row]:
    """Each exchange once that is to be asked about."""
    return list({row.key: row for row in rows if not row.obstacle and row.key not in done}.values())


def outcome_of(row: Row, done: Mapping[str, Entry], failed: set[str]) -> str:
    """What became of it: "corrected", "approved", "kept", "failed" in this run, "skipped", or "left" for later."""
    if row.obstacle:
        return "skipped"
    return done[row.key].outcome if row.key in done else "failed" if row.key in failed else "left"


def passed(row: Row, done: Mapping[str, Entry]) -> bool:
    """Whether the row belongs into the output."""
    return not row.obstacle and row.key in done and done[row.key].outcome in ("corrected", "approved")


def triple_of(row: Row, entry: Entry) -> Triple:
    """The row of the output."""
    text = row.exchange.answer if entry.text is None else entry.text
    return Annotation(text=text).triple(row.exchange, "annotated")
