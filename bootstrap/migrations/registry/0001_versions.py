"""Versions of models, pairs of them, and every change of the pair that is served."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "versions",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("created", sa.Text, nullable=False),
        sa.Column("manifest", sa.JSON, nullable=False),
    )
    op.create_table(
        "pairs",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("upstream", sa.Integer),
        sa.Column("aligner", sa.Integer, nullable=False),
        sa.Column("created", sa.Text, nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("pair", sa.Integer, nullable=False),
        sa.Column("back", sa.Integer),
        sa.Column("time", sa.Text, nullable=False),
    )
