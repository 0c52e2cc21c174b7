"""What is recorded where a pair is registered, promoted or rolled back, and when that is refused.

Every function works inside the transaction that it is given and returns the number or the id of what it recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal

from sqlalchemy import Connection

from bootstrap.errors import RegistryError
from bootstrap.registry import catalogue, folders
from bootstrap.registry.catalogue import SEE_LIST, Catalogue
from bootstrap.registry.values import Event, PairVersion, Servers, Version


class Unchecked(Enum):
    """Stands for whichever pair is served."""

    ANY_PAIR = "any pair"


Expected = PairVersion | Literal[Unchecked.ANY_PAIR] | None


def register(
    connection: Connection,
    shelves: Catalogue,
    upstream: Version | None,
    aligner: Version,
    figures: Mapping[str, Any],
) -> int:
    """Adds a pair, after a check of its versions."""
    row = {
        "upstream": shelves.number(connection, "upstream", upstream) if upstream else None,
        "aligner": shelves.number(connection, "aligner", aligner),
        "figures": dict(figures),
    }
    return catalogue.add_pair(connection, row)


def registered(connection: Connection, shelves: Catalogue, pair: PairVersion) -> int:
    """The number of a pair, after a check that it is one of this registry."""
    for version in pair.versions:
        shelves.number(connection, version.kind, version)
    return shelves.pair(connection, pair.number).number


def promotion(connection: Connection, pair: PairVersion, servers: Servers | None, served: Event | None) -> int:
    """Serves a pair after what the event `served` serves."""
    check_weights(pair)
    _check_unchanged(pair)
    back = served.number if served else None
    return catalogue.add_event(connection, "promote", pair, back=back, servers=servers)


def rollback(connection: Connection, shelves: Catalogue) -> int:
    """Serves what was served before the present pair was promoted."""
    before = shelves.before(connection)
    return catalogue.add_event(connection, "rollback", before.pair, back=before.back, servers=before.servers)


def check_expected(expected: Expected, served: Event | None) -> None:
    """Refuses where another pair is served than whoever promotes has measured against."""
    if expected is Unchecked.ANY_PAIR:
        return
    if (expected and expected.number) != (served and served.pair.number):
        wanted = f"pair {expected.number}" if expected else "none"
        raise RegistryError(
            f"{catalogue.named(served)} is served and {wanted} was expected: another round or a rollback came first. Nothing was "
            "promoted.\nSee what happened:  aligner-bootstrap registry list\nThen start again:  aligner-bootstrap round run"
        )


def check_weights(pair: PairVersion) -> None:
    """Refuses a pair whose weights are not there."""
    for version in pair.versions:
        if version.removed is not None:
            raise RegistryError(
                f"The weights of {version.identity} are gone: they were removed as unused on {version.removed:%Y-%m-%d}; "
                f"the served pair is as it was.\n{SEE_LIST}"
            )
        if not version.path.is_dir():
            raise RegistryError(
                f"The weights of {version.identity} are gone from {version.path}; the served pair is as it was.\n"
                "Put the folder back from a copy, or see what else there is:  aligner-bootstrap registry list"
            )


def _check_unchanged(pair: PairVersion) -> None:
    """Refuses files that were cut off or replaced. A rollback does not ask: it must be possible at any time."""
    for version in pair.versions:
        found = folders.compare(version, hashes=False)
        if found.missing or found.changed:
            raise RegistryError(
                f"{version.identity} is not as it was saved: {', '.join([*found.missing, *found.changed][:3])} missing or "
                f"changed in {version.path}; the served pair is as it was.\n"
                "See all of it:  aligner-bootstrap registry verify"
            )
