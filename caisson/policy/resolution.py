"""The steps of a decision around the search for a rule: who calls whom, and what comes of it.

Specification sheet `qrexec`, section 3.3, steps 1 to 3, 6 and 8. Both evaluators use them.
"""

from __future__ import annotations

import msgspec

from caisson.errors import PolicyError, ValueRefusedError
from caisson.names import ServiceArgument, ServiceName, shown
from caisson.policy.outcome import Allow, Deny, Reason, Request
from caisson.policy.rules import Rule
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import DEFAULT, Kind, Token, parse_request_token

_RUNNING = "Running"


class Call(msgspec.Struct, frozen=True, gc=False):
    """A request whose names were checked: the source that rules see, and the target token."""

    request: Request
    source: Domain
    target: Token


def admit(request: Request, domains: SystemInfo) -> Call | Deny:
    """Check the names of a request (steps 1 to 3)."""
    source = domains.find(request.source)
    if source is None:
        return Deny(Reason.BAD_SOURCE, f"there is no qube `{shown(request.source)}`")
    if not request.target:
        target = DEFAULT
    else:
        try:
            target = parse_request_token(request.target)
        except PolicyError as e:
            return Deny(Reason.BAD_TARGET, e.message)
    if target.kind is Kind.NAME and domains.find(target.value) is None:
        # The caller learns nothing about which qubes exist: an unknown name is no name.
        target = DEFAULT
    if target.kind is Kind.DISPVM_OF and not can_be_base(target.value, domains):
        return Deny(Reason.BAD_TARGET, _no_base(target.value))
    if request.requested_source:
        remote = domains.find(request.requested_source)
        if remote is None or remote.type != "RemoteVM" or remote.relayvm != source.name:
            return Deny(
                Reason.BAD_SOURCE,
                f"`{shown(source.name)}` is not the relay of `{shown(request.requested_source)}`",
            )
        source = remote
    return Call(request, source, target)


def denied(rule: Rule) -> Deny:
    """What comes of a call that `rule` denies (step 5)."""
    return Deny(Reason.RULE, f"denied by {rule.location}", rule.notify, rule.location)


def permit(call: Call, rule: Rule, chosen: Token, domains: SystemInfo) -> Allow | Deny:
    """What comes of a call to `chosen` that `rule` allows (steps 6 and 8)."""
    target = _settle(call, rule, chosen, domains)
    if isinstance(target, Deny):
        return target
    if not rule.autostart and not may_run(target, domains):
        text = f"`{shown(target)}` does not run, and autostart=no ({rule.location})"
        return Deny(Reason.NOT_RUNNING, text, rule.notify, rule.location)
    if target == call.source.name:
        text = f"`{shown(target)}` cannot call itself ({rule.location})"
        return Deny(Reason.LOOPBACK, text, location=rule.location)
    qube = domains.find(target)
    if qube is not None and qube.type == "RemoteVM":
        return _relayed(call, rule, target, qube, domains)
    return Allow(
        target=target,
        requested_target=str(call.target),
        source=call.source.name,
        service=call.request.descriptor,
        location=rule.location,
        user=rule.user,
        autostart=rule.autostart,
        notify=rule.notify,
    )


def _settle(call: Call, rule: Rule, chosen: Token, domains: SystemInfo) -> str | Deny:
    """The real target that `chosen` stands for, in the form that `Allow.target` has."""
    match chosen.kind:
        case Kind.ADMINVM:
            return "dom0"
        case Kind.NAME if domains.find(chosen.value) is not None:
            return chosen.key
        case Kind.NAME:
            reason, text = Reason.NO_TARGET, f"there is no qube `{shown(chosen.value)}`"
        case Kind.DISPVM | Kind.DISPVM_OF:
            base = chosen.value or call.source.default_dispvm
            if base and can_be_base(base, domains):
                return f"@dispvm:{base}"
            reason = Reason.BAD_TARGET if base else Reason.NO_TARGET
            text = _no_base(base) if base else f"`{shown(call.source.name)}` has no default_dispvm"
        case _:
            reason, text = Reason.NO_TARGET, "neither the caller nor the rule says which qube"
    return Deny(reason, f"{text} ({rule.location})", location=rule.location)


def may_run(target: str, domains: SystemInfo) -> bool:
    """Whether a call to `target` starts nothing: dom0, or a qube that is running.

    Of a qube on another machine nobody knows that; its relay must not have to be started.
    """
    if target == "dom0":
        return True
    qube = domains.find(target)
    if qube is not None and qube.type == "RemoteVM":
        qube = domains.find(qube.relayvm or "")
    return qube is not None and qube.power_state == _RUNNING


def can_be_base(reference: str, domains: SystemInfo) -> bool:
    """Whether disposables can be made from the qube of this name or `uuid:` form."""
    qube = domains.find(reference)
    return qube is not None and qube.template_for_dispvms


def _no_base(reference: str) -> str:
    return f"disposables cannot be made from `{shown(reference)}`"


def _relayed(
    call: Call, rule: Rule, target: str, remote: Domain, domains: SystemInfo
) -> Allow | Deny:
    """A call to a qube on another machine goes to the transport service of its relay.

    The service is told the name of the remote qube, whatever the caller called it.
    """
    relay = domains.find(remote.relayvm) if remote.relayvm else None
    if relay is None or not remote.transport_rpc:
        text = f"`{shown(remote.name)}` has no relayvm or no transport_rpc"
    elif relay.type in ("AdminVM", "RemoteVM"):
        text = f"`{shown(relay.name)}` cannot be a relay"
    else:
        return _through(relay, call, rule, target, remote)
    return Deny(Reason.RELAY, f"{text} ({rule.location})", location=rule.location)


def _through(relay: Domain, call: Call, rule: Rule, target: str, remote: Domain) -> Allow | Deny:
    service = f"{remote.transport_rpc}+{remote.name}+{call.request.descriptor}"
    try:
        _check_service(service)
    except ValueRefusedError as e:
        text = f"`{shown(remote.name)}` cannot be told of the call: {e.message} ({rule.location})"
        return Deny(Reason.RELAY, text, location=rule.location)
    return Allow(
        target=target,
        requested_target=str(call.target),
        source=call.source.name,
        service=service,
        location=rule.location,
        autostart=rule.autostart,
        notify=rule.notify,
        relay=relay.name,
    )


def _check_service(descriptor: str) -> None:
    """Check what a relay's agent would be told: `transport_rpc` is free text.

    Raises:
        ValueRefusedError: it is no service with an argument, or too long for one.
    """
    name, _, argument = descriptor.partition("+")
    ServiceName.parse(name)
    ServiceArgument.parse(argument)
    if len(descriptor) > ServiceArgument.longest:
        raise ValueRefusedError(
            f"service and argument are longer than {ServiceArgument.longest} characters"
        )
