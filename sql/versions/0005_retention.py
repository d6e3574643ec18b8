"""Which finished events have had their payloads removed, so that nobody sends them again without."""

from __future__ import annotations

from alembic import op

from cassata.migration import add_columns

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    add_columns("events", ["payload_removed_at BIGINT"])


def downgrade() -> None:
    op.drop_column("events", "payload_removed_at")
