"""The bands by which near-duplicates are found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "neighbours",
        sa.Column("scope", _KEY, primary_key=True),
        sa.Column("key", _KEY, primary_key=True),
        sa.Column("band", sa.SmallInteger, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_index("neighbours_by_value", "neighbours", ["scope", "band", "value"])
