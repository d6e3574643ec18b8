"""The tables, as SQLAlchemy Core sees them. `sql/` holds the migrations that make them; a test keeps the two equal."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    true,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

from cassata.model import (
    APPLICATION_ID_LENGTH,
    BATCH_ID_LENGTH,
    DESTINATION_LENGTH,
    DETAIL_CHARACTERS,
    EVENT_ID_LENGTH,
    HOST_NAME_LENGTH,
    KEY_NAME_LENGTH,
    KEY_PREFIX_LENGTH,
    OPERATION_ID_LENGTH,
    SERIES_ID_LENGTH,
    SERIES_NAME_LENGTH,
    SESSION_LENGTH,
    URL_LENGTH,
)

VERSION = "0006"
"""The newest migration in `sql/versions`: what this code needs the database to be at."""


def ascii_string(length: int) -> TypeEngine[str]:
    """Text that no collation can fold or pad: two values are equal only if their bytes are."""
    return String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


ROW_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only an INTEGER PRIMARY KEY
PAYLOAD = LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
HASH = LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4"}
# SQLite would give a removed row's number, and with it its fences, to a new event.
NEVER_REUSED: dict[str, Any] = {"sqlite_autoincrement": True}

metadata = MetaData()

applications = Table(
    "applications",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", ascii_string(APPLICATION_ID_LENGTH), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("active", Boolean, nullable=False, server_default=true()),
    # Documents (JSON): what is set for this application alone.
    Column("limits", Text),
    Column("egress", Text),
    Column("metadata", Text),
    Column("secrets", Text),
    Column("changed_at", BigInteger, nullable=False, server_default="0"),
    Column("topics", Text),  # this and the next one are documents (JSON), too
    Column("stream", Text),
    Column("prioritized", Boolean, nullable=False, server_default=false()),  # whether any of its events has had a priority
    UniqueConstraint("application_id", name="applications_application_id"),
    # Whoever keeps applications in mind asks every second which of them have changed.
    Index("applications_changed", "changed_at"),
    **OPTIONS,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("prefix", ascii_string(KEY_PREFIX_LENGTH), nullable=False),
    Column("application", Integer),  # NULL: an operator's, for all of them
    Column("name", String(KEY_NAME_LENGTH), nullable=False),
    Column("scopes", ascii_string(32), nullable=False),
    Column("hash", HASH, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    UniqueConstraint("prefix", name="api_keys_prefix"),
    Index("api_keys_application", "application"),
    **OPTIONS,
)

# Sessions of browsers that were ended before their time, until they could not be used any more anyway.
ended_sessions = Table(
    "ended_sessions",
    metadata,
    Column("session", ascii_string(SESSION_LENGTH), primary_key=True),
    Column("kept_until", BigInteger, nullable=False),
    Index("ended_sessions_kept", "kept_until"),
    **OPTIONS,
)

# One row, numbered 1: random bytes that all services of this database share, and nobody else knows.
installation = Table(
    "installation",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("secret", HASH, nullable=False),
    **OPTIONS,
)

events = Table(
    "events",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    # The application's small number, not its name, keeps the hot index narrow. No foreign key: checking one would lock
    # the application's row at every add.
    Column("application", Integer, nullable=False),
    Column("event_id", ascii_string(EVENT_ID_LENGTH), nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("wake_at", BigInteger),
    Column("fence", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("lost_leases", SmallInteger, nullable=False),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Column("method", ascii_string(8), nullable=False),
    Column("url", ascii_string(URL_LENGTH), nullable=False),
    Column("headers", Text),
    Column("payload", PAYLOAD),
    Column("options", Text),
    Column("request_hash", HASH, nullable=False),
    Column("last_error", String(DETAIL_CHARACTERS)),
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("series", Integer),  # whose occurrence it is; the original instant of that stands in its id
    Column("replayed_at", BigInteger),  # when it was last put back to be sent once more
    Column("operation", Integer),  # the operation that changed it last: none changes an event twice
    Column("last_status", SmallInteger),  # the status code of the newest attempt that had an answer
    Column("payload_removed_at", BigInteger),  # what has lost its payload is not sent again
    Column("followed", Boolean, nullable=False, server_default=false()),  # whether a link leads from it to a successor
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    UniqueConstraint("application", "event_id", name="events_event_id"),
    # Claims, lost leases and the agenda all live on this one. Finished rows have no wake_at and sort apart from it.
    Index("events_wake", "application", "wake_at", "id"),
    Index("events_due", "application", "due_at", "id"),
    **OPTIONS,
    **NEVER_REUSED,
)

attempts = Table(
    "attempts",
    metadata,
    Column("event", ROW_ID, primary_key=True, autoincrement=False),
    Column("fence", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("duration_ms", Integer, nullable=False),
    Column("status_code", SmallInteger),
    Column("error", ascii_string(32)),
    Column("detail", String(DETAIL_CHARACTERS)),
    Column("excerpt", Text),
    **OPTIONS,
)

# What is shared between workers (and services) so that an application's limits hold for all of them together. Only
# applications that have such a limit have rows here.

paces = Table(
    "paces",
    metadata,
    Column("application", Integer, primary_key=True, autoincrement=False),
    Column("kind", SmallInteger, primary_key=True, autoincrement=False),
    Column("next_at", BigInteger, nullable=False),  # microseconds: at 3,000 a second a millisecond is too coarse
    **OPTIONS,
)

holdings = Table(
    "holdings",
    metadata,
    Column("application", Integer, primary_key=True, autoincrement=False),
    Column("holder", ascii_string(32), primary_key=True),
    Column("events", Integer, nullable=False),
    Column("held_until", BigInteger, nullable=False),
    **OPTIONS,
)

breakers = Table(
    "breakers",
    metadata,
    Column("application", Integer, primary_key=True, autoincrement=False),
    Column("destination", ascii_string(DESTINATION_LENGTH), primary_key=True),
    Column("opened_at", BigInteger, nullable=False),
    Column("retry_at", BigInteger, nullable=False),
    Column("openings", Integer, nullable=False),
    Column("probing", Boolean, nullable=False, server_default=false()),
    Column("reason", String(DETAIL_CHARACTERS)),
    Index("breakers_retry", "retry_at"),
    **OPTIONS,
)

# Rules that make events. `wake_at` is when a worker is to see to a series next, NULL once it has no more occurrences, or while it
# is paused; `last_at` and `last_index` are the occurrence that was made last, from where the next ones are computed.
series = Table(
    "series",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application", Integer, nullable=False),
    Column("series_id", ascii_string(SERIES_ID_LENGTH), nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("wake_at", BigInteger),
    Column("last_at", BigInteger),
    Column("last_index", Integer),
    Column("version", BigInteger, nullable=False),
    Column("name", String(SERIES_NAME_LENGTH)),
    Column("rule", Text, nullable=False),  # this and the next two are documents (JSON)
    Column("options", Text),
    Column("metadata", Text),
    Column("method", ascii_string(8), nullable=False),
    Column("url", ascii_string(URL_LENGTH), nullable=False),
    Column("headers", Text),
    Column("payload", PAYLOAD),
    Column("request_hash", HASH, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("follows", Integer),  # the series whose every occurrence one of this one comes after
    UniqueConstraint("application", "series_id", name="series_series_id"),
    Index("series_wake", "wake_at", "id"),
    Index("series_follows", "follows"),
    **OPTIONS,
    **NEVER_REUSED,
)

# Work on many events at a time, done by the workers in steps. `place` is how far it has come.
operations = Table(
    "operations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application", Integer, nullable=False),
    Column("operation_id", ascii_string(OPERATION_ID_LENGTH), nullable=False),
    Column("action", ascii_string(16), nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("wake_at", BigInteger),
    Column("filter", Text, nullable=False),  # this and the next two are documents (JSON)
    Column("parameters", Text),
    Column("place", Text),
    Column("newest_row", BigInteger, nullable=False),  # what is added later is left alone
    Column("expected", Integer, nullable=False),
    Column("exact", Boolean, nullable=False),  # or whether there were more
    Column("examined", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("skipped", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    UniqueConstraint("application", "operation_id", name="operations_operation_id"),
    Index("operations_wake", "wake_at", "id"),
    Index("operations_application", "application", "id"),
    **OPTIONS,
    **NEVER_REUSED,
)

# How deliveries went, minute by minute: added up by each worker and written every few seconds. Application 0 is all of them.
# `measure` is a store.Measure, or one of the classes of lateness.
tallies = Table(
    "tallies",
    metadata,
    Column("application", Integer, primary_key=True, autoincrement=False),
    Column("measure", SmallInteger, primary_key=True, autoincrement=False),
    Column("minute", Integer, primary_key=True, autoincrement=False),
    Column("events", BigInteger, nullable=False),
    Index("tallies_minute", "minute"),
    **OPTIONS,
)

# Worker processes, and how much each of them had in hand when it told last.
workers = Table(
    "workers",
    metadata,
    Column("worker", ascii_string(32), primary_key=True),
    Column("host", ascii_string(HOST_NAME_LENGTH), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", ascii_string(32), nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("in_hand", Integer, nullable=False),
    **OPTIONS,
)

# Chains: the event that a blocked one waits for, and what is to have become of it. `input`: it is handed the other's answer.
links = Table(
    "links",
    metadata,
    Column("successor", ROW_ID, primary_key=True, autoincrement=False),
    Column("predecessor", ROW_ID, nullable=False),
    Column("wanted", SmallInteger, nullable=False),
    Column("input", Boolean, nullable=False),
    Index("links_predecessor", "predecessor"),
    **OPTIONS,
)

# What an attempt answered or wrote, where that is kept. It may still grow. `length` is how long all of it was.
outputs = Table(
    "outputs",
    metadata,
    Column("event", ROW_ID, primary_key=True, autoincrement=False),
    Column("fence", ROW_ID, primary_key=True, autoincrement=False),
    Column("headers", Text),
    Column("body", PAYLOAD),
    Column("length", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    **OPTIONS,
)

# Scripts that workers may run: zip archives.
batches = Table(
    "batches",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application", Integer, nullable=False),
    Column("batch_id", ascii_string(BATCH_ID_LENGTH), nullable=False),
    Column("active", Boolean, nullable=False, server_default=true()),
    Column("archive", PAYLOAD, nullable=False),
    Column("hash", HASH, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    UniqueConstraint("application", "batch_id", name="batches_batch_id"),
    **OPTIONS,
    **NEVER_REUSED,
)

# Who sends the messages of an application, and until when nobody else may; how often in a row that has failed, and why.
streams = Table(
    "streams",
    metadata,
    Column("application", Integer, primary_key=True, autoincrement=False),
    Column("holder", ascii_string(32), nullable=False),
    Column("held_until", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("reason", String(DETAIL_CHARACTERS)),
    **OPTIONS,
)

# What is still to be told of the lives of events, to whom each application says. The messages of one event are in their order. One that
# was not taken is put off until `wake_at`, and what comes after it of its event is set aside; of all others that is 0. `tries`: so often
# it was refused.
outbox = Table(
    "outbox",
    metadata,
    Column("id", ROW_ID, primary_key=True),
    Column("application", Integer, nullable=False),
    Column("event_id", ascii_string(EVENT_ID_LENGTH), nullable=False),
    Column("wake_at", BigInteger, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("outbox_wake", "application", "wake_at", "id"),
    Index("outbox_event", "application", "event_id", "id"),
    **OPTIONS,
    **NEVER_REUSED,
)
