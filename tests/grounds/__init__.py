"""Grounds on which tests play: real qubes, made in a moment and gone without a trace."""
