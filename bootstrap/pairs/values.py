"""The rows of training data: preference pairs for the upstream, question-answer-correction triples for the Aligner."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, TypedDict

from aligner_chain.exchange import Exchange, Turn
from aligner_chain.thoughts import behind

Source = Literal["gold", "human", "verified", "annotated"]
"""Who vouches for a row: a gold set, a person, an independent verifier or an annotator. Never the Aligner itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A preference of the upstream's training: to `turns`, `chosen` (the correction) is better than `rejected`.

    `correction_id` names the record that the pair was made from, `upstream` the model that gave the rejected answer.
    """

    turns: tuple[Turn, ...]
    chosen: str
    rejected: str
    correction_id: str
    upstream: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSet:
    """Pairs, and how many corrections made none, by reason."""

    pairs: tuple[Pair, ...]
    dropped: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Triple:
    """A question, an answer and its correction, to train an Aligner on. `correction` None: the answer is right, KEEP.

    `criteria` are those that the answer broke, `asked` those that it is judged by (): whatever the Aligner knows. `source`
    says who vouches for the row.
    """

    turns: tuple[Turn, ...]
    answer: str
    correction: str | None
    context: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    source: Source = "gold"

    @classmethod
    def of(cls, exchange: Exchange, text: str, *, criteria: tuple[str, ...], source: Source) -> Triple:
        """The row that teaches to make `text` of the answer, or to KEEP it where it is the same.

        It holds no thoughts of an upstream: no Aligner is shown them (`Policy(thoughts=True)`).
        """
        answer, wanted = behind(exchange.answer), behind(text)
        return cls(
            turns=exchange.turns,
            answer=answer,
            correction=None if wanted == answer else wanted,
            context=exchange.context,
            criteria=criteria,
            source=source,
        )

    @property
    def exchange(self) -> Exchange:
        """The exchange as an Aligner is shown it."""
        return Exchange(turns=self.turns, answer=self.answer, context=self.context)


@dataclass(frozen=True, kw_only=True, slots=True)
class TripleSet:
    """Triples, and how many corrections made none, by reason."""

    triples: tuple[Triple, ...]
    dropped: Mapping[str, int]


class Manifest(TypedDict):
    """What a training set was: how many rows, the SHA-256 of them in their order, what was left out of it and why."""

    rows: int
    sha256: str
    dropped: dict[str, int]


def manifest(rows: Iterable[Pair | Triple], dropped: Mapping[str, int] | None = None) -> Manifest:
    """Pins down a training set: the same rows in the same order, and only those, give the same `sha256`."""
    digest, count = hashlib.sha256(), 0
    for row in rows:
        canonical = json.dumps(asdict(row), sort_keys=True, separators=(",", ":"))
        digest.update(canonical.encode() + b"\n")
        count += 1
    return Manifest(rows=count, sha256=digest.hexdigest(), dropped=dict(dropped or {}))
