"""Which finished events have had their payloads removed, so that nobody sends them again without."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column at the end that may be NULL: MySQL and MariaDB need not write the table anew."""
    is_online = not context.is_offline_mode()
    if is_online and any(column["name"] == "payload_removed_at" for column in sa.inspect(op.get_bind()).get_columns("events")):
        return  # an upgrade that was interrupted later than here
    op.execute("ALTER TABLE events ADD COLUMN payload_removed_at BIGINT")


def downgrade() -> None:
    op.drop_column("events", "payload_removed_at")
