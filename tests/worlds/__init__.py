"""Small clusters with their workloads, made up out of a seed and played to the end by the pure core, thousands of them.

Hypothesis' machines (tests/unit) look for short counterexamples of single properties. Here all of placement works
together: priorities, shares, quotas, gangs, reservations and backfill, on unlike nodes that may be lost; and books that
are kept apart from the product's are what each step is judged by.
"""
