"""What people said of a correction, which is found by its message or run too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_DOCUMENT = sa.JSON().with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "feedback",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("value", _DOCUMENT, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("correction_id", "message_id", "run_id", "author")),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("feedback_by_correction", "feedback", ["correction_id"])
    op.create_index("feedback_by_message", "feedback", ["message_id"])
    op.create_index("feedback_by_run", "feedback", ["run_id"])
    op.create_index("corrections_by_message", "corrections", ["message_id"])
    op.create_index("corrections_by_run", "corrections", ["run_id"])
