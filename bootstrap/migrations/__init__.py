"""The revisions of our databases, run by Alembic: a folder for each kind of database, a file for each revision."""
