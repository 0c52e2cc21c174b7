"""What a lease gives to those who write under it."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Connection


class Fence(Protocol):
    """Says, inside a transaction, whether its owner may still write."""

    def check(self, connection: Connection) -> None:
        """Raises `LeaseLostError` where the lease is somebody else's by now; the transaction is rolled back by it."""
