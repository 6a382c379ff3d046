"""Which numbers are free: of qubes, of disposables, and the addresses that follow from them."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address

from caisson.errors import CaissonError
from caisson.model.addresses import ipv4_of, ipv4_of_disposable, ipv6_of, ipv6_of_disposable
from caisson.model.facts import Facts
from caisson.names import QubeName

DISPID_MAX = 9_999


class Numbers(Facts):
    """What a new qube may be numbered."""

    def _free_qid(self) -> int:
        """The lowest number that no qube has and whose addresses nobody was given."""
        while self._lowest in self._qids:
            self._lowest += 1
        qid = self._lowest
        while qid in self._qids or self._are_given(ipv4_of(qid), ipv6_of(qid)):
            qid += 1
        return qid

    def _free_dispid(self, rng: random.Random) -> int:
        """A number that is free, and its name and addresses with it.

        Not 0: that would give the address of the whole network.
        """
        start = rng.randrange(DISPID_MAX)
        for step in range(DISPID_MAX):
            dispid = (start + step) % DISPID_MAX + 1
            if not (
                dispid in self._dispids
                or QubeName(f"disp{dispid}") in self._names
                or self._are_given(ipv4_of_disposable(dispid), ipv6_of_disposable(dispid))
            ):
                return dispid
        raise CaissonError(
            f"there are {DISPID_MAX} disposables, no number is left",
            hint="shut some of them down first",
        )

    def _are_given(self, *addresses: IPv4Address | IPv6Address) -> bool:
        return any(str(address) in self._addresses for address in addresses)
