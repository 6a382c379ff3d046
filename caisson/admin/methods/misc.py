"""What qubes tell the admin qube about themselves (specification sheet, section 2.1, misc socket).

The caller is the source of the call, whatever it says; the admin qube is its destination.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from caisson.admin.registry import Access, Call, Scope, Text, To, method
from caisson.errors import ProtocolError
from caisson.ext.core_features import MOST_ANNOUNCED, REQUESTS, announced
from caisson.model import Qube
from caisson.model.events import event_of, joined
from caisson.names import DOM0, FeatureName, shown

_DIGITS_LONGEST = 19
_ANNOUNCEMENT_LONGEST = 48 * 1024
_TIME = "%Y-%m-%d %H:%M:%S"
_FRESH = timedelta(minutes=1)
UPDATES = FeatureName("updates-available")
LAST_CHECK = FeatureName("last-updates-check")
LAST_UPDATE = FeatureName("last-update")


async def _announce(call: Call) -> None:
    """Let extensions look at what the caller announces, in the call or before it."""
    core, uuid = call.extensions.core, call.origin.uuid
    untrusted_said = _said(call.untrusted_payload)
    core.untrusted_announcing[uuid] = untrusted_said
    try:
        found = announced(core, call.origin)
        event = event_of(call.origin, "features-request", {"untrusted_features": repr(found)})
        await call.extensions.tell(event)
    finally:
        # A later call of the same qube may have said something else: the last word counts.
        if core.untrusted_announcing.get(uuid) is untrusted_said:
            del core.untrusted_announcing[uuid]


for _name, _payload, _help in (
    (
        "qubes.FeaturesRequest",
        Text.OPTIONAL,
        "Take over the features that the caller announces: `NAME=VALUE` lines.",
    ),
    (
        "qubes.NotifyTools",
        Text.NONE,
        "The same for what older tools of other systems announce.",
    ),
):
    method(_name, to=To.ADMIN, payload=_payload, scope=Scope.MISC, access=Access.WRITE, help=_help)(
        _announce
    )


def _said(untrusted: bytes) -> dict[str, str]:
    """The lines of a payload by key, as announcements have them; none is judged yet.

    Raises:
        ProtocolError: it is too long, or no such lines; none of it is taken over then.
    """
    if len(untrusted) > _ANNOUNCEMENT_LONGEST:
        raise ProtocolError(
            f"an announcement of {len(untrusted)} bytes is too long",
            hint=f"send at most {_ANNOUNCEMENT_LONGEST} bytes",
        )
    found: dict[str, str] = {}
    for untrusted_line in untrusted.decode("latin-1").removesuffix("\n").split("\n"):
        if untrusted_line:
            name, separator, value = untrusted_line.partition("=")
            if not separator or f"{REQUESTS}{name}" in found:
                raise ProtocolError(
                    f"`{shown(untrusted_line)}` is no announcement, or the second of its name",
                    hint="send one `NAME=VALUE` a line",
                )
            found[f"{REQUESTS}{name}"] = value
    if len(found) > MOST_ANNOUNCED:
        raise ProtocolError(
            f"{len(found)} features are too many", hint=f"announce at most {MOST_ANNOUNCED}"
        )
    return found


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
