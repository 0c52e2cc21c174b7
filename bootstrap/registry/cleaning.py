"""Which versions are in use, so that the weights of the others can be removed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from bootstrap.registry.catalogue import Catalogue, aliases, now
from bootstrap.registry.tables import EVENTS, PAIRS, ROUNDS, STAGES, VERSIONS
from bootstrap.registry.values import KINDS, Version

_IDENTITY = re.compile(r"\b(?:upstream|aligner)@[0-9]+\b")
_PAIR = re.compile(r'"pair": ([0-9]+)')


def in_use(connection: Connection, catalogue: Catalogue, *, keep: int, since: datetime) -> dict[str, str]:
    """The identities of the versions that must stay, with the reason.

    Args:
        connection: a transaction.
        catalogue: the registry's.
        keep: so many pairs that were served last stay.
        since: what was served or saved after this time stays, since a process may still be reading it.
    """
    used: dict[str, str] = {}
    for number, reason in [*_pairs(connection, keep, since), *_pairs_of_rounds(connection)]:
        for version in catalogue.pair(connection, number).versions:
            used.setdefault(version.identity, reason)
    for identity, reason in _versions_of_rounds(connection, catalogue):
        used.setdefault(identity, reason)
    for version in _all(connection, catalogue):
        if version.created > since:
            used.setdefault(version.identity, "saved a moment ago")
    return used


def unused(connection: Connection, catalogue: Catalogue, used: dict[str, str]) -> list[Version]:
    """The versions that are not in use and still have their weights, oldest first."""
    return [
        version
        for version in _all(connection, catalogue)
        if version.identity not in used and (version.removed is None or version.path.exists())
    ]


def mark_removed(connection: Connection, versions: list[Version]) -> None:
    """Notes that the weights of these versions are gone; from then on nobody can promote them."""
    for version in versions:
        if version.removed is None:
            of_that_name = (VERSIONS.c.kind == version.kind) & (VERSIONS.c.number == version.number)
            connection.execute(update(VERSIONS).where(of_that_name).values(removed=now()))


def _all(connection: Connection, catalogue: Catalogue) -> list[Version]:
    return [version for kind in KINDS for version in catalogue.versions(connection, kind)]


def _pairs(connection: Connection, keep: int, since: datetime) -> Iterator[tuple[int, str]]:
    for name, number in aliases(connection).items():
        yield number, name
    events = connection.execute(select(EVENTS).order_by(EVENTS.c.id)).all()
    latest = list(dict.fromkeys(event.pair for event in reversed(events)))
    for number in latest[:keep]:
        yield number, f"one of the {keep} pairs that were served last"
    for event, following in pairwise(events):
        if datetime.fromisoformat(following.time) > since:
            yield event.pair, "served until a moment ago"


def _unfinished(connection: Connection) -> Sequence[Row[Any]]:
    """The rounds without an end, also one that failed: it may be resumed."""
    return connection.execute(select(ROUNDS).where(ROUNDS.c.ended_ms.is_(None))).all()


def _results(connection: Connection, number: int) -> str:
    rows = connection.execute(select(STAGES.c.result).where(STAGES.c.round == number)).scalars()
    return json.dumps(list(rows))


def _pairs_of_rounds(connection: Connection) -> Iterator[tuple[int, str]]:
    there = set(connection.execute(select(PAIRS.c.number)).scalars())
    for row in _unfinished(connection):
        named = {row.parent, row.pair, *map(int, _PAIR.findall(_results(connection, row.number)))}
        for number in sorted(there & named):
            yield number, f"round {row.number} is not finished"


def _versions_of_rounds(connection: Connection, catalogue: Catalogue) -> Iterator[tuple[str, str]]:
    """What the stages of unfinished rounds name, and all that is newer than what was ever served."""
    rounds = _unfinished(connection)
    for row in rounds:
        for identity in _IDENTITY.findall(_results(connection, row.number)):
            yield identity, f"round {row.number} is not finished"
    if not rounds:
        return
    promoted = PAIRS.c.number.in_(select(EVENTS.c.pair))
    for kind in KINDS:
        newest = connection.execute(select(func.max(PAIRS.c[kind])).where(promoted)).scalar_one() or 0
        for version in catalogue.versions(connection, kind):
            if version.number > newest:
                yield version.identity, "newer than what was served, and a round is not finished"
