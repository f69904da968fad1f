"""Jobs that are placed only after the end of others."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

CAUSES_BEFORE = """'error', 'out_of_memory', 'crashed', 'hung', 'time_limit', 'node_lost', 'network', 'hardware',
    'preempted', 'cancelled', 'expired', 'deadline'"""
CAUSES = f"{CAUSES_BEFORE}, 'dependency'"
KINDS = "'ok', 'any', 'fail'"
TABLES_WITH_CAUSES = ("jobs", "attempts", "events")


def upgrade() -> None:
    op.execute(
        f"""
        CREATE TABLE dependencies (
            job_id uuid NOT NULL CONSTRAINT fk_dependencies_job_id_jobs REFERENCES jobs (id) ON DELETE CASCADE,
            on_id uuid NOT NULL,
            kind text NOT NULL CONSTRAINT ck_dependencies_kind CHECK (kind IN ({KINDS})),
            met_at timestamptz,
            CONSTRAINT pk_dependencies PRIMARY KEY (job_id, on_id, kind)
        )"""
    )
    op.execute("CREATE INDEX ix_dependencies_on_id ON dependencies (on_id) WHERE met_at IS NULL")
    _replace_causes(CAUSES)


def downgrade() -> None:
    # What ended for this cause is not known to the schema before.
    for table in TABLES_WITH_CAUSES:
        op.execute(f"UPDATE {table} SET cause = 'cancelled' WHERE cause = 'dependency'")  # noqa: S608 - constants
    _replace_causes(CAUSES_BEFORE)
    op.execute("DROP TABLE dependencies")


def _replace_causes(causes: str) -> None:
    for table in TABLES_WITH_CAUSES:
        op.execute(
            f"""
            ALTER TABLE {table} DROP CONSTRAINT ck_{table}_cause,
                ADD CONSTRAINT ck_{table}_cause CHECK (cause IN ({causes}))"""
        )
