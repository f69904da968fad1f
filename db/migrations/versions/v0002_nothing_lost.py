"""Deadlines, what a job's attempts taught, and nodes that get no new work."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

CAUSES_BEFORE = """'error', 'out_of_memory', 'crashed', 'hung', 'time_limit', 'node_lost', 'network', 'hardware',
    'preempted', 'cancelled', 'expired'"""
CAUSES = f"{CAUSES_BEFORE}, 'deadline'"
CORDONS = "'draining', 'quarantined'"
TABLES_WITH_CAUSES = ("jobs", "attempts", "events")


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE jobs ADD COLUMN deadline_at timestamptz, ADD COLUMN first_started_at timestamptz,
            ADD COLUMN learned jsonb"""
    )
    op.execute(
        "CREATE INDEX ix_jobs_deadline_at ON jobs (deadline_at) WHERE ended_at IS NULL AND deadline_at IS NOT NULL"
    )
    op.execute("CREATE INDEX ix_jobs_ended_at ON jobs (ended_at) WHERE ended_at IS NOT NULL")
    op.execute(
        f"""
        ALTER TABLE nodes
            ADD COLUMN cordon text CONSTRAINT ck_nodes_cordon CHECK (cordon IN ({CORDONS})),
            ADD COLUMN cordon_until timestamptz, ADD COLUMN cordon_reason text,
            ADD COLUMN faults integer NOT NULL DEFAULT 0, ADD COLUMN quarantines integer NOT NULL DEFAULT 0"""
    )
    _replace_causes(CAUSES)


def downgrade() -> None:
    _replace_causes(CAUSES_BEFORE)
    op.execute(
        """
        ALTER TABLE nodes DROP COLUMN cordon, DROP COLUMN cordon_until, DROP COLUMN cordon_reason, DROP COLUMN faults,
            DROP COLUMN quarantines"""
    )
    op.execute("ALTER TABLE jobs DROP COLUMN deadline_at, DROP COLUMN first_started_at, DROP COLUMN learned")


def _replace_causes(causes: str) -> None:
    for table in TABLES_WITH_CAUSES:
        op.execute(
            f"""
            ALTER TABLE {table} DROP CONSTRAINT ck_{table}_cause,
                ADD CONSTRAINT ck_{table}_cause CHECK (cause IN ({causes}))"""
        )
