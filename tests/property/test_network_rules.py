"""What the kernel holds is what it was told, for any set of clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from caisson.errors import NetworkError
from caisson.network import Uplink, nft, resolvers, rules
from caisson.network.addresses import inner_addresses, outer_interface, provider_interface
from caisson.network.namespaces import Namespace, Worker

qids = st.integers(0, 10000)
clients = st.tuples(qids.map(provider_interface), st.ip_addresses(v=4))
lookups = st.none() | st.lists(st.ip_addresses(v=4), max_size=3)


class Inside:
    """Runs nftables commands in a namespace of its own, on a thread of its own."""

    def __init__(self) -> None:
        self._worker = Worker()
        self._namespace = self._do(Namespace.fresh, "a test's namespace")

    def _do(self, action: Callable[..., Any], *args: Any) -> Any:
        return self._worker.submit(action, *args).result(30)

    def __call__(self, commands: list[rules.Command]) -> list[rules.Command]:
        """Run one transaction."""
        return self._do(self._namespace.run, nft.run, commands)

    def close(self) -> None:
        """Let the namespace go."""
        self._namespace.close()
        self._worker.close()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Inside]:
    """A kernel's nftables that nobody else uses."""
    inside = Inside()
    yield inside
    inside.close()


@given(before=st.sets(clients, max_size=20), after=st.sets(clients, max_size=20), targets=lookups)
@settings(max_examples=40, deadline=None)
def test_the_kernel_lets_in_exactly_the_clients_it_was_told(
    kernel: Inside, before: set, after: set, targets: list[IPv4Address] | None
):
    """Whatever was there before; rules stay in the same number."""
    kernel(rules.provider(before, targets))
    assert rules.sources(kernel(rules.list_clients())) == before
    count = len(kernel([{"list": {"ruleset": None}}]))
    kernel(rules.provider(after, targets))
    assert rules.sources(kernel(rules.list_clients())) == after
    assert len(kernel([{"list": {"ruleset": None}}])) == count


@given(instance=st.sampled_from(["", "0123abcd", "ffffffff"]), qid=qids, data=st.data())
@settings(max_examples=20, deadline=None)
def test_the_machines_table_comes_and_goes_whole(
    kernel: Inside, instance: str, qid: int, data: st.DataObject
):
    """Nothing of it stays, and removing it twice is no error."""
    before = kernel([{"list": {"ruleset": None}}])
    source = (
        outer_interface(instance, qid),
        data.draw(st.sampled_from(inner_addresses(instance, qid))),
    )
    kernel(rules.machine(instance, source))
    kernel(rules.machine(instance, source))
    assert rules.sources(kernel(rules.list_uplinks(instance))) == {source}
    kernel(rules.remove_machine(instance))
    kernel(rules.remove_machine(instance))
    assert kernel([{"list": {"ruleset": None}}]) == before


def test_clients_come_and_go_in_any_order(kernel: Inside):
    """Adding twice and removing what is not there are no errors."""

    class Clients(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.known: set = set()
            kernel(rules.provider([]))

        @rule(client=clients)
        def add(self, client: rules.Source) -> None:
            for _ in range(2):
                kernel(rules.add_client(client))
            self.known.add(client)

        @rule(client=clients)
        def remove_a_stranger(self, client: rules.Source) -> None:
            kernel(rules.remove_client(client))
            self.known.discard(client)

        @rule(data=st.data())
        def remove(self, data: st.DataObject) -> None:
            if self.known:
                client = data.draw(st.sampled_from(sorted(self.known)))
                kernel(rules.remove_client(client))
                self.known.discard(client)

        @rule(client=clients)
        def refuse_a_whole_transaction(self, client: rules.Source) -> None:
            nowhere = {"delete": {"table": {"family": "inet", "name": "nowhere"}}}
            with pytest.raises(nft.NftError):
                kernel([*rules.add_client(client), nowhere])

        @invariant()
        def kernel_agrees(self) -> None:
            assert rules.sources(kernel(rules.list_clients())) == self.known

    run_state_machine_as_test(
        Clients, settings=settings(max_examples=15, stateful_step_count=15, deadline=None)
    )


@given(st.text(max_size=80) | st.text().map("netns:{}".format))
def test_an_uplink_is_parsed_or_refused(text: str):
    """Nothing else comes out, and a name never has a separator of paths."""
    try:
        uplink = Uplink.parse(text)
    except NetworkError:
        return
    assert "/" not in uplink.namespace
    assert not uplink.namespace.startswith(".")


@given(st.text())
def test_any_text_is_a_resolv_conf(text: str):
    """Never a crash, never an address that means the qube itself."""
    assert not any(address.is_loopback for address in resolvers.parse(text))
