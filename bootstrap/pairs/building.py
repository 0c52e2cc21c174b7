"""From records to rows, one after the other in bounded memory: filters, boilerplate, duplicates, near-duplicates."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from aligner_chain.exchange import Correction, Turn
from bootstrap.errors import NotEnoughPairsError
from bootstrap.pairs.boilerplate import find_boilerplate, stripped
from bootstrap.pairs.filters import (
    BOILERPLATE,
    DEFAULTS,
    HELD_OUT,
    NEAR_DUPLICATE,
    Candidate,
    Filters,
    obstacle,
    self_made,
    verdict,
)
from bootstrap.pairs.triples import VouchedTriples
from bootstrap.pairs.values import Pair, PairSet, Triple, TripleSet
from bootstrap.records import Record, Split

if TYPE_CHECKING:
    from bootstrap.neighbours import Neighbours
    from bootstrap.store import CorrectionStore

_BATCH = 500

R = TypeVar("R", bound=Pair | Triple)
Made = TypeVar("Made", bound=Pair | Triple, covariant=True)
Progress = Callable[[str, int], None]
"""Called with what is being done and how many records it was done to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept(Generic[R]):
    """A row, the id of the record that it was made from, and how many answers of the traffic that record stands for."""

    id: str
    weight: float
    row: R


class Maker(Protocol[Made]):
    """Makes a row of a record, or says why there is none."""

    def prepare(self, records: Iterable[Record]) -> None:
        """Looks through all records before the first row is made, where the rows depend on all of them."""

    def make(self, record: Record) -> Made | str: ...


class PairMaker:
    """Makes preference pairs.

    With `identities` also an answer that needs nothing makes one, its own text chosen and rejected: for training on what
    is right alone, never for DPO.
    """

    def __init__(self, filters: Filters, *, identities: bool = False) -> None:
        self._filters, self._identities = filters, identities
        self.boilerplate: frozenset[str] = frozenset()

    def prepare(self, records: Iterable[Record]) -> None:
        if BOILERPLATE not in self._filters.off:
            candidates = filter(_may_have_boilerplate, map(_candidate, records))
            self.boilerplate = find_boilerplate(candidates, self._filters)

    def make(self, record: Record) -> Pair | str:
        pair = _candidate(record)
        if self.boilerplate and _may_have_boilerplate(pair):
            text = stripped(pair.rejected, pair.chosen, self.boilerplate)
            if not text or text == pair.rejected:
                return BOILERPLATE
            pair = _candidate(record, text)
        found = obstacle(pair, self._filters)
        if found in ("unchanged", "kept by a person") and self._identities and _is_right(pair):
            rest = ("with passages", "empty", "not unicode")
            found = obstacle(pair, self._filters, rest)
        return found or _pair(pair)


class Stream(Generic[R]):
    """The rows that records make, each with its id, in the order of the records; iterate over it once.

    Args:
        records: gives all records, as often as it is called.
        maker: makes a row of a record, and knows the filters.
        held_out: the held-out prompts, None to compare with none.
        near: an empty set for the rows, None to leave only exact duplicates out.
        progress: told after every 500 records.

    Attributes:
        read: how many records were read so far.
        dropped: how many of them made no row, by reason.
    """

    def __init__(
        self,
        records: Callable[[], Iterable[Record]],
        maker: Maker[R],
        *,
        held_out: Neighbours | None = None,
        near: Neighbours | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.maker = maker
        self._records = records
        self._held_out, self._near = held_out, near
        self._progress = progress or _silent
        self._seen = _Seen()
        self.read = 0
        self.dropped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Kept[R]]:
        self.maker.prepare(_counted(self._records(), "looking for boilerplate", self._progress))
        records = _counted(self._records(), "reading", self._progress)
        while batch := list(islice(records, _BATCH)):
            self.read += len(batch)
            yield from self._unlike(self._made(batch))

    def _made(self, batch: Sequence[Record]) -> list[Kept[R]]:
        kept = []
        for record in batch:
            row = self.maker.make(record)
            if isinstance(row, str):
                self.dropped[row] += 1
            elif self._seen.add(row):
                self.dropped["duplicate"] += 1
            else:
                kept.append(Kept(id=record.correction.id, weight=record.weight, row=row))
        return kept

    def _unlike(self, rows: list[Kept[R]]) -> list[Kept[R]]:
        """Those that give no held-out prompt away and nearly repeat no other row."""
        if self._held_out is not None:
            rows = self._left(rows, self._held_out.near([prompt_text(one.row.turns) for one in rows]), HELD_OUT)
        if self._near is not None:
            rows = self._left(rows, self._near.add_new([(one.id, _row_text(one.row)) for one in rows]), NEAR_DUPLICATE)
        return rows

    def _left(self, rows: list[Kept[R]], near: Sequence[str | None], reason: str) -> list[Kept[R]]:
        left = [row for row, found in zip(rows, near, strict=True) if found is None]
        if len(left) < len(rows):
            self.dropped[reason] += len(rows) - len(left)
        return left


