"""An index on the jobs that are held, which are few and are listed often."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX ix_jobs_held ON jobs (seq) WHERE state = 'held'")


def downgrade() -> None:
    op.execute("DROP INDEX ix_jobs_held")
