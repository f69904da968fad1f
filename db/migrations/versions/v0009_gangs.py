"""Jobs that run on several nodes at once."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE gang_members (
            token bigint NOT NULL CONSTRAINT pk_gang_members PRIMARY KEY,
            lead bigint NOT NULL CONSTRAINT fk_gang_members_lead_attempts REFERENCES attempts (token) ON DELETE CASCADE,
            rank smallint NOT NULL,
            node_id uuid NOT NULL,
            incarnation text NOT NULL,
            gpus integer[] NOT NULL,
            gpu_memory_bytes bigint NOT NULL,
            cpus integer NOT NULL,
            ram_bytes bigint NOT NULL,
            pid integer,
            device text,
            started_at timestamptz,
            ended_at timestamptz,
            report jsonb
        )"""
    )
    op.execute("CREATE UNIQUE INDEX uq_gang_members_lead_rank ON gang_members (lead, rank)")


def downgrade() -> None:
    op.execute("DROP TABLE gang_members")
