"""Jobs that are sent again and again."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE schedules (
            name text NOT NULL CONSTRAINT pk_schedules PRIMARY KEY,
            id uuid NOT NULL,
            owner text NOT NULL,
            cron text NOT NULL,
            timezone text NOT NULL,
            catch_up boolean NOT NULL,
            envelope text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT statement_timestamp(),
            next_at timestamptz NOT NULL,
            last_at timestamptz,
            last_job_id uuid
        )"""
    )


def downgrade() -> None:
    op.execute("DROP TABLE schedules")
