"""Arguments that qubes registered: rules that let one qube call another back with just that one.

Specification sheet `qrexec`, section 4.4, `policy.RegisterArgument`.
"""

from __future__ import annotations

from caisson.errors import PolicyAdminError
from caisson.names import PolicyFileName, QubeName, ServiceArgument, ServiceName
from caisson.policy import Action, PolicySet, Rule
from caisson.store.policy_directory import Changed, PolicyFile
from caisson.store.policy_store import PolicyStore

FILE = PolicyFile(PolicyFileName("60-registered-arguments"), included=False)
MOST_OF_ONE = 64
"""Arguments of one service that a qube may register: the file is bounded for all together."""
_ABOUT = b"# What qubes registered with policy.RegisterArgument. Remove what you do not want.\n"


def register_argument(
    store: PolicyStore,
    service: ServiceName,
    argument: ServiceArgument,
    *,
    source: QubeName,
    target: QubeName,
) -> Changed:
    """Let `source` call `service` with this argument in `target`, which is who registers it.

    Registering the same again changes nothing.

    Raises:
        PolicyAdminError: another rule is about this argument already, the qube has registered as
            many as it may, or nothing can be written.
    """
    rule = f"{service} +{argument} {source} {target} allow\n".encode()

    def appended(old: bytes | None, policy: PolicySet) -> bytes | None:
        about = [r for r in policy.rules if (r.service, r.argument) == (service, f"+{argument}")]
        if not about:
            _check_room(policy, service, target)
            before = _ABOUT if old is None else old
            return before + (b"" if before.endswith(b"\n") or not before else b"\n") + rule
        if any(_says(each, source, target) for each in about):
            return old
        raise PolicyAdminError(
            f"a rule for `{service}` `+{argument}` exists already", hint="use another argument"
        )

    return store.edit(FILE, appended)


def _check_room(policy: PolicySet, service: ServiceName, target: QubeName) -> None:
    held = sum(
        (rule.service, str(rule.target)) == (service, target)
        and rule.location.file.endswith(FILE.basename)
        for rule in policy.rules
    )
    if held >= MOST_OF_ONE:
        raise PolicyAdminError(
            f"`{target}` has {held} registered arguments of `{service}`, the most it may have",
            hint=f"take those that are not used any more out of `{FILE.basename}`",
        )


def _says(rule: Rule, source: QubeName, target: QubeName) -> bool:
    words = (str(rule.source), str(rule.target), rule.action, rule.redirect)
    return words == (source, target, Action.ALLOW, None)
