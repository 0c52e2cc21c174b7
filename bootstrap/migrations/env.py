"""What Alembic runs to upgrade a database: in the transaction that it is given, and with no settings of its own."""

from __future__ import annotations

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    version_table=attributes["version_table"],
    render_as_batch=True,  # SQLite changes a table only by making it anew
    transactional_ddl=True,  # all revisions or none: the transaction is the caller's
)
context.run_migrations()
