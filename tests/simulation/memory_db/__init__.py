"""The record in memory: one module for each of `db` that the scheduler writes with, with the same names and meanings.

It stands in for PostgreSQL where hours of a cluster's life are simulated in a fraction of a second, and it is the model
that tests/integration/test_record_machine.py compares with the real one, step by step.
"""
