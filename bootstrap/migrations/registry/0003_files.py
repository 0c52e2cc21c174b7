"""The files of each version with their hashes, and when its weights were removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("versions", sa.Column("files", sa.JSON))
    op.add_column("versions", sa.Column("removed", sa.Text))