@contextlib.contextmanager
def stream(
    store: CorrectionStore,
    maker: Maker[R],
    *,
    split: Split = "train",
    filters: Filters = DEFAULTS,
    progress: Progress | None = None,
) -> Iterator[Stream[R]]:
    """The rows of a store's split, none of them nearly another one's, and those of "train" none near a held-out prompt.

    The near-duplicates are looked for in the store's database, in tables that are emptied again at the end.
    """
    from bootstrap.neighbours import Neighbours

    with contextlib.ExitStack() as stack:
        stack.enter_context(store.kept_open())
        near = held_out = None
        if NEAR_DUPLICATE not in filters.off:
            near = Neighbours(store.database, "rows", threshold=filters.near_duplicate, seed=filters.seed)
            stack.enter_context(near)
        if split == "train" and HELD_OUT not in filters.off:
            held_out = Neighbours(store.database, "held out", threshold=filters.near_held_out, seed=filters.seed)
            stack.enter_context(held_out)
            _add_held_out(held_out, store, progress or _silent)
        yield Stream(
            lambda: store.records(split, feedback=True), maker, held_out=held_out, near=near, progress=progress
        )


def collect_pairs(store: CorrectionStore, *, filters: Filters = DEFAULTS, minimum: int = 0) -> PairSet:
    """The preference pairs of a store's training split, in memory.

    Raises:
        NotEnoughPairsError: there are fewer than `minimum`.
    """
    with stream(store, PairMaker(filters), filters=filters) as rows:
        return _pair_set(rows, minimum)


def build_pairs(records: Iterable[Correction | Record], *, filters: Filters = DEFAULTS, minimum: int = 0) -> PairSet:
    """The preference pairs of corrections: prompt as asked, chosen is the correction, rejected the original.

    Where a record has feedback, a person's edit is chosen instead, and what a person rejected makes no pair. What is left
    out is counted by the name of the filter (`FILTERS`), and as `boilerplate` or `duplicate`. Near-duplicates are looked
    for in a database only: see `collect_pairs`.

    Args:
        records: of the training split, normally `store.records("train", feedback=True)`.
        filters: what is left out.
        minimum: the least number of pairs.

    Raises:
        NotEnoughPairsError: there are fewer than `minimum`.
    """
    known = [one if isinstance(one, Record) else Record(correction=one) for one in records]
    return _pair_set(Stream(lambda: known, PairMaker(filters)), minimum)


def human_triples(records: Iterable[Record]) -> TripleSet:
    """The rows of records that people or imported files vouch for, in memory; see `VouchedTriples`."""
    known = list(records)
    rows = Stream(lambda: known, VouchedTriples())
    return TripleSet(triples=tuple(one.row for one in rows), dropped=dict(rows.dropped))


def prompt_text(turns: Sequence[Turn]) -> str:
    """What of a prompt is compared with others: all but the instructions, which an application gives to all alike."""
    return "\n".join(turn.text for turn in turns if turn.role != "system")


def _add_held_out(held_out: Neighbours, store: CorrectionStore, progress: Progress) -> None:
    for split in ("gate", "report"):
        records = _counted(store.records(split, feedback=False), "held-out prompts", progress)
        while batch := list(islice(records, _BATCH)):
            held_out.add([(one.correction.id, prompt_text(one.correction.exchange.turns)) for one in batch])


def _row_text(row: Pair | Triple) -> str:
    """What of a row is compared with others: the last question and both answers, not the conversation before it.

    Two rows of one conversation share most of it, and both are worth having.
    """
    answers = (row.rejected, row.chosen) if isinstance(row, Pair) else (row.answer, row.correction or "")
    return "\n".join((row.turns[-1].text, *answers))


def _candidate(record: Record, text: str | None = None) -> Candidate:
    found = verdict(record)
    return Candidate(record=record, verdict=found, chosen=found.text if text is None else text)


def _may_have_boilerplate(pair: Candidate) -> bool:
    return (
        not pair.verdict.trusted and pair.verdict.obstacle is None and self_made(pair) and pair.chosen != pair.rejected
    )


def _is_right(pair: Candidate) -> bool:
    """Whether an answer that was left as it is needs nothing, as far as somebody knows."""
    return pair.correction.outcome == "approved" or pair.verdict.source is not None


def _pair(pair: Candidate) -> Pair:
    exchange = pair.correction.exchange
    return Pair(
        turns=exchange.turns,
        chosen=pair.chosen,
        rejected=exchange.answer,
        correction_id=pair.correction.id,
        upstream=exchange.upstream,
    )


def _pair_set(rows: Stream[Pair], minimum: int) -> PairSet:
    pairs = tuple(one.row for one in rows)
    if len(pairs) < minimum:
        raise NotEnoughPairsError(len(pairs), minimum, rows.dropped)
    return PairSet(pairs=pairs, dropped=dict(rows.dropped))


def _counted(records: Iterable[Record], what: str, progress: Progress) -> Iterator[Record]:
    """The same records; every 500 of them are told of, and the last."""
    number = 0
    for number, record in enumerate(records, 1):
        yield record
        if number % _BATCH == 0:
            progress(what, number)
    progress(what, number)


def _silent(what: str, number: int) -> None:
    """Tells nobody."""


class _Seen:
    """Which rows there were: eight bytes for each, so that a million of them are no burden."""

    _MOST_RECENT = 1 << 16

    def __init__(self) -> None:
        self._sorted, self._recent = array("Q"), set[int]()

    def add(self, row: Pair | Triple) -> bool:
        """Adds a row and returns whether it was there before."""
        texts = (row.rejected, row.chosen) if isinstance(row, Pair) else (row.context, row.answer, row.correction)
        content = repr((row.turns, *texts)).encode("utf-8", "surrogatepass")
        key = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
        at = bisect_left(self._sorted, key)
        if key in self._recent or (at < len(self._sorted) and self._sorted[at] == key):
            return True
        self._recent.add(key)
        if len(self._recent) > self._MOST_RECENT:
            self._sorted = array("Q", heapq.merge(self._sorted, sorted(self._recent)))
            self._recent.clear()
        return False
