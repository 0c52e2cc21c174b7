"""Texts that nearly repeat others, found by MinHash with locality-sensitive hashing; what is known lies in the database.

A text is the set of its runs of three words. The share of runs that two texts have in common (Jaccard) is estimated by 64
random permutations of all runs, each of which keeps the smallest (Broder 1997). Of every minimum eight bits are kept (Li
and König 2010, arXiv 0910.3349), so that eight of them make one number, a band, and the eight bands of a text are at once
its index and its whole signature: texts with a band in common are candidates, and their bands tell how near they are.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select

from aligner_chain.exchange import uuid7
from bootstrap.records import now_ms
from bootstrap.tables import NEIGHBOURS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sqlalchemy import Connection

    from bootstrap.database import Database

    Signatures = NDArray[np.uint8]

BANDS, ROWS = 8, 8
PERMUTATIONS = BANDS * ROWS
SHINGLE = 3
MOST_IN_A_BUCKET = 64
"""Texts with one band in common that are looked at; more would make the search quadratic where a template is behind all."""

_PAGE = 500
_ABANDONED_MS = 24 * 60 * 60 * 1000
_BY_CHANCE = 1 / 256  # two bytes that have nothing to do with each other are equal this often

# A run of letters and digits is a word; in the scripts that put no space between words each character is one.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_N = NEIGHBOURS.c


class Neighbours:
    """A set of texts in the database that others are held against, for one run: `close` takes it away again.

        with Neighbours(store.database, "prompts") as prompts:
            prompts.add([("a", "Where is my parcel with the blue ribbon now?")])
            prompts.near(["where is my parcel with the blue ribbon, now?"])   # ["a"]

    The memory that it needs does not grow with the texts. Nothing of it is left when it is closed; what a killed process
    left is taken away by the first set that is opened a day later.

    Args:
        database: one that has the table `NEIGHBOURS`.
        scope: a name for the set.
        threshold: the least estimated Jaccard similarity of two texts that are near, from 0 to 1. The estimate's standard
            error is 0.05 at 0.8. Of pairs at 0.8 three of four become candidates, of pairs at 0.9 all but one in a hundred.
        seed: of the permutations.
    """

    def __init__(self, database: Database, scope: str, *, threshold: float = 0.8, seed: int = 1) -> None:
        self._database, self._threshold, self._seed = database, threshold, seed
        self.scope = f"{uuid7()} {scope}"
        self._remove_abandoned()

    def add(self, texts: Sequence[tuple[str, str]]) -> None:
        """Adds texts, each with a key that the set does not have yet."""
        for page in _pages(texts):
            signatures = self._signatures(text for _, text in page)
            with self._database.read() as connection:
                buckets = self._buckets(connection, signatures)
            self._insert([key for key, _ in page], signatures, buckets)

    def near(self, texts: Sequence[str]) -> list[str | None]:
        """For each text the key of the most similar one in the set, None where none is near."""
        found: list[str | None] = []
        for page in _pages(texts):
            signatures = self._signatures(page)
            with self._database.read() as connection:
                found += self._nearest(connection, signatures, self._buckets(connection, signatures))
        return found

    def add_new(self, texts: Sequence[tuple[str, str]]) -> list[str | None]:
        """Adds those texts that are near none before them, in the set or in this list.

        Returns:
            For each text None where it was added, else the key of the one that it is near to.
        """
        found: list[str | None] = []
        for page in _pages(texts):
            found += self._add_new(page)
        return found

    def close(self) -> None:
        """Takes the set out of the database; safe to call twice."""
        _remove(self._database, self.scope)

    def __enter__(self) -> Neighbours:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _add_new(self, page: Sequence[tuple[str, str]]) -> list[str | None]:
        keys = [key for key, _ in page]
        signatures = self._signatures(text for _, text in page)
        with self._database.read() as connection:
            buckets = self._buckets(connection, signatures)
            found = self._nearest(connection, signatures, buckets)
        new: list[int] = []
        for at, known in enumerate(found):
            if known is None and new and (near := self._best(signatures[at], signatures[new])) is not None:
                found[at] = keys[new[near]]
            elif known is None:
                new.append(at)
        self._insert([keys[at] for at in new], signatures[new], buckets)
        return found

    def _best(self, signature: Signatures, others: Signatures) -> int | None:
        """Which of the others is most similar, None where none is near."""
        equal = (others == signature).mean(axis=1)
        best = int(equal.argmax())
        similar = (float(equal[best]) - _BY_CHANCE) / (1 - _BY_CHANCE)
        return best if similar >= self._threshold else None

    def _nearest(
        self, connection: Connection, signatures: Signatures, buckets: dict[tuple[int, int], list[str]]
    ) -> list[str | None]:
        candidates = [
            sorted({key for bucket in enumerate(row) for key in buckets.get(bucket, ())})
            for row in _bands(signatures).tolist()
        ]
        known = self._known(connection, sorted({key for keys in candidates for key in keys}))
        found: list[str | None] = []
        for signature, keys in zip(signatures, candidates, strict=True):
            best = self._best(signature, _stacked([known[key] for key in keys])) if keys else None
            found.append(None if best is None else keys[best])
        return found

    def _buckets(self, connection: Connection, signatures: Signatures) -> dict[tuple[int, int], list[str]]:
        """The keys in the set that share a band with one of the signatures, by the band's number and value."""
        found: dict[tuple[int, int], list[str]] = defaultdict(list)
        for band, column in enumerate(_bands(signatures).T.tolist()):
            here = (_N.scope == self.scope, _N.band == band, _N.value.in_(set(column)))
            for key, value in connection.execute(select(_N.key, _N.value).where(*here)):
                found[band, value].append(key)
        return found

    def _known(self, connection: Connection, keys: list[str]) -> dict[str, Signatures]:
        """The signatures of keys in the set."""
        import numpy as np

        found: dict[str, Signatures] = {}
        for page in _pages(keys):
            rows = connection.execute(
                select(_N.key, _N.band, _N.value).where(_N.scope == self.scope, _N.key.in_(page))
            ).all()
            bands: dict[str, list[int]] = {key: [0] * BANDS for key in page}
            for key, band, value in rows:
                bands[key][band % BANDS] = value
            found |= {key: np.array(values, "<i8").view(np.uint8) for key, values in bands.items()}
        return found

    def _insert(self, keys: Sequence[str], signatures: Signatures, buckets: dict[tuple[int, int], list[str]]) -> None:
        """Writes signatures. A band whose bucket is full is written under a number that nobody looks up."""
        if not keys:
            return
        sizes = Counter({bucket: len(known) for bucket, known in buckets.items()})
        rows: list[dict[str, Any]] = []
        for key, values in zip(keys, _bands(signatures).tolist(), strict=True):
            for band, value in enumerate(values):
                sizes[band, value] += 1
                hidden = BANDS if sizes[band, value] > MOST_IN_A_BUCKET else 0
                rows.append({"scope": self.scope, "key": key, "band": band + hidden, "value": value})
        with self._database.write() as connection:
            connection.execute(insert(NEIGHBOURS), rows)

    def _signatures(self, texts: Iterable[str]) -> Signatures:
        """One row of 64 bytes for each text."""
        import numpy as np
        from datasketch import MinHash

        hashes = MinHash.bulk(map(_shingles, texts), num_perm=PERMUTATIONS, seed=self._seed, hashfunc=zlib.crc32)
        return np.array([one.hashvalues for one in hashes]).astype(np.uint8)

    def _remove_abandoned(self) -> None:
        with self._database.read() as connection:
            scopes = connection.execute(select(_N.scope).distinct()).scalars().all()
        for scope in scopes:
            if now_ms() - _opened_ms(scope) > _ABANDONED_MS:
                _remove(self._database, scope)


