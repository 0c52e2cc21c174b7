"""The collector: what a chain hands its corrections to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from aligner_chain import serving
from bootstrap.collect import lifecycle
from bootstrap.collect.counting import Counters
from bootstrap.collect.spill import Log
from bootstrap.collect.writer import Redact, Writer
from bootstrap.records import Record
from bootstrap.redact import Redactor

if TYPE_CHECKING:
    from types import TracebackType

    from aligner_chain.exchange import Correction
    from bootstrap.store import CorrectionStore

DEFAULT_REDACTOR = Redactor()


class Collector:
    """Takes corrections from a chain at once and writes them to a store behind its back.

        collector = Collector(CorrectionStore("corrections.db"))
        chain = prompt | llm | AlignerCorrector(on_correction=collector.submit)

    By default corrections wait in memory for the one thread that redacts them and writes them in batches. Where memory is
    nearly full, or the store cannot be written, they go to a log of JSON lines on the disk, redacted, and from there to
    the store when it is back, also after a restart. A kill loses what was in memory: never more than `capacity`, and
    while the store keeps up what came in the last tenth of a second. With `durable=True` it loses nothing whose
    `submit` returned True: each correction is in the log before that. docs/collecting.md tells all of it.

    What waits is written at the interpreter's exit (for at most 10 s), by `flush` and by `close`. No error of a store, a
    disk or a redactor reaches the chain: it is logged, once of each kind, and counted. A forked child starts with an
    empty memory, a log and a thread of its own.

    Args:
        store: where corrections are written.
        durable: whether `submit` redacts and logs a correction before it returns. It then survives the end of the process.
        fsync: with `durable`, whether it also survives a loss of power. `submit` then waits for the disk.
        capacity: the most corrections that are in memory at a time; further ones are refused and counted.
        spill: the folder of the log, which collectors and processes with the same store share. Default: beside a SQLite
            file, for a server's database below `aligner_chain.serving.home()`.
        redact: takes personal data out of a correction before it is written anywhere; called from any thread. None
            writes corrections as they are.
        unchanged: the share of unchanged answers to keep, 0 to 1, chosen by the hash of the correction's id. Records
            hold the inverse as their `weight`. Changed answers and failures are always kept.
        flush_on_sigterm: whether SIGTERM flushes first where the application has no handler of its own for it.

    Raises:
        ValueError: an argument is out of its range, or `flush_on_sigterm` was asked for in another than the main thread.
    """

    def __init__(
        self,
        store: CorrectionStore,
        *,
        durable: bool = False,
        fsync: bool = False,
        capacity: int = 10_000,
        spill: str | os.PathLike[str] | None = None,
        redact: Redact | None = DEFAULT_REDACTOR,
        unchanged: float = 1.0,
        flush_on_sigterm: bool = False,
    ) -> None:
        _check(durable=durable, fsync=fsync, capacity=capacity, unchanged=unchanged)
        if flush_on_sigterm:
            lifecycle.flush_on_sigterm()
        self._unchanged = unchanged
        log = Log(_folder(store) if spill is None else Path(spill).expanduser().absolute(), fsync=fsync)
        self._writer = Writer(store, log, capacity=capacity, durable=durable, redact=redact)
        lifecycle.watch(self._writer)
        # The writer's thread knows the writer and not this object: a collector that nobody holds any more can go, and
        # its thread ends once it has done its work. Waiting for that would be wrong in a garbage collection.
        weakref.finalize(self, self._writer.stop).atexit = False

    def submit(self, correction: Correction) -> bool:
        """Takes one correction to be written. Neither waits for the store nor raises; safe to call from any thread.

        Returns:
            False where it was refused, or in durable mode could not be logged. True where it was taken, or left out by
            the sampling.
        """
        weight = self._weight(correction)
        if weight:
            return self._writer.submit(Record(correction=correction, weight=weight))
        self._writer.memory.count(submitted=1, sampled_out=1)
        return True

    def flush(self, timeout: float | None = None) -> bool:
        """Tries at once to bring to the store all that was submitted before and what is in the log.

        Args:
            timeout: the longest wait in seconds; None waits until it was tried.

        Returns:
            Whether all of it is in the store, or has failed for good. False where the time was over before, or the store
            is away; what waits then is in the log, or in memory where that cannot be written either.
        """
        return self._writer.flush(timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Takes nothing more and does as `flush`; safe to call again. What is submitted afterwards is refused."""
        self._writer.stop()
        return self._writer.flush(timeout)

    @property
    def counters(self) -> Counters:
        """What became of the corrections so far."""
        return self._writer.memory.counters()

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _weight(self, correction: Correction) -> float:
        """The inverse of the probability with which it is kept; 0 where it is not."""
        if self._unchanged == 1 or getattr(correction, "changed", True) or correction.outcome == "failed":
            return 1.0
        digest = hashlib.sha256(correction.id.encode("utf-8", "surrogatepass")).digest()
        return 1 / self._unchanged if int.from_bytes(digest[:6]) < self._unchanged * 2**48 else 0.0


def _check(*, durable: bool, fsync: bool, capacity: int, unchanged: float) -> None:
    if fsync and not durable:
        raise ValueError("fsync=True needs durable=True: without it submit writes nothing that could be waited for")
    if capacity < 1:
        raise ValueError(f"capacity is a number of corrections, at least 1, not {capacity!r}")
    if not 0 <= unchanged <= 1:
        raise ValueError(f"unchanged is a share from 0 to 1, not {unchanged!r}")


def _folder(store: CorrectionStore) -> Path:
    """Where the log of a store is: beside its file, or in the data folder under a hash of the server and database."""
    path: Path | None = getattr(store, "path", None)
    if path is not None:
        return path.with_name(f"{path.name}-spill")
    from sqlalchemy.engine import make_url

    # Without the password: it may change between two starts.
    url = make_url(str(getattr(store, "url", ""))).set(password=None).render_as_string()
    folder = serving.home() / "spill" / hashlib.sha256(url.encode()).hexdigest()[:16]
    with contextlib.suppress(OSError):  # it is tried again, and said, where something has to go there
        folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
