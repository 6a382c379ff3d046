"""Which port a connection gets (sheet `qrexec`, section 1.3). Pure.

Each daemon hands out the ports of its own qube. Between two qubes the numbers tell whose daemon
it was: odd ones for peers with a lower id, even ones for those with a higher.
"""

from __future__ import annotations

FIRST, LAST = 513, 768


def valid(port: int) -> bool:
    """Whether this is a port for data."""
    return FIRST <= port <= LAST


class Ports:
    """The ports of one qube.

    Args:
        domain: the qube's own id.
    """

    def __init__(self, domain: int) -> None:
        self._domain = domain
        self._peers: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def peer_of(self, port: int) -> int | None:
        """Whose connection has this port."""
        return self._peers.get(port)

    def allocate(self, peer: int) -> int | None:
        """The lowest free port for a connection with this qube.

        A qube may hold as many as it leaves free to others, so that there is always room for
        them; the admin qube (0) may hold all.

        Returns:
            The port; None: none is left, or the peer is the qube itself.
        """
        if peer == self._domain:
            return None
        free = [port for port in self._lane(peer) if port not in self._peers]
        if not free or (peer != 0 and self._held(peer) >= len(free)):
            return None
        self._peers[free[0]] = peer
        return free[0]

    def release(self, peer: int, port: int) -> bool:
        """Free a port, if it belongs to a connection with this qube."""
        if self._peers.get(port) != peer:
            return False
        del self._peers[port]
        return True

    def _lane(self, peer: int) -> range:
        if peer == 0:
            return range(FIRST, LAST + 1)
        return range(FIRST if peer < self._domain else FIRST + 1, LAST + 1, 2)

    def _held(self, peer: int) -> int:
        return sum(1 for holder in self._peers.values() if holder == peer)
