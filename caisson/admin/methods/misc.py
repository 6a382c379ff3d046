"""What qubes tell the admin qube about themselves (specification sheet, section 2.1, misc socket).

The caller is the source of the call, whatever it says; the admin qube is its destination.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from caisson.admin.registry import Access, Call, Scope, Text, To, method
from caisson.errors import ProtocolError
from caisson.ext.core_features import announced
from caisson.model import Qube
from caisson.model.events import event_of, joined
from caisson.names import DOM0, FeatureName, shown

_DIGITS_LONGEST = 19
_TIME = "%Y-%m-%d %H:%M:%S"
_FRESH = timedelta(minutes=1)
UPDATES = FeatureName("updates-available")
LAST_CHECK = FeatureName("last-updates-check")
LAST_UPDATE = FeatureName("last-update")


async def _announce(call: Call) -> None:
    """Let extensions look at what the caller announces."""
    found = announced(call.extensions.core, call.origin)
    event = event_of(call.origin, "features-request", {"untrusted_features": repr(found)})
    await call.extensions.tell(event)


for _name, _help in (
    ("qubes.FeaturesRequest", "Take over the features that the caller announces."),
    ("qubes.NotifyTools", "The same for what older tools of other systems announce."),
):
    method(_name, to=To.ADMIN, scope=Scope.MISC, access=Access.WRITE, help=_help)(_announce)


@method(
    "qubes.NotifyUpdates",
    to=To.ADMIN,
    payload=Text.REQUIRED,
    scope=Scope.MISC,
    access=Access.WRITE,
    help="Note how many updates the caller, or its template, could install.",
)
async def notify_updates(call: Call) -> None:
    """Note whether updates are there.

    A qube based on a template speaks about that template. It is believed that there are updates,
    which costs at most a look; not that there are none, which could hide them.
    """
    count = _count(call.untrusted_payload)
    qube: Qube = call.origin
    if qube.name == DOM0:
        template = qube
    else:
        *_, template = call.qubes.system.template_chain(qube)
    if template is not qube and count == 0:
        return
    now = datetime.now().replace(microsecond=0)  # noqa: DTZ005 - shown to people of this machine
    features = {}
    if template.features.get(UPDATES) != (found := "1" if count else ""):
        features[UPDATES] = found
    for name in (LAST_CHECK, LAST_UPDATE) if count == 0 else (LAST_CHECK,):
        if not _is_fresh(template.features.get(name, ""), now):
            features[name] = now.strftime(_TIME)
    if features:
        plan = call.qubes.system.plan_feature
        await call.qubes.commit(joined(plan(template, *each) for each in features.items()))


def _is_fresh(noted: str, now: datetime) -> bool:
    """Whether a time was noted a moment ago: a flood of calls is not worth a write each."""
    try:
        age = now - datetime.strptime(noted, _TIME)  # noqa: DTZ007 - as it was written
    except ValueError:
        return False
    return timedelta() <= age < _FRESH


def _count(untrusted: bytes) -> int:
    text = untrusted.strip()
    if not text.isdigit() or len(text) > _DIGITS_LONGEST:
        raise ProtocolError(
            f"`{shown(untrusted)}` is not a number of updates", hint="send decimal digits"
        )
    return int(text)
