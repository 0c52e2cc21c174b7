"""What a registry holds, and what its methods say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

Kind = Literal["upstream", "aligner"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """A file as it was saved: its SHA-256, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One model in the registry: its folder, when it was saved (UTC) and what it was made from.

    `files` are those of the folder, by their path in it; None where they were not noted yet when it was saved. `removed`
    is when its weights were removed (UTC), None while they are there.
    """

    kind: Kind
    number: int
    path: Path
    created: datetime
    manifest: Mapping[str, Any]
    files: Mapping[str, FileRecord] | None = None
    removed: datetime | None = None

    @property
    def identity(self) -> str:
        """`name@version`, as in `served.json`."""
        return f"{self.kind}@{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PairVersion:
    """An upstream and the Aligner that was measured with it, and the figures of that.

    `upstream` is None where only an Aligner is served.
    """

    number: int
    upstream: Version | None
    aligner: Version
    created: datetime
    figures: Mapping[str, Any]

    @property
    def versions(self) -> tuple[Version, ...]:
        """Its one or two versions."""
        return (self.aligner,) if self.upstream is None else (self.upstream, self.aligner)


@dataclass(frozen=True, kw_only=True, slots=True)
class Servers:
    """The model servers that run an Aligner under its `name@version`: their addresses, and the registry's folder there."""

    urls: tuple[str, ...]
    home: str

    def folder(self, version: Version) -> str:
        """The folder of a version as the servers see it."""
        return f"{self.home.rstrip('/')}/{version.kind}/{version.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One change of what is served: what was done, when (UTC), and the pair that was served from then on.

    `servers` run its Aligner; None: each application loads it. `number` grows with every event, and `back` is the number of
    the one that a rollback returns to, None where there is none.
    """

    number: int
    action: Literal["promote", "rollback"]
    pair: PairVersion
    time: datetime
    back: int | None
    servers: Servers | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """A version's folder beside what was noted when it was saved; names of files.

    `recorded` is False where nothing was noted then: only a missing folder is found.
    """

    version: Version
    recorded: bool
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether it is as it was saved."""
        return not (self.missing or self.changed or self.added)


@dataclass(frozen=True, kw_only=True, slots=True)
class Synced:
    """How `served.json` was found, and whether it was written anew.

    `found` is "current", "missing", "old" (of a pair that was served before), "edited" (of anything else), or "unrecorded":
    the database knows of no promotion, and the file, if there is one, is left as it is. `gone` are the versions of the
    served pair whose weights are not in this home; then the file is left as well, since it would serve nothing.
    """

    found: Literal["current", "missing", "old", "edited", "unrecorded"]
    written: bool
    pair: PairVersion | None
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """The versions whose weights were removed, or would be, their bytes, and why each of the others was kept."""

    removed: tuple[Version, ...]
    size: int
    kept: Mapping[str, str]
