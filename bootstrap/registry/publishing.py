"""`served.json`: what the database says is served, as a file that serving processes read."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from aligner_chain.serving import FILE_NAME
from aligner_chain.serving import SCHEMA as SERVED_SCHEMA
from bootstrap.files import replace_file, write_synced
from bootstrap.registry.values import Event

UNFINISHED = ".new-"


class Publication:
    """The file `served.json` of a home."""

    def __init__(self, home: Path) -> None:
        self._path = home / FILE_NAME

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A name for a file that is about to take the place of `served.json`; nothing is left there afterwards."""
        staged = self._path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}.json")
        try:
            yield staged
        finally:
            staged.unlink(missing_ok=True)

    def write(self, staged: Path, event: Event) -> None:
        """Writes what serves an event's pair under another name, and waits for the disk."""
        write_synced(staged, _content(event))

    def publish(self, staged: Path) -> None:
        """Serves what was written: in one step, for good."""
        replace_file(self._path, staged)

    def found(self, event: Event, earlier: Iterator[Event]) -> Literal["current", "missing", "old", "edited"]:
        """What the file is where the pair of `event` should be served and those of `earlier` once were."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return "missing"
        except UnicodeDecodeError:
            return "edited"
        if text == _content(event):
            return "current"
        return "old" if any(text == _content(one) for one in earlier) else "edited"


def _content(event: Event) -> str:
    """The text of `served.json`; paths are relative, so that a home can be moved."""
    pair, servers = event.pair, event.servers
    entries: dict[str, dict[str, Any] | None] = {
        name: {"identity": version.identity, "path": f"{version.kind}/{version.number}"} if version else None
        for name, version in (("upstream", pair.upstream), ("aligner", pair.aligner))
    }
    if servers is not None and (aligner := entries["aligner"]) is not None:
        aligner["server"] = {"urls": list(servers.urls), "model": pair.aligner.identity}
    return json.dumps({"schema": SERVED_SCHEMA, "pair": str(pair.number), **entries}, indent=1) + "\n"
