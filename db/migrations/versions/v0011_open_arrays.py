"""An index on the jobs of arrays that have not ended: a new leader reads them, however many have."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX ix_jobs_open_array_id ON jobs (array_id) WHERE array_id IS NOT NULL AND ended_at IS NULL")


def downgrade() -> None:
    op.execute("DROP INDEX ix_jobs_open_array_id")
