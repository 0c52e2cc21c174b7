"""What an export is: its files and their hashes, what was left out and why, and whether its records are still there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from bootstrap.errors import ExportError
from bootstrap.files import file_sha256
from bootstrap.pairs.building import Stream
from bootstrap.pairs.filters import Filters

if TYPE_CHECKING:
    from bootstrap.store import CorrectionStore

SCHEMA = 1
MANIFEST, IDS = "manifest.json", "ids.txt"
PACKAGES = ("aligner-chain", "SQLAlchemy", "datasketch", "datasets", "pyarrow")
_PAGE = 1000


class File(TypedDict):
    """A file of an export."""

    sha256: str
    bytes: int


class ExportManifest(TypedDict):
    """What an export is.

    `rows` were made of `read` records of `split`; `dropped` counts the others by the name of the filter, and `filters`
    holds its settings with the seed. `boilerplate` are the sentences that were taken out of chosen texts. `files` has the
    SHA-256 of every file, among them `ids.txt`: the id of the record behind each row, line by line.
    """

    schema: int
    created_at: str
    form: str
    format: str
    split: str
    rows: int
    read: int
    dropped: dict[str, int]
    boilerplate: list[str]
    filters: dict[str, Any]
    files: dict[str, File]
    packages: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What became of an export: `rows` it has, the ids that were `deleted` since, and the files that are `altered`."""

    rows: int
    deleted: tuple[str, ...]
    altered: tuple[str, ...]

    @property
    def good(self) -> bool:
        return not (self.deleted or self.altered)


def new_manifest(
    folder: Path,
    rows: Stream[Any],
    *,
    count: int,
    split: str,
    form: str,
    format: str,  # noqa: A002
    filters: Filters,
) -> ExportManifest:
    """The manifest of a folder whose rows are all written."""
    boilerplate: frozenset[str] = getattr(rows.maker, "boilerplate", frozenset())
    return ExportManifest(
        schema=SCHEMA,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        form=form,
        format=format,
        split=split,
        rows=count,
        read=rows.read,
        dropped=dict(rows.dropped),
        boilerplate=sorted(boilerplate),
        filters=asdict(filters),
        files={path.relative_to(folder).as_posix(): _file(path) for path in _files(folder)},
        packages={name: found for name in PACKAGES if (found := _version(name))},
    )


def check(manifest: str | os.PathLike[str], store: CorrectionStore) -> Checked:
    """Whether the records of an export are still in the store, and its files as they were written.

    Args:
        manifest: the `manifest.json` of an export, or its folder.
        store: the one that it was made from.

    Raises:
        ExportError: it is no manifest of an export.
    """
    path = Path(manifest)
    path = path / MANIFEST if path.is_dir() else path
    told = _read(path)
    altered = tuple(name for name, file in told["files"].items() if not _as_it_was(path.parent / name, file))
    if IDS in altered:
        raise ExportError(f"{path.parent / IDS} is missing or changed: whose rows these are is not known any more.")
    return Checked(rows=told["rows"], deleted=tuple(stale(path, store)), altered=altered)


def stale(manifest: str | os.PathLike[str], store: CorrectionStore) -> Iterator[str]:
    """The ids of an export's records that were deleted from the store since, in the order of its rows."""
    with Path(manifest).with_name(IDS).open(encoding="utf-8") as file:
        ids = (line.removesuffix("\n") for line in file)
        while page := list(islice(ids, _PAGE)):
            gone = store.deleted(page)
            yield from (one for one in page if one in gone)


def _read(path: Path) -> ExportManifest:
    try:
        told: ExportManifest = json.loads(path.read_text("utf-8"))
        if told["schema"] != SCHEMA:
            raise ExportError(
                f"{path} has schema {told['schema']}; this version of aligner-chain reads {SCHEMA}.\n"
                "Upgrade:  pip install --upgrade aligner-chain"
            )
        _require(told, ExportManifest.__annotations__)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{path} is no manifest of an export: {error}. Name the manifest.json of one.") from error
    return told


def _require(told: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    if missing := names.keys() - told.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _file(path: Path) -> File:
    return File(sha256=file_sha256(path), bytes=path.stat().st_size)


def _as_it_was(path: Path, file: File) -> bool:
    return path.is_file() and _file(path)["sha256"] == file["sha256"]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
