"""What one owner may have at a time."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE owner_limits (
            owner text NOT NULL CONSTRAINT pk_owner_limits PRIMARY KEY,
            weight double precision NOT NULL CONSTRAINT ck_owner_limits_weight CHECK (weight > 0),
            running integer,
            waiting integer,
            per_minute double precision,
            CONSTRAINT ck_owner_limits_limits CHECK (running >= 0 AND waiting >= 0 AND per_minute > 0)
        )"""
    )
    op.execute("CREATE INDEX ix_attempts_ended_at ON attempts USING brin (ended_at)")


def downgrade() -> None:
    op.execute("DROP INDEX ix_attempts_ended_at")
    op.execute("DROP TABLE owner_limits")
