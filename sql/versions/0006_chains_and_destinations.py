"""What runs after what, where events go besides HTTP, what they answered, and what others are told of their lives."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from cassata.migration import add_columns, create_index

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4"}
ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
PAYLOAD = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
HASH = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
COLUMNS = {
    "events": ("followed BOOL NOT NULL DEFAULT false", "priority SMALLINT NOT NULL DEFAULT 0"),
    "series": ("follows INTEGER",),
    "applications": ("topics TEXT", "stream TEXT", "prioritized BOOL NOT NULL DEFAULT false"),
}


def ascii_string(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        add_columns(table, columns)
    create_index("series_follows", "series", ["follows"])
    op.create_table(
        "links",
        sa.Column("successor", ROW_ID, primary_key=True, autoincrement=False),
        sa.Column("predecessor", ROW_ID, nullable=False),
        sa.Column("wanted", sa.SmallInteger, nullable=False),
        sa.Column("input", sa.Boolean, nullable=False),
        if_not_exists=True,
        **OPTIONS,
    )
    create_index("links_predecessor", "links", ["predecessor"])
    op.create_table(
        "outputs",
        sa.Column("event", ROW_ID, primary_key=True, autoincrement=False),
        sa.Column("fence", ROW_ID, primary_key=True, autoincrement=False),
        sa.Column("headers", sa.Text),
        sa.Column("body", PAYLOAD),
        sa.Column("length", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **OPTIONS,
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("application", sa.Integer, nullable=False),
        sa.Column("batch_id", ascii_string(64), nullable=False),
        sa.Column("active", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("archive", PAYLOAD, nullable=False),
        sa.Column("hash", HASH, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("application", "batch_id", name="batches_batch_id"),
        if_not_exists=True,
        sqlite_autoincrement=True,
        **OPTIONS,
    )
    op.create_table(
        "streams",
        sa.Column("application", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("holder", ascii_string(32), nullable=False),
        sa.Column("held_until", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("reason", sa.String(500)),
        if_not_exists=True,
        **OPTIONS,
    )
    op.create_table(
        "outbox",
        sa.Column("id", ROW_ID, primary_key=True),
        sa.Column("application", sa.Integer, nullable=False),
        sa.Column("event_id", ascii_string(128), nullable=False),
        sa.Column("wake_at", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        if_not_exists=True,
        sqlite_autoincrement=True,
        **OPTIONS,
    )
    create_index("outbox_wake", "outbox", ["application", "wake_at", "id"])
    create_index("outbox_event", "outbox", ["application", "event_id", "id"])
    op.create_table(
        "ended_sessions",
        sa.Column("session", ascii_string(16), primary_key=True),
        sa.Column("kept_until", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **OPTIONS,
    )
    create_index("ended_sessions_kept", "ended_sessions", ["kept_until"])


def downgrade() -> None:
    for table in ("ended_sessions", "outbox", "streams", "batches", "outputs", "links"):
        op.drop_table(table)
    op.drop_index("series_follows", "series")
    for table, columns in COLUMNS.items():
        for column in reversed(columns):
            op.drop_column(table, column.split()[0])
