"""Caisson: explicit partitioning of a Linux machine into qubes."""

__version__ = "0.1.0"
