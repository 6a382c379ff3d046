"""The calls that the commands of an unmodified client make, in their order (sheet, section 9)."""

from __future__ import annotations

from collections.abc import Mapping

from conformance.sheet_client import UNSET, Refused, SheetClient, Value

GUARDED = {"name", "qid", "template", "label", "uuid", "installed_by_rpm"}
"""Properties that a clone does not copy."""


def known(client: SheetClient, *names: str) -> None:
    """Look the qubes up, as every command does first."""
    found = client.qubes()
    assert set(names) <= set(found), names


def qvm_ls(client: SheetClient, *names: str) -> dict[str, dict[str, object]]:
    """List qubes with all their properties; with names, their states are asked for one by one."""
    table: dict[str, dict[str, object]] = {}
    for name, listed in client.qubes().items():
        if names and name not in names:
            continue
        row: dict[str, object] = {k: v.value for k, v in client.get_all(name).items()}
        state = client.state(name) if names else listed.state
        table[name] = row | {"state": state, "class": listed.klass}
    return table


def prefs(client: SheetClient, owner: str | None) -> dict[str, Value]:
    """List properties: the names, and the values of all at once."""
    if owner is not None:
        known(client, owner)
    whose = ("dom0", "admin.property.List") if owner is None else (owner, "admin.vm.property.List")
    names = client.lines(*whose)
    values = client.get_all(owner)
    assert set(values) == set(names)
    return values


def prefs_get(client: SheetClient, owner: str | None, name: str) -> Value:
    """Ask for one property."""
    if owner is not None:
        known(client, owner)
    return client.get(owner, name)


def prefs_set(client: SheetClient, owner: str | None, name: str, value: object) -> None:
    """Set a property; `none` is how a person writes that there is none."""
    if owner is not None:
        known(client, owner)
    empty = str(value).lower() == "none" and name in {"default_dispvm", "netvm", "template"}
    client.set(owner, name, "" if empty else str(value))


def prefs_reset(client: SheetClient, owner: str | None, name: str) -> None:
    """Let a property have its default."""
    if owner is None:
        client.call("dom0", "admin.property.Reset", name)
    else:
        known(client, owner)
        client.call(owner, "admin.vm.property.Reset", name)


def prefs_help(client: SheetClient, owner: str | None) -> dict[str, str]:
    """Explain all properties: one paragraph of ASCII each."""
    dest, prefix = ("dom0", "admin") if owner is None else (owner, "admin.vm")
    names = client.lines(dest, f"{prefix}.property.List")
    return {name: client.text(dest, f"{prefix}.property.Help", name) for name in names}


def qvm_create(
    client: SheetClient,
    name: str,
    label: str,
    *,
    klass: str = "AppVM",
    template: str = "",
    pool: str = "",
    props: Mapping[str, str] | None = None,
) -> None:
    """Create a qube, and set properties of it."""
    assert label in client.lines("dom0", "admin.label.List")
    method = "admin.vm.CreateInPool" if pool else "admin.vm.Create"
    words = f"name={name} label={label}" + (f" pool={pool}" if pool else "")
    assert client.call("dom0", f"{method}.{klass}", template, words) == b""
    known(client, name)
    for key, text in (props or {}).items():
        client.set(name, key, text)


def qvm_start(client: SheetClient, name: str) -> None:
    """Start a qube; one that runs is an error of the command, not of the daemon."""
    known(client, name)
    assert client.state(name) == "Halted"
    assert client.call(name, "admin.vm.Start") == b""


def qvm_shutdown(client: SheetClient, name: str, *flags: str) -> None:
    """Shut a qube down; one that is not started is fine."""
    known(client, name)
    _unless(client, "QubesVMNotStartedError", name, "admin.vm.Shutdown", "+".join(flags))


def qvm_kill(client: SheetClient, name: str) -> None:
    """End a qube; one that is not started is fine."""
    known(client, name)
    _unless(client, "QubesVMNotStartedError", name, "admin.vm.Kill")


def qvm_pause(client: SheetClient, name: str, verb: str = "Pause") -> None:
    """Freeze a qube, or send it to sleep."""
    known(client, name)
    client.call(name, f"admin.vm.{verb}")


def qvm_unpause(client: SheetClient, name: str) -> None:
    """Let a qube go on, in the way that fits its state."""
    known(client, name)
    asleep = client.state(name) == "Suspended"
    client.call(name, "admin.vm.Resume" if asleep else "admin.vm.Unpause")


def before_service(client: SheetClient, name: str, *, gui: bool = False, root: bool = False) -> str:
    """What `qvm-run` asks before it hands over to qrexec; the user for graphical programs."""
    known(client, name)
    if gui:
        client.get(name, "guivm")
        client.feature(name, "gui", "CheckWithTemplate")
    if client.state(name) == "Paused":
        client.call(name, "admin.vm.Unpause")
    wanted = ["vmexec", "os"] + ["supported-rpc.qubes.VMRootExec"] * root
    for feature in wanted:
        client.feature(name, feature, "CheckWithTemplate")
    user = str(client.get(name, "default_user").value) if gui else "DEFAULT"
    _unless(client, "QubesVMNotHaltedError", name, "admin.vm.Start")
    return user


