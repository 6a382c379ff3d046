"""The closure over sets is that of every call decided one by one by the reference evaluator."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from caisson.policy import Allow, Ask, PolicySet, Request, SystemInfo, parse_policy
from caisson.policy import decide_by_reference as decide
from caisson.policy.flow import Facts, Flows, Options, Power, bits
from caisson.policy.flow.concrete import Concrete

POWERS = {
    "admin.R": Power.READS,
    "admin.U": Power.USES,
    "admin.C": Power.CHANGES,
    "admin.N": Power.NOTES,
}
OPTIONS = Options(power=lambda s: POWERS.get(s, Power.NONE), admin_services=frozenset(POWERS))
CALLS = [("s.X", "+"), ("s.X", "+a"), ("s.X", "+z"), ("s.Z", "+"), *((s, "+") for s in POWERS)]
NAMES = ["work", "vault", "dvm", "rem"]
UUIDS = {name: f"00000000-0000-4000-8000-{i:012}" for i, name in enumerate(NAMES)}
INTERNET = "@internet"

references = st.sampled_from([*NAMES, "dom0", "gone", f"uuid:{UUIDS['vault']}"])
disposables = st.sampled_from(["@dispvm", "@dispvm:dvm", "@dispvm:work", "@dispvm:gone"])
sources = references | st.sampled_from(
    ["*", "@anyvm", "@tag:t1", "@tag:created-by-work", "@type:DispVM", "@type:RemoteVM"]
)
targets = sources | disposables | st.sampled_from(["@default", "@adminvm", "@dispvm:@tag:t1"])
redirects = references | disposables | st.just("@adminvm")
services = st.sampled_from(["* *", "s.X *", "s.X +", "s.X +a", *(f"{s} *" for s in POWERS)])


@st.composite
def rule_lines(draw: st.DrawFn) -> str:
    """A rule that the parser accepts."""
    action = draw(st.sampled_from(["allow", "allow", "ask", "deny"]))
    service, source, target = draw(services), draw(sources), draw(targets)
    line = f"{service} {source} {target} {action}"
    if action == "deny":
        return line
    if (action == "allow" and target == "@default") or draw(st.integers(0, 3)) == 0:
        redirect = "dom0" if service.startswith("admin.") else draw(redirects)
        line += f" target={redirect}"
    return line + draw(st.sampled_from(["", "", " autostart=no"]))


policies = st.lists(rule_lines(), min_size=1, max_size=7).map(
    lambda lines: parse_policy({"30-user.policy": "\n".join(lines)})
)


@st.composite
def systems(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """A system as the running one tells of itself."""
    some = st.sampled_from([None, *NAMES[:3]])
    made: dict[str, dict[str, Any]] = {
        "dom0": {"type": "AdminVM", "tags": draw(st.sampled_from([[], ["t1"]]))}
    }
    for name in NAMES:
        is_remote = name == "rem"
        made[name] = {
            "type": "RemoteVM" if is_remote else draw(st.sampled_from(["AppVM", "DispVM"])),
            "uuid": UUIDS[name],
            "tags": draw(
                st.lists(st.sampled_from(["t1", "t2", "disp-created-by-vault"]), unique=True)
            ),
            "internal": draw(st.sampled_from([None, None, None, "1"])),
            "template_for_dispvms": name in {"work", "dvm"} and draw(st.booleans()),
            "default_dispvm": draw(st.sampled_from([None, "dvm", "work", "gone"])),
            "relayvm": draw(st.sampled_from(["work", None])) if is_remote else None,
            "transport_rpc": "x.SSH" if is_remote else None,
            "power_state": draw(st.sampled_from(["Running", "Halted"])),
            "netvm": None if is_remote else draw(st.none() | some),
            "template": None if is_remote else draw(some),
            "provides_network": not is_remote and draw(st.booleans()),
        }
    return made


class Plain:
    """The same system, spelled out: each pair of qubes, each call, each answer to a question."""

    def __init__(self, policy: PolicySet, domains: dict[str, dict[str, Any]]) -> None:
        self._policy = policy
        self.domains = {n: {**d, "power_state": "Running"} for n, d in domains.items()}
        self._bases = [n for n, d in domains.items() if d.get("template_for_dispvms")]
        self.made: dict[str, tuple[str, str, bool]] = {}
        for root, base, is_deep in product(NAMES, self._bases, (False, True)):
            name = f"{root}-{base}-{'deep' if is_deep else 'first'}"
            self.made[name] = (root, base, is_deep)
            marks = [] if is_deep else [f"created-by-{root}", f"disp-created-by-{root}"]
            kept = [t for t in domains[base]["tags"] if not t.startswith("disp-created-by-")]
            self.domains[name] = {
                "type": "DispVM",
                "tags": [*kept, *marks],
                "power_state": "Running",
            }
        self.edges: set[tuple[str, str]] = set()
        # Those of calls, each with who called, and what was asked for.
        self.calls: set[tuple[str, str, str, str]] = set()
        self.births: set[tuple[str, str, str]] = set()
        self._wire()
        self._call_everyone()

    def _wire(self) -> None:
        for name in NAMES:
            d = self.domains[name]
            self._link(name, d)
            if d["template"]:
                self.edges.add((d["template"], name))
            if d["type"] == "DispVM" and "disp-created-by-vault" in d["tags"]:
                self.edges |= {(name, "vault"), ("vault", name)}
            if d["type"] == "RemoteVM":
                self.edges |= {(name, INTERNET), (INTERNET, name)}
                if d["relayvm"]:
                    self.edges |= {(name, d["relayvm"]), (d["relayvm"], name)}
        for name, (root, base, _) in self.made.items():
            self.edges.add((base, name))
            if self.domains[root]["netvm"] or root == "rem":
                self._link(name, self.domains[base])

    def _link(self, name: str, settings: dict[str, Any]) -> None:
        netvm = settings["netvm"]
        if netvm or settings["provides_network"]:
            self.edges |= {(name, netvm or INTERNET), (netvm or INTERNET, name)}

    def _call_everyone(self) -> None:
        asked = ["", "@adminvm", "@dispvm", *self.domains, *(f"@dispvm:{b}" for b in self._bases)]
        for caller in self.domains:
            if caller == "dom0":
                continue
            for system in self._as_it_may_be(caller):
                for (service, argument), target in product(CALLS, asked):
                    request = self._request(service, argument, caller, target)
                    for real in self._real_targets(request, system):
                        self._note(caller, service, target, real)

    def _as_it_may_be(self, caller: str) -> Iterator[SystemInfo]:
        if caller not in self.made:
            yield SystemInfo.from_dict(self.domains)
            return
        base = self.made[caller][1]
        for default in {base, self.domains[base]["default_dispvm"]}:
            own = {**self.domains[caller], "default_dispvm": default}
            yield SystemInfo.from_dict({**self.domains, caller: own})

    def _request(self, service: str, argument: str, caller: str, target: str) -> Request:
        if self.domains[caller]["type"] != "RemoteVM":
            return Request(service, argument, caller, target)
        relay = self.domains[caller]["relayvm"] or "dom0"
        return Request(service, argument, relay, target, requested_source=caller)

    def _real_targets(self, request: Request, system: SystemInfo) -> Iterator[str]:
        decision = decide(request, self._policy, system)
        choices = [decision]
        if isinstance(decision, Ask):
            choices = [decision.choose(target) for target in decision.targets]
        for choice in choices:
            if isinstance(choice, Allow):
                yield choice.target

    def _note(self, caller: str, service: str, asked: str, real: str) -> None:
        if real.startswith("@dispvm:"):
            base = self._named(real.removeprefix("@dispvm:"))
            root = self.made[caller][0] if caller in self.made else caller
            made = f"{root}-{base}-{'deep' if caller in self.made else 'first'}"
            self.births.add((caller, made, asked))
            self.calls |= {(caller, made, caller, asked), (made, caller, caller, asked)}
            return
        real = self._named(real)
        self.calls |= {(caller, real, caller, asked), (real, caller, caller, asked)}
        if real == "dom0" and service in POWERS:
            self._administer(caller, asked, POWERS[service])

    def _root(self, name: str) -> str:
        """Where the templates of a qube begin."""
        name = self.made[name][1] if name in self.made else name
        seen: set[str] = set()
        while (template := self.domains[name].get("template")) and template not in seen:
            seen.add(template)
            name = template
        return name

    def _administer(self, caller: str, asked: str, power: Power) -> None:
        if power is Power.NOTES:
            self.calls.add((caller, self._root(caller), caller, asked))
            return
        everybody = set(self.domains) - {"dom0"}
        is_global = asked not in everybody
        for subject in everybody if is_global else {asked}:
            self.calls.add((subject, caller, caller, asked))
            if power is not Power.READS:
                self.calls.add((caller, subject, caller, asked))
            if power is Power.CHANGES and not is_global:
                self.calls |= {(subject, other, caller, asked) for other in everybody}
                self.calls |= {(other, subject, caller, asked) for other in everybody}

    def _named(self, reference: str) -> str:
        found = SystemInfo.from_dict(self.domains).find(reference)
        return found.name if found else reference

    def alive(self) -> set[str]:
        """Who exists, or can come to be."""
        alive = {n for n in self.domains if n not in self.made} | {INTERNET}
        while (
            more := {
                made
                for maker, made, asked in self.births
                if maker in alive and asked not in self.made.keys() - alive
            }
            - alive
        ):
            alive |= more
        return alive

    def pairs(self) -> set[tuple[str, str]]:
        """Between whom data flows in one step."""
        alive = self.alive()
        never = self.made.keys() - alive
        edges = self.edges | {
            (a, b) for a, b, caller, asked in self.calls if not {caller, asked} & never
        }
        return {(a, b) for a, b in edges if a != b and {a, b} <= alive}

    def closure(self, start: str, *, turned: bool) -> set[str]:
        """Who is reached, the slow way."""
        pairs = self.pairs()
        edges = {(b, a) for a, b in pairs} if turned else pairs
        reached, fresh = {start}, {start}
        while fresh:
            able = {n for n in fresh if n != "dom0" or n == start}
            fresh = {b for a, b in edges if a in able} - reached
            reached |= fresh
        return reached - {start}


def _pairs(system: Concrete) -> set[tuple[str, str]]:
    """The same of the sets."""
    found = set()
    for edge in system.edges:
        for one in bits.numbers(edge.sources & system.alive):
            for other in bits.numbers(edge.targets & system.alive & ~(1 << one)):
                found.add((_spelled(system.name(one)), _spelled(system.name(other))))
    return found


def _spelled(end: str) -> str:
    """The name that a new disposable has in `Plain`."""
    if not end.startswith("new disposable of "):
        return end
    base, maker = end.removeprefix("new disposable of ").split(", made by ")
    root = maker.removeprefix("a disposable of ")
    return f"{root}-{base}-{'first' if root == maker else 'deep'}"


@settings(max_examples=60, deadline=None)
@given(policies, systems())
def test_closure_is_that_of_each_call_decided_by_the_reference(
    policy: PolicySet, domains: dict[str, dict[str, Any]]
) -> None:
    """Neither a flow too few nor one too many, in both directions, from every qube."""
    plain = Plain(policy, domains)
    assert _pairs(Concrete(policy.rules, Facts.from_dict(domains), OPTIONS)) == plain.pairs()
    flows = Flows(policy.rules, Facts.from_dict(domains), OPTIONS)
    for name in [*NAMES, "dom0", INTERNET]:
        onward = {_spelled(chain.end) for chain in flows.onward(name)}
        assert onward == plain.closure(name, turned=False)
        inward = {_spelled(chain.end) for chain in flows.inward(name)}
        assert inward == plain.closure(name, turned=True)
