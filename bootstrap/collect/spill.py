"""The log beside a store: records on a disk, one line of JSON each, until the store has them.

A folder holds one log for each living collector, in files that only it writes and that it keeps locked. The lock ends
with the process, however that ends, and then any other may adopt the file: put its records into the store and remove it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootstrap.errors import RecordError
from bootstrap.files import sync
from bootstrap.records import Record, json_of, record_of

_SUFFIX = ".jsonl"
_SEGMENT_BYTES = 16 << 20  # a file that has grown so large is followed by another, so that it can be removed
_READ_BYTES = 1 << 20
_ATTEMPTS = 5


def line_of(record: Record) -> bytes:
    """A record as one line.

    Raises:
        RecordError: it cannot be written as it is.
    """
    # ASCII: what a model wrote may hold half a character, which JSON escapes and no encoding can.
    return json_of(record).encode("ascii") + b"\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """The next lines of a log: what they hold, how many of them nobody can read, and where they end, in bytes."""

    records: Sequence[Record]
    torn: int
    end: int


class Segment:
    """One file of a log, locked as long as it is open.

    `start` is where the first line is that the store does not have yet, `size` where the last whole line ends, in bytes.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path, self._descriptor = path, descriptor
        self.start, self.size = 0, size
        self._torn = False  # behind `size` is part of a line that could not be taken back

    @classmethod
    def create(cls, folder: Path) -> Segment:
        """A new, empty file with a name of its own."""
        for _ in range(_ATTEMPTS):  # between its making and its locking another process may take it for abandoned
            path = folder / f"{os.getpid()}-{uuid.uuid4().hex}{_SUFFIX}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            try:
                # Nobody else may read what was collected, also where the folder is shared.
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            except FileNotFoundError:  # another process has just removed the folder, which was empty
                continue
            if _locked(descriptor):
                return cls(path, descriptor, 0)
            os.close(descriptor)
        raise OSError(errno.EAGAIN, f"a new file in {folder} was taken by others again and again")

    @classmethod
    def adopt(cls, path: Path) -> Segment | None:
        """The file of a process that has ended; None where its owner lives, or another has adopted it."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return None
        if _locked(descriptor):
            return cls(path, descriptor, os.fstat(descriptor).st_size)
        os.close(descriptor)
        return None

    @property
    def full(self) -> bool:
        """Whether another file should follow: it is large, its end is torn, or somebody has removed it."""
        return self.size >= _SEGMENT_BYTES or self._torn or not os.fstat(self._descriptor).st_nlink

    @property
    def done(self) -> bool:
        """Whether the store has all of it."""
        return self.start >= self.size

    def append(self, lines: bytes, *, fsync: bool = False) -> None:
        """Writes whole lines, all or none.

        Raises:
            OSError: the disk is full, or fails.
        """
        try:
            if os.write(self._descriptor, lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if fsync:
                os.fsync(self._descriptor)
        except OSError:
            self._take_back()
            raise
        self.size += len(lines)

    def _take_back(self) -> None:
        """Cuts off what is behind the last whole line; where even that fails, nothing may be written behind it."""
        self._torn = True
        os.ftruncate(self._descriptor, self.size)
        self._torn = False

    def read(self, lines: int) -> Piece | None:
        """The next lines that the store does not have, at most so many; None where there are no more."""
        if self.done:
            return None
        found, end = self._lines(lines)
        records = [record for line in found if (record := _read(line)) is not None]
        return Piece(records=records, torn=len(found) - len(records), end=end)

    def empty(self) -> None:
        """Forgets all lines."""
        os.ftruncate(self._descriptor, 0)
        self.start = self.size = 0
        self._torn = False

    def remove(self) -> None:
        """Removes the file, which stays locked until it is closed."""
        self.empty()  # the folder may have been moved, and then its old path names nothing
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unlocks the file and leaves it."""
        os.close(self._descriptor)

    def _lines(self, most: int) -> tuple[list[bytes], int]:
        wanted = _READ_BYTES
        while True:
            block = os.pread(self._descriptor, min(wanted, self.size - self.start), self.start)
            whole = block.split(b"\n")[:-1][:most]
            if whole:
                return whole, self.start + sum(map(len, whole)) + len(whole)
            if self.start + len(block) >= self.size or not block:
                return [block], self.size  # its writer was killed in the middle of it
            wanted *= 4


class Log:
    """The log of one collector in a folder; safe to use from many threads.

    Args:
        folder: made at the first use, but not the folders above it: a disk that is not mounted shall not be hidden by
            what is written in its place.
        fsync: whether `append` waits until the disk has it.
    """

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        self.folder, self.fsync = folder, fsync
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.lock = threading.Lock()  # guards the files below; held while one is written
        self._own: deque[Segment] = deque()  # oldest first; the last one is written to
        self._adopted: Segment | None = None

    def append(self, lines: bytes) -> None:
        """Writes whole lines, all or none. They are in the hands of the system, or on the disk with `fsync`.

        Raises:
            OSError: the folder is away, or the disk is full or fails.
        """
        with self.lock:
            if not self._own or self._own[-1].full:
                self._own.append(self._create())
            self._own[-1].append(lines, fsync=self.fsync)

    def read(self, lines: int) -> Piece | None:
        """The oldest lines of this log that are still in it, at most so many; None where it is empty."""
        with self.lock:
            while len(self._own) > 1 and self._own[0].done:  # another followed it, though it was not large
                self._remove_oldest()
            segment = self._own[0] if self._own else None
        return None if segment is None else segment.read(lines)

    def stored(self, piece: Piece) -> None:
        """Forgets lines that `read` gave: the store has them."""
        with self.lock:
            segment = self._own[0]
            segment.start = piece.end
            if not segment.done:
                return
            if len(self._own) == 1:
                segment.empty()
            else:
                self._remove_oldest()

    def abandoned(self) -> Iterator[Segment]:
        """The files of processes that have ended, each locked while it is the current one."""
        for path in self.names():
            with self.lock:
                self._adopted = Segment.adopt(path)
            if self._adopted is None:
                continue
            try:
                yield self._adopted
            finally:
                with self.lock:
                    self._adopted.close()
                    self._adopted = None

    def names(self) -> list[Path]:
        """All files in the folder that hold a log, of living processes too; the oldest names first."""
        with contextlib.suppress(OSError):
            return sorted(path for path in self.folder.iterdir() if path.suffix == _SUFFIX)
        return []

    def close(self) -> None:
        """Removes what is empty and leaves the rest to whoever adopts it."""
        with self.lock:
            while self._own:
                if self._own[0].done:
                    self._remove_oldest()
                else:
                    self._own.popleft().close()
        with contextlib.suppress(OSError):  # others use it, or it was never made
            self.folder.rmdir()

    def forget(self) -> None:
        """Lets go of the files in a forked child: they are its parent's, and locked for as long as anyone has them open."""
        segments = [*self._own, *filter(None, [self._adopted])]
        for segment in segments:
            segment.close()
        self._start_afresh()

    def _remove_oldest(self) -> None:
        self._own[0].remove()
        self._own.popleft().close()

    def _create(self) -> Segment:
        segment = Segment.create(self.folder)
        if self.fsync:
            sync(self.folder)
            sync(self.folder.parent)
        return segment


def _read(line: bytes) -> Record | None:
    try:
        return record_of(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecordError):  # cut off, or damaged
        return None


def _locked(descriptor: int) -> bool:
    """Locks an open file for as long as it is open. False: another has it, or has removed it."""
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOTSUP, "a log needs flock, which this system does not have") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0
