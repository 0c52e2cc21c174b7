"""Saving a model as a version: written aside, waited for, then given its number in one transaction."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from bootstrap.database import Database
from bootstrap.database.fences import Fence
from bootstrap.files import remove_abandoned, sync, sync_tree
from bootstrap.registry import catalogue, folders
from bootstrap.registry.catalogue import Catalogue
from bootstrap.registry.publishing import UNFINISHED
from bootstrap.registry.tables import VERSIONS
from bootstrap.registry.values import Kind, Version

_ABANDONED_S = 3600.0


def save(
    database: Database,
    shelves: Catalogue,
    kind: Kind,
    write: Callable[[Path], object],
    manifest: Mapping[str, Any],
    fence: Fence | None,
) -> Version:
    """As `Registry.add`, in the registry whose catalogue `shelves` is."""
    json.dumps(manifest, allow_nan=False)  # what cannot be recorded is refused before the weights are written
    folder = shelves.home / catalogue.known(kind) / f"{UNFINISHED}{uuid.uuid4().hex}"
    with folders.explaining_disk(shelves.home, f"The {kind} could not be saved"):
        for place in (shelves.home, folder.parent):
            remove_abandoned(place, UNFINISHED, older_than_s=_ABANDONED_S)
        try:
            folder.mkdir(parents=True)
            write(folder)
            sync_tree(folder)
            row = {"kind": kind, "manifest": dict(manifest), "files": folders.as_json(folders.record_files(folder))}
            return _adopt(database, shelves, folder, row, fence)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _adopt(database: Database, shelves: Catalogue, folder: Path, row: dict[str, Any], fence: Fence | None) -> Version:
    """Gives a finished folder its number, its name and its row."""
    kind, adopted = row["kind"], None
    try:
        with database.write() as connection:
            if fence is not None:
                fence.check(connection)
            number = catalogue.next_number(connection, kind, folder.parent)
            connection.execute(insert(VERSIONS), {**row, "number": number, "created": catalogue.now()})
            version = shelves.version(connection, kind, number)
            adopted = folder.rename(version.path)
            sync(folder.parent)
    except BaseException:
        if adopted is not None:  # a database notices a full disk only when it commits
            adopted.rename(folder)
        raise
    return version
