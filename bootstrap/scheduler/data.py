"""What is new in a store, cheaply enough to be asked every half minute."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select

from bootstrap.scheduler.firing import NewPairs, milliseconds
from bootstrap.store import CorrectionStore
from bootstrap.tables import CORRECTIONS


def new_pairs(store: CorrectionStore) -> NewPairs:
    """Counts a store's corrections of the training split that changed their answer.

    It is the most pairs that a round can find: filters leave some out, and which ones is known only when it builds them.
    """

    def count(since: datetime) -> int:
        columns = CORRECTIONS.c
        new = (columns.at_ms >= milliseconds(since), columns.split == "train", columns.outcome == "corrected")
        with store.database.read() as connection:
            return connection.execute(select(func.count()).select_from(CORRECTIONS).where(*new)).scalar_one()

    return count