def shingles(text: str) -> frozenset[str]:
    """The runs of three words of a text, in which neither case nor punctuation makes a difference.

    To each run belong all numbers of the text: texts with other numbers in them have nothing in common, since what a
    template asks about differs by its numbers. A text of fewer words is one run, and one without words is itself.
    """
    words = _WORD.findall(text.casefold()) or [text.strip()]
    numbers = " ".join(sorted(word for word in words if any(map(str.isdigit, word))))
    runs = range(max(1, len(words) - SHINGLE + 1))
    return frozenset(f"{' '.join(words[at : at + SHINGLE])}|{numbers}" for at in runs)


def _shingles(text: str) -> list[bytes]:
    return [run.encode("utf-8", "surrogatepass") for run in shingles(text)]


def _bands(signatures: Signatures) -> NDArray[np.int64]:
    """The bands of signatures of 64 bytes: a row of eight signed numbers for each."""
    import numpy as np

    return np.ascontiguousarray(signatures).view("<i8").astype(np.int64)


def _stacked(signatures: list[Signatures]) -> Signatures:
    import numpy as np

    return np.stack(signatures)


def _opened_ms(scope: str) -> int:
    return UUID(scope.split()[0]).int >> 80


def _remove(database: Database, scope: str) -> None:
    """Deletes a scope, a page of keys at a time: nobody waits long for the database."""
    while True:
        with database.write() as connection:
            keys = select(_N.key).where(_N.scope == scope).order_by(_N.key).limit(_PAGE * BANDS).subquery()
            last = connection.execute(select(func.max(keys.c.key))).scalar_one()
            if last is None:
                return
            connection.execute(delete(NEIGHBOURS).where(_N.scope == scope, _N.key <= last))


def _pages(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _PAGE] for start in range(0, len(items), _PAGE))
