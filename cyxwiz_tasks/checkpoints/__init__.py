"""Checkpoints of a job: written so that a crash at any instant leaves the one before, read only when they are whole."""
