"""What projects own of the cluster, lend and borrow."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE quotas (
            project text NOT NULL CONSTRAINT pk_quotas PRIMARY KEY,
            weight double precision NOT NULL CONSTRAINT ck_quotas_weight CHECK (weight > 0),
            gpus integer NOT NULL,
            cpus integer NOT NULL,
            lend_gpus integer,
            lend_cpus integer,
            borrow_gpus integer,
            borrow_cpus integer,
            CONSTRAINT ck_quotas_amounts CHECK (
                gpus >= 0 AND cpus >= 0 AND lend_gpus >= 0 AND lend_cpus >= 0 AND borrow_gpus >= 0 AND borrow_cpus >= 0)
        )"""
    )


def downgrade() -> None:
    op.execute("DROP TABLE quotas")
