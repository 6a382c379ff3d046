"""How long a test waits for what must come: a bound for a failure, never a measure of speed."""

PATIENCE = 60.0
"""Seconds; enough for a machine that is slow, or busy with something else."""
