"""What qubes tell the admin qube about themselves (specification sheet, section 2.1, misc socket).

The caller is the source of the call, whatever it says; the admin qube is its destination.
"""

from __future__ import annotations

import time

from caisson.admin.registry import Access, Call, Scope, Text, To, method
from caisson.errors import ProtocolError
from caisson.ext.core_features import announced
from caisson.model import Event, Qube
from caisson.model.events import joined
from caisson.names import DOM0, shown

_DIGITS_LONGEST = 19
UPDATES = "updates-available"
LAST_CHECK = "last-updates-check"
LAST_UPDATE = "last-update"


async def _announce(call: Call) -> None:
    """Let extensions look at what the caller announces."""
    found = announced(call.extensions.core, call.origin)
    event = Event(call.origin.name, "features-request", {"untrusted_features": repr(found)})
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
    today = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
    features = {UPDATES: "1" if count else "", LAST_CHECK: today}
    if count == 0:
        features[LAST_UPDATE] = today
    plan = call.qubes.system.plan_feature
    await call.qubes.commit(joined(plan(template, name, text) for name, text in features.items()))


def _count(untrusted: bytes) -> int:
    text = untrusted.strip()
    if not text.isdigit() or len(text) > _DIGITS_LONGEST:
        raise ProtocolError(
            f"`{shown(untrusted)}` is not a number of updates", hint="send decimal digits"
        )
    return int(text)
