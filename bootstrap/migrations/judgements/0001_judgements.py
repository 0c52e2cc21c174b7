"""What a model said when it was asked to judge, by the hash of all that it was shown."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "judgements",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("judge", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
