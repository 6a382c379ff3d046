"""The model on disk: one SQLite database, one transaction a change.

Keeps what it is told and hands it back in an order that `System.load` accepts; it checks nothing
that the model has checked. Trusts its own file, which only root can write, and refuses one that
is damaged or newer than itself. Written to by the lifecycle alone.
"""

from caisson.store.lock import only_one
from caisson.store.store import Store

__all__ = ["Store", "only_one"]
