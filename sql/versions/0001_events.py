"""Applications, their events, and the log of attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4"}


def ascii_string(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
PAYLOAD = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
HASH = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "applications",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("application_id", ascii_string(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("application_id", name="applications_application_id"),
        **OPTIONS,
    )
    op.create_table(
        "events",
        sa.Column("id", ROW_ID, primary_key=True),
        sa.Column("application", sa.Integer, nullable=False),
        sa.Column("event_id", ascii_string(128), nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("wake_at", sa.BigInteger),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("lost_leases", sa.SmallInteger, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("method", ascii_string(8), nullable=False),
        sa.Column("url", ascii_string(2048), nullable=False),
        sa.Column("headers", sa.Text),
        sa.Column("payload", PAYLOAD),
        sa.Column("options", sa.Text),
        sa.Column("request_hash", HASH, nullable=False),
        sa.Column("last_error", sa.String(500)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.UniqueConstraint("application", "event_id", name="events_event_id"),
        sqlite_autoincrement=True,
        **OPTIONS,
    )
    op.create_index("events_wake", "events", ["application", "wake_at", "id"])
    op.create_index("events_due", "events", ["application", "due_at", "id"])
    op.create_table(
        "attempts",
        sa.Column("event", ROW_ID, primary_key=True, autoincrement=False),
        sa.Column("fence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("duration_ms", sa.Integer, nullable=False),
        sa.Column("status_code", sa.SmallInteger),
        sa.Column("error", ascii_string(32)),
        sa.Column("detail", sa.String(500)),
        sa.Column("excerpt", sa.Text),
        **OPTIONS,
    )


def downgrade() -> None:
    op.drop_table("attempts")
    op.drop_table("events")
    op.drop_table("applications")
