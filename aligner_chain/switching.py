"""The served pair in memory: it follows promotions between requests, and no request waits for one.

A request takes a `Lease` of a model of the pair that is in memory and keeps that version to its end. Every so often one of
them looks at `served.json` with a single `stat`. If it was replaced, a thread loads the new pair and runs each of its models
once while the old pair goes on answering; then the new pair takes over in one step, all of it together. The old one is closed
when its last lease has ended, and no third one is loaded before. Where loading fails, the old pair stays.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from aligner_chain import telemetry
from aligner_chain.errors import ConfigurationError
from aligner_chain.serving import FILE_NAME, Kind, Served, not_served, read_served

VARIABLE = "ALIGNER_FOLLOW"
EVERY_S = 0.5
"""Seconds between two looks at `served.json`, where `ALIGNER_FOLLOW` says nothing else."""
SWITCHED, FAILED = "aligner.pair.switched", "aligner.pair.failed"
"""The counters of `telemetry`: pairs that took over, and pairs that could not be loaded."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """One model of a pair, as somebody wants it in memory."""

    kind: Kind
    device: str = "auto"
    dtype: str = "auto"


class Loader(Protocol):
    """What knows how to bring the models of a pair into memory and out of it."""

    def open(self, served: Served, part: Part) -> Any:
        """Loads a model of a pair. Raises `ConfigurationError` where the pair has none, or it cannot be loaded."""

    def warm(self, model: Any) -> None:
        """Runs a model once. Raises what it raises."""

    def close(self, model: Any) -> None:
        """Frees a model that no lease holds any more."""


class Pair:
    """A pair with those of its models that somebody asked for, and the requests that run on it."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.models: dict[Part, Any] = {}
        # A set and no number: a lease can end within a garbage collection, at any place of any thread.
        self.leases: set[object] = set()


