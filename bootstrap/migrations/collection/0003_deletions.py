"""Tombstones of what was deleted, and the indexes by which it is found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "tombstones",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("key", _KEY, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("corrections_by_subject", "corrections", ["subject", "tenant"])
    op.create_index("corrections_by_time", "corrections", ["at_ms"])
    op.create_index("feedback_by_time", "feedback", ["at_ms"])
