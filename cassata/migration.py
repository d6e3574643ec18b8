"""What the migrations in `sql/versions` have in common: steps that may be taken again after an upgrade was interrupted."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import context, op


def create_index(name: str, table: str, columns: Sequence[str]) -> None:
    """Make an index unless it is there. MySQL, other than MariaDB and SQLite, knows no CREATE INDEX IF NOT EXISTS."""
    is_online = not context.is_offline_mode()
    if is_online and any(index["name"] == name for index in sa.inspect(op.get_bind()).get_indexes(table)):
        return
    op.create_index(name, table, columns)
