"""The tables of a registry's database: versions, pairs, what was served when, rounds with their stages, and leases.

`bootstrap.migrations` makes them in a database, revision by revision; this is what they are at the newest one.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, MetaData, Table, Text

from bootstrap.database import Schema

METADATA = MetaData()
VERSIONS = Table(
    "versions",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("created", Text, nullable=False),
    Column("manifest", JSON, nullable=False),
    # name -> its sha256 and size; NULL of versions that were saved before this was noted
    Column("files", JSON(none_as_null=True)),
    Column("removed", Text),  # when the weights were removed; the row stays, so that its number is never given again
)
PAIRS = Table(
    "pairs",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("upstream", Integer),
    Column("aligner", Integer, nullable=False),
    Column("created", Text, nullable=False),
    Column("figures", JSON, nullable=False),
)
# One row each time the served pair changed; the last one's pair is served. `back` is the row a rollback returns to.
EVENTS = Table(
    "events",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("action", Text, nullable=False),
    Column("pair", Integer, nullable=False),
    Column("back", Integer),
    Column("time", Text, nullable=False),
    # the servers that the Aligner runs on; NULL where each application loads it
    Column("servers", JSON(none_as_null=True)),
)
# One row for each round. `fire_key` names what started it and is there once: two processes cannot start the same round.
ROUNDS = Table(
    "rounds",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("fire_key", Text, unique=True),
    Column("status", Text, nullable=False),
    Column("config_hash", Text, nullable=False),
    Column("parent", Integer),  # the pair that was served when it was planned
    Column("pair", Integer),  # the pair that it promoted
    Column("reason", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    Index("rounds_by_status", "status"),
)
# One row for each stage that was begun. `result` is what the stages after it read, beside the files it left.
STAGES = Table(
    "stages",
    METADATA,
    Column("round", Integer, primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("result", JSON, nullable=False),
    Column("sha256", Text, nullable=False),  # of the files it left
    Column("error", Text, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
)
# `token` grows each time a lease changes hands, so that whoever lost it can be told from whoever has it.
LEASES = Table(
    "leases",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
)
SCHEMA = Schema("registry", METADATA)
