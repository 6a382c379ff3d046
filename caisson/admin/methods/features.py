"""Features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from caisson.admin.methods.text import listing
from caisson.admin.registry import Access, Call, Text, method
from caisson.errors import FeatureNotFoundError
from caisson.ext import Right
from caisson.model import Qube, System, limits
from caisson.names import FeatureName

Chain = Callable[[System, Qube], Iterable[Qube]]


@method("admin.vm.feature.List", help="List the features of a qube.")
async def list_features(call: Call) -> str:
    """List the features of a qube, sorted."""
    return listing(sorted(call.destination.features))


def _itself(_system: System, qube: Qube) -> Iterator[Qube]:
    yield qube


def _with_templates(system: System, qube: Qube) -> Iterator[Qube]:
    yield from system.template_chain(qube)


def _with_netvms(system: System, qube: Qube) -> Iterator[Qube]:
    yield qube
    yield from system.netvm_chain(qube)


def _with_admin(system: System, qube: Qube) -> Iterator[Qube]:
    yield qube
    yield system.dom0


def _with_templates_and_admin(system: System, qube: Qube) -> Iterator[Qube]:
    yield from system.template_chain(qube)
    yield system.dom0


_READERS: tuple[tuple[str, Chain, str], ...] = (
    ("Get", _itself, "of a qube"),
    ("CheckWithTemplate", _with_templates, "of a qube, else of its template"),
    ("CheckWithNetvm", _with_netvms, "of a qube, else of its network qubes"),
    ("CheckWithAdminVM", _with_admin, "of a qube, else of the admin qube"),
    (
        "CheckWithTemplateAndAdminVM",
        _with_templates_and_admin,
        "of a qube, else of its template, else of the admin qube",
    ),
)


def _declare_reader(name: str, chain: Chain, help_text: str) -> None:
    @method(
        f"admin.vm.feature.{name}",
        argument=Text.REQUIRED,
        help=f"Tell the value of a feature {help_text}.",
    )
    async def read(call: Call) -> str:
        feature = FeatureName.parse(call.untrusted_argument)
        system = call.qubes.system

        def reading(qube: Qube) -> Right:
            return Right("admin.vm.feature.Get", feature, qube.name)

        call.require_right(reading(call.destination), f"read the feature `{feature}`")
        # Templates and network qubes are looked at in the name of the qube that follows them;
        # what the admin qube says is about itself, too.
        looked_at = (
            qube
            for qube in chain(system, call.destination)
            if qube is not system.dom0 or call.look()(reading(qube))
        )
        value = system.feature(looked_at, feature)
        if value is None:
            raise FeatureNotFoundError(
                f"qube `{call.destination.name}` does not have the feature `{feature}`"
            )
        return value


for _name, _chain, _help in _READERS:
    _declare_reader(_name, _chain, _help)


@method(
    "admin.vm.feature.Set",
    argument=Text.REQUIRED,
    payload=Text.OPTIONAL,
    access=Access.WRITE,
    help="Set a feature of a qube; the empty value means no. "
    f"At most {limits.LONGEST_FEATURE} characters, and {limits.MOST_FEATURES} features a qube.",
)
async def set_feature(call: Call) -> None:
    """Set a feature of a qube."""
    change = call.qubes.system.plan_feature(
        call.destination, call.untrusted_argument, call.untrusted_text
    )
    await call.commit(change)


@method(
    "admin.vm.feature.Remove",
    argument=Text.REQUIRED,
    access=Access.WRITE,
    help="Remove a feature of a qube.",
)
async def remove_feature(call: Call) -> None:
    """Remove a feature of a qube."""
    change = call.qubes.system.plan_remove_feature(call.destination, call.untrusted_argument)
    await call.commit(change)
