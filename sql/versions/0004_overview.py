"""What an operator's overview is made of: how deliveries went, minute by minute, and which workers are alive."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from cassata.migration import create_index

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4"}


def ascii_string(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "tallies",
        sa.Column("application", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("measure", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("minute", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **OPTIONS,
    )
    create_index("tallies_minute", "tallies", ["minute"])
    op.create_table(
        "workers",
        sa.Column("worker", ascii_string(32), primary_key=True),
        sa.Column("host", ascii_string(64), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("version", ascii_string(32), nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.Column("in_hand", sa.Integer, nullable=False),
        if_not_exists=True,
        **OPTIONS,
    )


def downgrade() -> None:
    op.drop_table("workers")
    op.drop_table("tallies")
