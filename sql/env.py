"""Runs the migrations. `cassata.database.upgrade` hands in the connection; offline, the DDL is printed for the given dialect."""

from __future__ import annotations

from alembic import context

from cassata.schema import metadata

connection = context.config.attributes.get("connection")
if context.is_offline_mode():
    context.configure(dialect_name=context.config.get_main_option("dialect"), target_metadata=metadata, literal_binds=True)
else:
    context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
