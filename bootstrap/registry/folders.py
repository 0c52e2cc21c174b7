"""The files of a version: their hashes when it is saved, and whether they still are as they were."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from bootstrap.errors import RegistryError
from bootstrap.files import file_sha256, is_disk_error, sync
from bootstrap.registry.values import FileRecord, Verified, Version


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Every file of a folder by its path in it, in the order of their names."""
    return {
        name: FileRecord(sha256=file_sha256(path), size=path.stat().st_size) for name, path in _files(folder).items()
    }


def compare(version: Version, *, hashes: bool) -> Verified:
    """A version's folder beside its record.

    Args:
        hashes: read every file. False compares names and sizes, which costs nothing and finds what was cut off.
    """
    found = _files(version.path)
    recorded = version.files if version.files is not None else {}
    gone = () if version.path.is_dir() else (".",)
    return Verified(
        version=version,
        recorded=version.files is not None,
        missing=(*gone, *(name for name in recorded if name not in found)),
        changed=tuple(name for name in recorded if name in found and _differs(found[name], recorded[name], hashes)),
        added=() if version.files is None else tuple(name for name in found if name not in recorded),
    )


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder, 0 where there is none."""
    return sum(path.stat().st_size for path in _files(folder).values())


def as_json(files: Mapping[str, FileRecord]) -> dict[str, dict[str, str | int]]:
    """Records as the database keeps them."""
    return {name: {"sha256": file.sha256, "size": file.size} for name, file in files.items()}


def remove(folder: Path) -> None:
    """Removes a version's folder, where it is still there."""
    if folder.is_dir():
        shutil.rmtree(folder)
        sync(folder.parent)


@contextmanager
def explaining_disk(home: Path, problem: str) -> Iterator[None]:
    """Turns a disk's errors, whoever raises them, into one that says the way out."""
    try:
        yield
    except Exception as error:  # Rust libraries raise a bare Exception on a full disk; the rest is passed on.
        if not is_disk_error(error):
            raise
        raise RegistryError(f"{problem} in {home}: {error}\n{_ways_out(home, error)}") from error


def _ways_out(home: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in _IN_THE_WAY:
        return (
            "What was half written is removed; the served pair is as it was.\n"
            "See what is there and who may write it, mend that, and run the command again:\n"
            f"  ls -la {quote(str(home))}"
        )
    free = shutil.disk_usage(home).free / 2**20
    return (
        f"What was half written is removed ({free:,.1f} MiB are free now); the served pair is as it was.\n"
        "Free disk space, or keep the registry on another disk:  export ALIGNER_HOME=/path/with/space\n"
        "See what it holds:  aligner-bootstrap registry list"
    )


_IN_THE_WAY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR})
"""Errors of a place that more room would not mend."""


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _differs(path: Path, recorded: FileRecord, hashes: bool) -> bool:
    return path.stat().st_size != recorded.size or (hashes and file_sha256(path) != recorded.sha256)
