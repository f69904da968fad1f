"""A job's message is one text, kept as it came."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE jobs ADD COLUMN envelope text")
    op.execute("UPDATE jobs SET envelope = (properties || jsonb_build_object('headers', headers, 'body', body))::text")
    op.execute(
        """
        ALTER TABLE jobs ALTER COLUMN envelope SET NOT NULL, DROP COLUMN headers, DROP COLUMN body,
            DROP COLUMN properties"""
    )


def downgrade() -> None:
    op.execute("ALTER TABLE jobs ADD COLUMN headers jsonb, ADD COLUMN body text, ADD COLUMN properties jsonb")
    op.execute(
        """
        UPDATE jobs SET headers = envelope::jsonb -> 'headers', body = envelope::jsonb ->> 'body',
            properties = envelope::jsonb - 'headers' - 'body'"""
    )
    op.execute(
        """
        ALTER TABLE jobs ALTER COLUMN headers SET NOT NULL, ALTER COLUMN body SET NOT NULL,
            ALTER COLUMN properties SET NOT NULL, DROP COLUMN envelope"""
    )
