"""Corrections of live traffic, one row each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_DOCUMENT = sa.JSON().with_variant(sa.Text(), "sqlite")
_IDENTIFIERS = ("upstream", "message_id", "run_id", "subject", "tenant", "split_key")
_DOCUMENTS = (
    "turns",
    "answer",
    "context",
    "text",
    "reason",
    "edits",
    "scores",
    "thresholds",
    "criteria",
    "findings",
    "usage",
)


def upgrade() -> None:
    op.create_table(
        "corrections",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("prompt", _KEY, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("outcome", "aligner", "template", "redactor")),
        *(sa.Column(name, sa.Text) for name in _IDENTIFIERS),
        *(sa.Column(name, _DOCUMENT, nullable=False) for name in _DOCUMENTS),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("corrections_by_split", "corrections", ["split", "id"])
    op.create_index("corrections_by_prompt", "corrections", ["prompt", "split", "id"])
