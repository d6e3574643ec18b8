"""Series, operations on many events, and what both need of an event."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

from cassata.migration import create_index

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4"}


def ascii_string(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


PAYLOAD = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
HASH = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


def change_events() -> None:
    """In one statement, and so that MySQL and MariaDB need not write the table anew: columns at its end that may be NULL."""
    if op.get_context().dialect.name == "sqlite":
        op.execute("ALTER TABLE events ADD COLUMN series INTEGER")
        op.execute("ALTER TABLE events ADD COLUMN replayed_at BIGINT")
        op.execute("ALTER TABLE events ADD COLUMN operation INTEGER")
        op.execute("ALTER TABLE events ADD COLUMN last_status SMALLINT")
        return
    if not context.is_offline_mode() and any(column["name"] == "series" for column in sa.inspect(op.get_bind()).get_columns("events")):
        return  # an upgrade that was interrupted later than here
    columns = ("series INTEGER", "replayed_at BIGINT", "operation INTEGER", "last_status SMALLINT")
    op.execute(f"ALTER TABLE events {', '.join(f'ADD COLUMN {column}' for column in columns)}")


def upgrade() -> None:
    change_events()
    op.create_table(
        "series",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("application", sa.Integer, nullable=False),
        sa.Column("series_id", ascii_string(111), nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("wake_at", sa.BigInteger),
        sa.Column("last_at", sa.BigInteger),
        sa.Column("last_index", sa.Integer),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(200)),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("options", sa.Text),
        sa.Column("metadata", sa.Text),
        sa.Column("method", ascii_string(8), nullable=False),
        sa.Column("url", ascii_string(2048), nullable=False),
        sa.Column("headers", sa.Text),
        sa.Column("payload", PAYLOAD),
        sa.Column("request_hash", HASH, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.UniqueConstraint("application", "series_id", name="series_series_id"),
        if_not_exists=True,
        sqlite_autoincrement=True,
        **OPTIONS,
    )
    create_index("series_wake", "series", ["wake_at", "id"])
    op.create_table(
        "operations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("application", sa.Integer, nullable=False),
        sa.Column("operation_id", ascii_string(64), nullable=False),
        sa.Column("action", ascii_string(16), nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("wake_at", sa.BigInteger),
        sa.Column("filter", sa.Text, nullable=False),
        sa.Column("parameters", sa.Text),
        sa.Column("place", sa.Text),
        sa.Column("newest_row", sa.BigInteger, nullable=False),
        sa.Column("expected", sa.Integer, nullable=False),
        sa.Column("exact", sa.Boolean, nullable=False),
        sa.Column("examined", sa.BigInteger, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.Column("skipped", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.UniqueConstraint("application", "operation_id", name="operations_operation_id"),
        if_not_exists=True,
        sqlite_autoincrement=True,
        **OPTIONS,
    )
    create_index("operations_wake", "operations", ["wake_at", "id"])
    create_index("operations_application", "operations", ["application", "id"])


def downgrade() -> None:
    op.drop_table("operations")
    op.drop_table("series")
    op.drop_column("events", "last_status")
    op.drop_column("events", "operation")
    op.drop_column("events", "replayed_at")
    op.drop_column("events", "series")