def in_disposable(client: SheetClient, template: str = "") -> str:
    """`qvm-run --dispvm` up to the service; the name of the disposable."""
    asked = template or str(client.get("dom0", "default_dispvm").value)
    for feature in ("vmexec", "os"):
        client.feature(asked, feature, "CheckWithTemplate")
    name = client.text(template or "dom0", "admin.vm.CreateDisposable")
    assert client.get(name, "qrexec_timeout").value not in (None, UNSET)
    assert client.call(name, "admin.vm.Start") == b""
    return name


def after_disposable(client: SheetClient, name: str) -> None:
    """The clean-up, which tolerates only that it does not run."""
    _unless(client, "QubesVMNotRunningError", name, "admin.vm.Kill")


def qvm_clone(client: SheetClient, source: str, new: str, *, pool: str = "") -> None:
    """Clone a qube with everything; what was begun is removed where it fails."""
    klass = client.qubes()[source].klass
    template = ""
    try:
        template = client.get(source, "template").text
    except Refused as refused:
        if not refused.is_a("AttributeError"):
            raise
    label = client.get(source, "label").text
    method = "admin.vm.CreateInPool" if pool else "admin.vm.Create"
    words = f"name={new} label={label}" + (f" pool={pool}" if pool else "")
    client.call("dom0", f"{method}.{klass}", template, words)
    try:
        known(client, new)
        _clone_properties(client, source, new)
        _clone_marks(client, source, new)
        _clone_rules(client, source, new)
        _clone_volumes(client, source, new)
    except BaseException:
        client.call(new, "admin.vm.Remove")
        raise


def _clone_properties(client: SheetClient, source: str, new: str) -> None:
    for name in client.lines(source, "admin.vm.property.List"):
        if name in GUARDED:
            continue
        found = client.get(source, name)
        if found.default or found.value is UNSET:
            continue
        try:
            client.set(new, name, found.text)
        except Refused as refused:
            if not refused.is_a("AttributeError"):
                raise


def _clone_marks(client: SheetClient, source: str, new: str) -> None:
    for tag in client.lines(source, "admin.vm.tag.List"):
        if not tag.startswith("created-by-"):
            client.call(new, "admin.vm.tag.Set", tag)
    for feature in client.lines(source, "admin.vm.feature.List"):
        if feature == "preload-dispvm-max" or not feature.startswith("preload-dispvm"):
            value = client.feature(source, feature)
            assert value is not None
            client.call(new, "admin.vm.feature.Set", feature, value)


def _clone_rules(client: SheetClient, source: str, new: str) -> None:
    if notes := client.call(source, "admin.vm.notes.Get"):
        client.call(new, "admin.vm.notes.Set", "", notes)
    rules = client.text(source, "admin.vm.firewall.Get")
    client.call(new, "admin.vm.firewall.Set", "", rules)


def _clone_volumes(client: SheetClient, source: str, new: str) -> None:
    for volume in client.lines(new, "admin.vm.volume.List"):
        if volume_info(client, new, volume)["save_on_stop"] == "True":
            token = client.text(source, "admin.vm.volume.CloneFrom", volume)
            assert len(token) == 32
            client.call(new, "admin.vm.volume.CloneTo", volume, token)
    for devclass in client.lines("dom0", "admin.deviceclass.List"):
        for line in client.lines(source, f"admin.vm.device.{devclass}.Assigned"):
            raise AssertionError(f"nothing hands out devices yet: {line}")


def volume_info(client: SheetClient, name: str, volume: str) -> dict[str, str]:
    """What the daemon tells of a volume."""
    rows = client.lines(name, "admin.vm.volume.Info", volume)
    return dict(row.split("=", 1) for row in rows)


def qvm_remove(client: SheetClient, name: str) -> list[tuple[str | None, str]]:
    """Remove a qube; where it is in use, the properties that refer to it."""
    known(client, name)
    try:
        client.call(name, "admin.vm.Remove")
    except Refused as refused:
        if not refused.is_a("QubesVMInUseError"):
            raise
    else:
        return []
    owners: list[str | None] = [None, *(each for each in client.qubes() if each != name)]
    found = []
    for owner in owners:
        whose = "dom0", "admin.property.List"
        if owner is not None:
            whose = owner, "admin.vm.property.List"
        for prop in client.lines(*whose):
            value = client.get(owner, prop)
            if value.kind == "vm" and not value.default and value.value == name:
                found.append((owner, prop))
    assert found, f"`{name}` is said to be in use, and nothing refers to it"
    return found


def _unless(client: SheetClient, kind: str, dest: str, method: str, arg: str = "") -> None:
    """Call, and take one kind of refusal for success."""
    try:
        assert client.call(dest, method, arg) == b""
    except Refused as refused:
        if not refused.is_a(kind):
            raise
