"""What keeps a writer out that lost its right to write while it was at work."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Connection


class Fence(Protocol):
    """Is asked inside the transaction that writes, so that nothing can change between the answer and the commit.

    A process that holds a lease may sleep past its end, wake up and go on as if nothing had happened. What it writes then
    must not count, since another process has taken over.
    """

    def check(self, connection: Connection) -> None:
        """Returns where the writer still has its right; whatever it raises undoes the transaction."""
