"""What Alembic runs for each command. The connection comes from `db/migrate.py`, which holds the lock."""

from __future__ import annotations

from alembic import context

from db.models import Base

if context.is_offline_mode():
    raise RuntimeError("migrations run on a connection: use `cyxwiz db upgrade`")

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_server_default=True,
    # One that fails halfway leaves those before it in place.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
