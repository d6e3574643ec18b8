"""What the migrations in `sql/versions` have in common: steps that may be taken again after an upgrade was interrupted."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import context, op


def add_columns(table: str, columns: Sequence[str]) -> None:
    """Add those that are not there, written as in SQL, in one statement. MySQL and MariaDB need not write the table anew for what
    stands at its end and may be NULL, or has a default.
    """
    if not context.is_offline_mode():
        there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}
        columns = [column for column in columns if column.split()[0] not in there]
    if op.get_context().dialect.name == "sqlite":
        for column in columns:
            op.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    elif columns:
        op.execute(f"ALTER TABLE {table} {', '.join(f'ADD COLUMN {column}' for column in columns)}")


def create_index(name: str, table: str, columns: Sequence[str]) -> None:
    """Make an index unless it is there. MySQL, other than MariaDB and SQLite, knows no CREATE INDEX IF NOT EXISTS."""
    is_online = not context.is_offline_mode()
    if is_online and any(index["name"] == name for index in sa.inspect(op.get_bind()).get_indexes(table)):
        return
    op.create_index(name, table, columns)
