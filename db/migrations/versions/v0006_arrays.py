"""Jobs that were sent as one."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE arrays (
            id uuid NOT NULL CONSTRAINT pk_arrays PRIMARY KEY,
            name text,
            owner text NOT NULL,
            size integer NOT NULL,
            at_most integer,
            early_stopping jsonb,
            accepted_at timestamptz NOT NULL DEFAULT statement_timestamp()
        )"""
    )
    op.execute("ALTER TABLE jobs ADD COLUMN array_id uuid, ADD COLUMN array_index integer")
    op.execute("CREATE INDEX ix_jobs_array_id ON jobs (array_id, array_index) WHERE array_id IS NOT NULL")


def downgrade() -> None:
    op.execute("ALTER TABLE jobs DROP COLUMN array_id, DROP COLUMN array_index")
    op.execute("DROP TABLE arrays")
