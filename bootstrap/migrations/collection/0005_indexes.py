"""Indexes that hold only what is looked for by them: each costs time with every record that is collected."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    _narrow("corrections_by_prompt", ["prompt", "split", "id"], "split != 'train'")
    _narrow("corrections_by_message", ["message_id"], "message_id IS NOT NULL")
    _narrow("corrections_by_run", ["run_id"], "run_id IS NOT NULL")
    _narrow("corrections_by_subject", ["subject", "tenant"], "subject IS NOT NULL")


def _narrow(name: str, columns: list[str], condition: str) -> None:
    op.drop_index(name, "corrections")
    where = sa.text(condition)
    op.create_index(name, "corrections", columns, sqlite_where=where, postgresql_where=where)
