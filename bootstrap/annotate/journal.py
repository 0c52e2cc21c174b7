"""The journal of an annotation: one line a paid call, written the moment its reply is there.

Lines are only ever added. A killed process leaves at most a torn last line, which is cut off when the journal is opened
again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from aligner_chain.exchange import Correction, Exchange
from bootstrap.annotate.spending import Tokens
from bootstrap.errors import AnnotationError
from bootstrap.records import is_unicode


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What became of one exchange: `outcome` is "corrected" (to `text`), "approved", "kept" (refused) or "failed".

    `why` names the checks that refused it, or the error. `told` says whether the provider told the tokens; else they are
    an estimate, or none where no reply came.
    """

    key: str
    outcome: str
    text: str | None = None
    why: tuple[str, ...] = ()
    tokens: Tokens = field(default_factory=Tokens)
    told: bool = True
    annotator: str = ""

    @classmethod
    def of(cls, key: str, correction: Correction, estimate: Tokens) -> Entry:
        """The entry of a correction; `estimate` stands in for tokens that the provider does not tell."""
        tokens = Tokens(read=correction.usage.prompt_tokens, written=correction.usage.new_tokens)
        told = tokens.total > 0 or correction.outcome == "failed"
        readable = is_unicode(correction.text)
        return cls(
            key=key,
            outcome=correction.outcome if readable else "kept",
            text=correction.text if correction.outcome == "corrected" and readable else None,
            why=_why(correction) if readable else ("not unicode",),
            tokens=tokens if told else estimate,
            told=told,
            annotator=correction.aligner,
        )


def key_of(exchange: Exchange, criteria: Sequence[str]) -> str:
    """The SHA-256 in hex of what an annotator is shown. Ids and the name of the upstream are no part of it."""
    shown = [[[turn.role, turn.text] for turn in exchange.turns], exchange.answer, exchange.context, list(criteria)]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


class Journal:
    """The entries so far, by key, and what all calls cost; used as a context manager by one process at a time.

    A failed call is no entry, but what it cost counts. Threads may share a journal.

    Raises:
        AnnotationError: the file cannot be read or written, a line of it is none of ours, or another process has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.tokens = Tokens()
        self.untold = 0
        self._changing = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise AnnotationError(f"{path} cannot be written: {error}. Choose another --out.") from error
        try:
            self._lock()
            self._size = self._read()
            os.ftruncate(self._file, self._size)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changing:
            os.close(self._file)
            self._file = -1  # a thread that is late must not write into whatever gets this number next

    def append(self, entry: Entry) -> None:
        """Adds an entry; when this returns it is on the disk: somebody paid for it."""
        line = json.dumps(asdict(entry)).encode() + b"\n"
        with self._changing:
            try:
                self._write(line)
            except OSError as error:
                raise AnnotationError(f"{self.path} cannot be written: {error}. {_GO_ON}") from error
            self._size += len(line)
            self._take(entry)

    def _write(self, line: bytes) -> None:
        """Writes a line whole, or leaves nothing of it."""
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise

    def _take(self, entry: Entry) -> None:
        self.tokens += entry.tokens
        self.untold += not entry.told
        if entry.outcome != "failed":
            self.entries[entry.key] = entry

    def _read(self) -> int:
        """Takes in what is there and returns the size up to the last whole line, in bytes."""
        size = 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                self._take(self._entry(line, number))
                size += len(line)
        return size

    def _entry(self, line: bytes, number: int) -> Entry:
        try:
            fields: dict[str, Any] = json.loads(line)
            given = {**fields, "tokens": Tokens(**fields["tokens"]), "why": tuple(fields["why"])}
            return Entry(**given)
        except (ValueError, TypeError, KeyError) as error:
            raise AnnotationError(
                f"{self.path}, line {number}, is no line of a journal ({error!r:.80}). Take the line out, or move the file "
                "away, and with it what was paid for; or name another --out."
            ) from error

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two runs at once would pay twice, and nothing is lost
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AnnotationError(
                f"Another process is annotating into {self.path}. Wait for it, or name another --out."
            ) from None


_GO_ON = "What was written before stays: free some space (df -h) and run the same command again."


def _why(correction: Correction) -> tuple[str, ...]:
    if correction.outcome == "failed":
        return (correction.reason,)
    refusing = (finding.check for finding in correction.findings if finding.action == "keep")
    return tuple(dict.fromkeys(refusing)) or ((correction.reason,) if correction.outcome == "kept" else ())
