"""The models that rounds made: immutable versions, the pair that is served, and the way back.

    home/upstream/<number>/   home/aligner/<number>/   the weights; never changed once they have their number
    home/registry.db          what each version was made from; every promotion and rollback, with its figures
    home/served.json          the pair that is served, for `aligner_chain.serving`; replaced in one step

The database may be one of a PostgreSQL server instead. It is the truth and `served.json` what is published of it: a pair
is promoted by one transaction and published then. Where a process is killed in between, whoever opens the registry next
publishes it. A killed `add` leaves a folder `.new-*` that a later one removes.

    values      Version, PairVersion, Event, and what the methods say
    catalogue   the rows of the database as these values
    opening     which database belongs to a home
    folders     the files of a version and their hashes
    registry    Registry, and its parts: saving, promoting
    publishing  served.json
    cleaning    which weights are in use
    exporting   a folder that stands by itself, with its model card (cards)
    hub         the Hugging Face Hub, where it is asked for by name
"""

from __future__ import annotations

from bootstrap.registry.exporting import Merge, export
from bootstrap.registry.registry import Registry
from bootstrap.registry.values import (
    Collected,
    Event,
    FileRecord,
    Kind,
    PairVersion,
    Servers,
    Synced,
    Verified,
    Version,
)

__all__ = [
    "Collected",
    "Event",
    "FileRecord",
    "Kind",
    "Merge",
    "PairVersion",
    "Registry",
    "Servers",
    "Synced",
    "Verified",
    "Version",
    "export",
]
