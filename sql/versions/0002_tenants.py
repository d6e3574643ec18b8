"""Applications with limits, keys and secrets of their own, and what workers share to keep those limits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

from cassata.migration import create_index

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4"}


def ascii_string(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


HASH = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


COLUMNS = {
    "active": "BOOL NOT NULL DEFAULT true",
    "limits": "TEXT",
    "egress": "TEXT",
    "metadata": "TEXT",
    "secrets": "TEXT",
    "changed_at": "BIGINT NOT NULL DEFAULT '0'",
}


def change_applications() -> None:
    """On MySQL in one statement, which is done or not: each of several commits by itself, and could not be repeated."""
    if op.get_context().dialect.name == "sqlite":
        for name, kind in COLUMNS.items():
            op.execute(f"ALTER TABLE applications ADD COLUMN {name} {kind.replace('BOOL', 'BOOLEAN').replace('true', '1')}")
        op.create_index("applications_changed", "applications", ["changed_at"])
        return
    if not context.is_offline_mode() and any(
        column["name"] == "active" for column in sa.inspect(op.get_bind()).get_columns("applications")
    ):
        return  # an upgrade that was interrupted later than here
    added = ", ".join(f"ADD COLUMN {name} {kind}" for name, kind in COLUMNS.items())
    op.execute(f"ALTER TABLE applications {added}, ADD INDEX applications_changed (changed_at)")


def upgrade() -> None:
    change_applications()
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("prefix", ascii_string(16), nullable=False),
        sa.Column("application", sa.Integer),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("scopes", ascii_string(32), nullable=False),
        sa.Column("hash", HASH, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.UniqueConstraint("prefix", name="api_keys_prefix"),
        if_not_exists=True,
        **OPTIONS,
    )
    create_index("api_keys_application", "api_keys", ["application"])
    op.create_table(
        "installation",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("secret", HASH, nullable=False),
        **OPTIONS,
    )
    op.create_table(
        "paces",
        sa.Column("application", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("next_at", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **OPTIONS,
    )
    op.create_table(
        "holdings",
        sa.Column("application", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("holder", ascii_string(32), primary_key=True),
        sa.Column("events", sa.Integer, nullable=False),
        sa.Column("held_until", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **OPTIONS,
    )
    op.create_table(
        "breakers",
        sa.Column("application", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("destination", ascii_string(262), primary_key=True),
        sa.Column("opened_at", sa.BigInteger, nullable=False),
        sa.Column("retry_at", sa.BigInteger, nullable=False),
        sa.Column("openings", sa.Integer, nullable=False),
        sa.Column("probing", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("reason", sa.String(500)),
        if_not_exists=True,
        **OPTIONS,
    )
    create_index("breakers_retry", "breakers", ["retry_at"])


def downgrade() -> None:
    for table in ("breakers", "holdings", "paces", "installation", "api_keys"):
        op.drop_table(table)
    op.drop_index("applications_changed", "applications")
    for column in ("changed_at", "secrets", "metadata", "egress", "limits", "active"):
        op.drop_column("applications", column)
