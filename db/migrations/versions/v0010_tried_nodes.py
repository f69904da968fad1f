"""Whether a job has ever completed on a node; of the nodes that are known already it is taken for granted."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE nodes ADD COLUMN tried boolean NOT NULL DEFAULT false")
    op.execute("UPDATE nodes SET tried = true")


def downgrade() -> None:
    op.execute("ALTER TABLE nodes DROP COLUMN tried")
