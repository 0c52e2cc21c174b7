"""Leases: of several processes, on one machine or many, one at a time does a thing.

A lease ends by itself, so a killed owner blocks nobody for longer than its time. For the same reason an owner that was
stopped for a while (a paused container, a laptop's lid) may believe in a lease that has long been somebody else's. No
clock can prevent that; so a lease has a token that grows with each change of hands, and every transaction that matters
asks `Lease.check` first (Kleppmann 2016, "How to do distributed locking", calls this fencing).

What is guaranteed, whatever clocks do: of all leases of one name at most one passes `check`. What depends on clocks is
only how soon a lease that its owner no longer renews is free:

- On PostgreSQL, ends are set and compared by the server's clock. The clocks of processes do not matter.
- In a file, they are by the host's. Set forward, it lets leases end early, and their owners are fenced off. Set back, it
  makes a dead owner's lease last longer, though never by more than `LONGEST_S`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, and_, cast, extract, func, literal, or_, select, update

from bootstrap.database import Database, insert_into
from bootstrap.errors import LeaseLostError, StoreError

LONGEST_S = 3600.0
"""No lease is given for longer, so an end that is further away was written by a clock that has been set back since."""

_NOBODY = ""


class Leases:
    """The leases of a database. Threads and processes may share it.

    Args:
        database: one whose schema has a table `leases`, as the registry's has.
        clock: seconds since the epoch; used for a file only, a server has its own.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self.database = database
        self._rows = _Rows(database, clock)

    def take(self, name: str, *, ttl_s: float = 60.0, owner: str | None = None) -> Lease | None:
        """Takes a lease, or returns None where somebody has it, be it under the same owner's name.

        Args:
            name: what it is for.
            ttl_s: seconds until it ends, unless it is renewed; at most `LONGEST_S`.
            owner: who takes it, for people to read. Default: host, process and a random part.

        Raises:
            ValueError: `ttl_s` is not above 0 and at most `LONGEST_S`, or `owner` is empty.
            StoreError: the database cannot be used.
        """
        if not 0 < ttl_s <= LONGEST_S:
            raise ValueError(f"ttl_s must be above 0 and at most {LONGEST_S:g} seconds, not {ttl_s!r}")
        if owner == _NOBODY:
            raise ValueError("owner must not be empty; leave it out to have one made")
        owner = owner or _myself()
        token = self._rows.take(name, owner, ttl_s)
        return None if token is None else Lease(name=name, owner=owner, token=token, _rows=self._rows, _ttl_s=ttl_s)


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to do one thing, until it ends. It is a `Fence`.

    An end that has passed takes nothing away as long as nobody else took the lease: it can be renewed then too.
    """

    name: str
    owner: str
    token: int
    _rows: _Rows = field(repr=False, compare=False)
    _ttl_s: float = field(repr=False, compare=False)
    _lost: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    @property
    def lost(self) -> bool:
        """Whether the thread of `held` found that it is lost. False does not mean that it is not: see `check`."""
        return self._lost.is_set()

    def renew(self) -> None:
        """Puts the end off to the full time from now.

        Raises:
            LeaseLostError: somebody else took it, or it was released.
            StoreError: the database cannot be used; the lease ends when it would have.
        """
        self._rows.renew(self, self._ttl_s)

    def release(self) -> None:
        """Gives it back. The lease of somebody else is left alone.

        Raises:
            LeaseLostError: it is no longer this owner's.
            StoreError: the database cannot be used; the lease ends by itself.
        """
        self._rows.release(self)

    def check(self, connection: Connection) -> None:
        """Makes sure that a transaction which is about to write may do so; to be asked before it writes.

        From here until the transaction ends nobody else can take the lease.

        Args:
            connection: a transaction of `Database.write` in the database that holds the lease.

        Raises:
            LeaseLostError: somebody else took it, or it was released.
        """
        self._rows.check(connection, self)

    @contextmanager
    def held(self) -> Iterator[Lease]:
        """Renews it every third of its time, in a thread, and releases it in the end; a loss is noted in `lost`."""
        done = threading.Event()
        thread = threading.Thread(target=self._keep, args=(done,), name=f"lease {self.name}", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()
            self._give_back()

    def _keep(self, done: threading.Event) -> None:
        renewed = time.monotonic()
        while not done.wait(self._ttl_s / 3):
            try:
                self.renew()
            except LeaseLostError:
                self._lost.set()
                return
            except StoreError:  # the database may be back before the lease ends
                if time.monotonic() - renewed > self._ttl_s:
                    self._lost.set()
                    return
            else:
                renewed = time.monotonic()

    def _give_back(self) -> None:
        try:
            self.release()
        except LeaseLostError:
            self._lost.set()
        except StoreError:  # it ends by itself, and what was done under it must not fail for that
            return


class _Rows:
    """The rows of the table, one for each name that was ever taken."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self._table = database.schema.tables.tables["leases"]

    def take(self, name: str, owner: str, ttl_s: float) -> int | None:
        """Writes an owner into the row of a name where it is free, and returns the token."""
        columns = self._table.c
        unused = {"name": name, "owner": _NOBODY, "token": 0, "expires_ms": 0}
        with self._database.write() as connection:
            connection.execute(insert_into(connection, self._table).values(unused).on_conflict_do_nothing())
            now = self._now_ms()
            free = or_(columns.owner == _NOBODY, columns.expires_ms <= now, columns.expires_ms > now + _ms(LONGEST_S))
            values = {"owner": owner, "token": columns.token + 1, "expires_ms": now + _ms(ttl_s)}
            taking = update(self._table).where(columns.name == name, free).values(values).returning(columns.token)
            token: int | None = connection.execute(taking).scalar_one_or_none()
        return token

    def renew(self, lease: Lease, ttl_s: float) -> None:
        """Puts the end of a lease off to so many seconds from now."""
        with self._database.write() as connection:
            self._change(connection, lease, expires_ms=self._now_ms() + _ms(ttl_s))

    def release(self, lease: Lease) -> None:
        """Takes the owner of a lease out of its row; the token stays."""
        with self._database.write() as connection:
            self._change(connection, lease, owner=_NOBODY, expires_ms=0)

    def check(self, connection: Connection, lease: Lease) -> None:
        """Raises `LeaseLostError` where a lease is no longer its owner's."""
        # The row is locked until the transaction ends: on PostgreSQL writers may share, and `take` has to wait then.
        held = select(self._table.c.token).where(self._held_by(lease)).with_for_update(read=True)
        if connection.execute(held).one_or_none() is None:
            raise self._lost(connection, lease)

    def _change(self, connection: Connection, lease: Lease, **values: Any) -> None:
        changing = update(self._table).where(self._held_by(lease)).values(values)
        if not connection.execute(changing).rowcount:
            raise self._lost(connection, lease)

    def _now_ms(self) -> ColumnElement[int]:
        """The time, in milliseconds since the epoch, by the one clock that all who share the database go by.

        To be asked for inside the transaction: it may have waited for others before it began.
        """
        if self._database.path is not None:
            return literal(_ms(self._clock()), BigInteger)
        # Not now(): PostgreSQL means the time at which the transaction asked to begin.
        return cast(extract("epoch", func.clock_timestamp()) * 1000, BigInteger)

    def _held_by(self, lease: Lease) -> ColumnElement[bool]:
        columns = self._table.c
        return and_(columns.name == lease.name, columns.owner == lease.owner, columns.token == lease.token)

    def _lost(self, connection: Connection, lease: Lease) -> LeaseLostError:
        row = connection.execute(select(self._table).where(self._table.c.name == lease.name)).one_or_none()
        holder = "nobody" if row is None or row.owner == _NOBODY else f"{row.owner} (token {row.token})"
        return LeaseLostError(
            f"The lease {lease.name!r} of {lease.owner} (token {lease.token}) is no longer its own, {holder} has it: it "
            "was released, or this process was stopped for too long, or a clock was set forward.\nWhat was about to be "
            "written was not. Whoever has the lease goes on with the work; nothing needs to be done here."
        )


def _myself() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
