"""The commands: `qvm-*`, `qubes-prefs` and `caisson`.

Room: floor 4. They speak to the daemon through the Admin API and hold no privilege of their own;
what the daemon and the qubes say is text that may not reach a terminal unchecked.
"""
