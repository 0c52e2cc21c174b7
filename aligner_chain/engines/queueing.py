"""What waits for an engine: each caller gets its turn, however much another has brought."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from aligner_chain.errors import OverloadedError

Row = TypeVar("Row")
"""What an engine serves."""


class Waiting(Generic[Row]):
    """Rows by the call that brought them; the calls take turns. Not locked: its owner is."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: deque[deque[Row]] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._calls))

    def add(self, rows: Sequence[Row]) -> None:
        """Lines up the rows of one call. Raises `OverloadedError` where others wait and there is no room left."""
        waiting = len(self)
        if waiting and waiting + len(rows) > self._limit:
            raise OverloadedError(
                f"{waiting} requests wait already, and the engine takes {self._limit}. Ways out: call again later, run "
                "more processes or servers, or give the engine a longer queue (max_waiting=)."
            )
        if rows:
            self._calls.append(deque(rows))

    def first(self) -> Row:
        """The row whose turn it is."""
        return self._calls[0][0]

    def take(self) -> Row:
        """Takes that row out; the turn goes to the next call."""
        call = self._calls.popleft()
        row = call.popleft()
        if call:
            self._calls.append(call)
        return row

    def put_back(self, rows: Sequence[Row]) -> None:
        """Lines up rows that had their turn already, before all others."""
        if rows:
            self._calls.appendleft(deque(rows))

    def all(self) -> list[Row]:
        """Every row, the first of the first call being the first."""
        return [row for call in self._calls for row in call]

    def remove(self, rows: Sequence[Row]) -> None:
        """Takes out given rows."""
        gone = set(map(id, rows))
        left = (deque(row for row in call if id(row) not in gone) for call in self._calls)
        self._calls = deque(call for call in left if call)