class Lease:
    """One request's hold of a model: neither the model nor its version changes before the block is left."""

    def __init__(self, follower: Follower, pair: Pair, part: Part) -> None:
        self.served, self.model = pair.served, pair.models[part]
        self._follower, self._pair = follower, pair
        pair.leases.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Gives the model back; ended twice is ended."""
        self._pair.leases.discard(self)
        self._follower.ended(self._pair)


class Follower:
    """The pair that a registry's folder serves, loaded part by part at first use and then switched as a whole.

    Threads and tasks may share it. At most two pairs are in memory: the one that answers, and the one before or after it.
    """

    def __init__(self, home: Path, loader: Loader) -> None:
        self.home, self._loader = home, loader
        # Reentrant, since a lease that ends within a garbage collection may find its own thread in here.
        self._changed = threading.Condition(threading.RLock())
        self._loading = threading.Lock()
        self._pair: Pair | None = None
        self._before: Pair | None = None
        self._seen = self._stamp()
        self._next_look = 0.0
        self._asked = self._done = 0
        """How often `served.json` was seen to change, and how many of these times were dealt with."""
        self._worker: threading.Thread | None = None

    @property
    def served(self) -> Served | None:
        """The pair that the next request gets; None where none was loaded yet."""
        self._look()
        pair = self._pair
        return None if pair is None else pair.served

    @property
    def draining(self) -> Served | None:
        """The pair before it, while a request still runs on that."""
        before = self._before
        return None if before is None else before.served

    def at_hand(self, part: Part) -> Lease | None:
        """A lease of a model that is in memory, or None. Waits for nothing."""
        self._look()
        with self._changed:
            pair = self._pair
            return None if pair is None or part not in pair.models else Lease(self, pair, part)

    def lease(self, part: Part) -> Lease:
        """A lease of a model, which is loaded first where it is not in memory. Raises the errors of loading."""
        while (lease := self.at_hand(part)) is None:
            self.load(part)
        return lease

    async def alease(self, part: Part) -> Lease:
        """`lease` without blocking the event loop. It is taken here and not in a thread, where cancelling would lose it."""
        while (lease := self.at_hand(part)) is None:
            await asyncio.to_thread(self.load, part)
        return lease

    def load(self, part: Part) -> None:
        """Brings a model of the pair into memory in the caller's thread: nobody can be answered without it."""
        with self._loading:
            busy = object()
            with self._changed:
                if self._pair is not None and part in self._pair.models:
                    return
                pair = self._pair or Pair(self._first(part.kind))
                pair.leases.add(busy)
            try:
                model = self._loader.open(pair.served, part)
                with self._changed:
                    pair.models[part] = model
                    self._pair = self._pair or pair
            finally:
                pair.leases.discard(busy)
                self.ended(pair)

    def catch_up(self, timeout: float | None = None) -> bool:
        """Looks at once and waits until the pair that is served now answers, or was found to be broken.

        Args:
            timeout: seconds; None: without end.

        Returns:
            Whether that came to its end in time.
        """
        self._next_look = 0.0
        self._look()
        with self._changed:
            asked = self._asked
            return self._changed.wait_for(lambda: self._done >= asked, timeout)

    def ended(self, pair: Pair) -> None:
        """Hears of a lease's end."""
        if pair is self._before:
            with self._changed:
                self._changed.notify_all()

    def _look(self) -> None:
        """Looks at `served.json`, if it is time to, and has a thread deal with what changed."""
        now = time.monotonic()
        if now < self._next_look or (every := follow_every()) is None:
            return
        self._next_look = now + every
        stamp = self._stamp()
        with self._changed:
            if stamp == self._seen:
                return
            self._seen = stamp
            if self._pair is None:
                return  # the first load reads it anyway
            self._asked += 1
            if self._worker is None:
                self._worker = threading.Thread(target=self._follow, name="aligner-chain-follower", daemon=True)
                self._worker.start()
            self._changed.notify_all()

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = (self.home / FILE_NAME).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _first(self, kind: Kind) -> Served:
        self._seen = self._stamp()  # before it is read: what is written in between is seen by the next look
        served = read_served(self.home)
        if served is None:
            raise not_served(kind, self.home)
        return served

    def _follow(self) -> None:
        """The thread: reads what is served, switches to it, closes what was before, and ends when all that is done."""
        wanted, seen = None, self._done
        while True:
            with self._changed:
                if self._done == self._asked and self._before is None:
                    self._worker = None
                    return
                self._changed.wait_for(partial(self._has_work, seen))
                spent = self._before if self._is_spent() else None
                new, seen = self._asked > seen, self._asked
            if spent is not None:
                self._close(spent)
            if new:
                wanted = self._read()
            if wanted is not None and self._switch(wanted):
                wanted = None
            if wanted is None:
                with self._changed:
                    self._done = seen
                    self._changed.notify_all()

    def _has_work(self, seen: int) -> bool:
        return self._asked > seen or self._is_spent()

    def _is_spent(self) -> bool:
        return self._before is not None and not self._before.leases

    def _close(self, spent: Pair) -> None:
        # Whoever loads a first part meanwhile might be handed a model that is just being closed.
        with self._loading:
            staying = [] if self._pair is None else list(self._pair.models.values())
            for model in spent.models.values():
                if not any(model is one for one in staying):
                    self._loader.close(model)
        self._before = None

    def _read(self) -> Served | None:
        try:
            served = read_served(self.home)
            if served is None:
                raise ConfigurationError("It is gone. Write it anew:  aligner-bootstrap registry sync")
        except ConfigurationError as error:
            self._failed("It", error)
            return None
        return served

    def _switch(self, wanted: Served) -> bool:
        """Makes `wanted` the pair that answers. False: it must wait until the pair before has ended."""
        with self._changed:
            pair, before = self._pair, self._before
            if pair is None or wanted == pair.served:
                return True
            if before is not None:
                if wanted != before.served:
                    return False
                self._pair, self._before = before, pair  # a rollback to what is still in memory
        if before is None:
            try:
                models = self._opened(wanted, pair)
            except Exception as error:  # noqa: BLE001  Whatever is wrong with the new pair, the old one goes on.
                self._failed(f"Pair {wanted.pair}", error)
                return True
            new = Pair(wanted)
            new.models = models
            with self._changed:
                self._pair, self._before = new, pair
        telemetry.count(SWITCHED)
        _LOG.info("Pair %s answers from now on, after pair %s.", wanted.pair, pair.served.pair)
        return True

    def _opened(self, wanted: Served, pair: Pair) -> dict[Part, Any]:
        """The models of `wanted` that are in use of the pair before; one that both pairs share stays as it is."""
        with self._changed:
            used: Mapping[Part, Any] = dict(pair.models)
        models: dict[Part, Any] = {}
        opened: list[Any] = []
        try:
            for part, model in used.items():
                if wanted.model(part.kind) == pair.served.model(part.kind):
                    models[part] = model
                    continue
                opened.append(self._loader.open(wanted, part))
                models[part] = opened[-1]
                self._loader.warm(opened[-1])
        except BaseException:
            for model in opened:
                self._loader.close(model)
            raise
        return models

    def _failed(self, what: str, error: Exception) -> None:
        telemetry.count(FAILED)
        answering = self._pair.served.pair if self._pair else None
        _LOG.warning(
            "%s was replaced. %s cannot be loaded, so pair %s goes on answering: %s\n"
            "It is tried again when the file changes again: serve the pair before with  aligner-bootstrap rollback  , or "
            "put in order what is broken and promote it again with  aligner-bootstrap promote",
            self.home / FILE_NAME,
            what,
            answering,
            error,
        )


def follow_every() -> float | None:
    """Seconds between two looks at `served.json`, as `ALIGNER_FOLLOW` says; None: "off", nothing is followed.

    Raises:
        ConfigurationError: it is neither a number from 0 on nor "off".
    """
    told = os.environ.get(VARIABLE, "").strip().lower()
    if not told:
        return EVERY_S
    if told == "off":
        return None
    try:
        every = float(told)
    except ValueError:
        every = -1.0
    if not 0 <= every < float("inf"):
        raise ConfigurationError(
            f"{VARIABLE} is {told!r}. It is the seconds between two looks at {FILE_NAME}, such as {EVERY_S}, or off:\n"
            f"export {VARIABLE}=off"
        )
    return every
