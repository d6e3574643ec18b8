"""Series, operations on many events, and what both need of an event."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from cassata.migration import add_columns, create_index

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4"}


def ascii_string(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


PAYLOAD = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
HASH = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


def upgrade() -> None:
    add_columns("events", ["series INTEGER", "replayed_at BIGINT", "operation INTEGER", "last_status SMALLINT"])
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
