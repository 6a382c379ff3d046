"""One good call for every method of the Admin API, with the bytes of its answer.

All calls are about the world of `admin_world`. A method that changes something names a reading
call whose answer shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Final

from admin_calls import Good, Seen, Step, like, ok, refused
from admin_world import CONNECTED, POLICIES

from caisson.names import DOM0

_GLOBAL = """
check_updates_vm clockvm default_audiovm default_dispvm default_guivm default_kernel default_netvm
default_pool default_pool_kernel default_pool_private default_pool_root default_pool_volatile
default_qrexec_timeout default_shutdown_timeout default_template management_dispvm maxmem no_cpus
stats_interval updatevm
"""
_APP = """
audiovm autostart backup_timestamp bootmode debug default_dispvm default_user devices_denied dns
gateway gateway6 guivm icon include_in_backups installed_by_rpm ip ip6 kernel kernelopts
keyboard_layout klass label mac management_dispvm maxmem memory name netvm provides_network qid
qrexec_timeout shutdown_timeout start_time stubdom_mem stubdom_uuid stubdom_xid template
template_for_dispvms updateable uuid vcpus virt_mode visible_gateway visible_gateway6 visible_ip
visible_ip6 visible_netmask xid
"""
_GLOBAL_VALUES = b"""\
check_updates_vm default=True type=bool True
clockvm default=True type=vm\x20
default_audiovm default=True type=vm dom0
default_dispvm default=False type=vm base
default_guivm default=True type=vm dom0
default_kernel default=True type=str\x20
default_netvm default=True type=vm\x20
default_pool default=True type=str varlibqubes
default_pool_kernel default=True type=str linux-kernel
default_pool_private default=True type=str varlibqubes
default_pool_root default=True type=str varlibqubes
default_pool_volatile default=True type=str varlibqubes
default_qrexec_timeout default=True type=int 60
default_shutdown_timeout default=True type=int 60
default_template default=False type=vm tpl
management_dispvm default=True type=vm\x20
maxmem default=True type=int 8000
no_cpus default=True type=int 1
stats_interval default=False type=int 7
updatevm default=True type=vm\x20
"""
_REMOTE_VALUES = rb"""icon default=True type=str remotevm-gray
include_in_backups default=True type=bool False
klass default=True type=str RemoteVM
label default=False type=label gray
name default=False type=str far
qid default=False type=int 8
relayvm default=True type=vm\x20
remote_name default=True type=str\x20
transport_rpc default=True type=str\x20
uuid default=False type=str [0-9a-f-]{36}
"""
_VOLUME = b"""\
pool=varlibqubes
vid=appvms/work/private
size=2147483648
usage=7
rw=True
source=
path=
save_on_stop=True
snap_on_start=False
revisions_to_keep=1
ephemeral=False
is_outdated=False
"""
_GRANT = b'{"source":"work","target":"@dispvm:base","service":"my.Service","seconds":600}'
_GRANTED = (
    rb'\[\{"id":"grant-[0-9a-f]{8}","service":"my.Service","argument":"\+","source":"work",'
    rb'"target":"@dispvm:base","redirect":null,"user":null,"by":[0-9]+,"made":[0-9]+,'
    rb'"seconds_left":(?:600|5[0-9]{2}),"missing":\[\],'
    rb'"rule":"my.Service \+ uuid:[0-9a-f-]{36} @dispvm:uuid:[0-9a-f-]{36} allow"\}\]'
)
_SYSTEM_INFO = (
    rb'\{"domains":\{"dom0":\{.*\},"work":\{.*'
    rb'"far":\{"internal":null,"tags":\["created-by-dom0"\],"type":"RemoteVM",'
    rb'"template_for_dispvms":false,"default_dispvm":null,"icon":"remotevm-gray",'
    rb'"label":"0x555555","guivm":null,"relayvm":null,"transport_rpc":null,'
    rb'"power_state":"Running","uuid":"[0-9a-f-]{36}","isolation":null,"default_user":null,'
    rb'"netvm":null,"template":null,"provides_network":false,"created_tags":\[\]\}\}\}'
)
_NO_BACKUP = refused("QubesNotImplementedError", "backups cannot be made yet")
_NO_DEVICE = refused("ProtocolError", "does not exist")
_NO_IMPORT = refused("QubesNotImplementedError", "volumes cannot be imported yet")
_RUNNING: Final = (Step("admin.vm.Start"),)
_PAUSED: Final = (*_RUNNING, Step("admin.vm.Pause"))


def _names(words: str) -> bytes:
    return ok("".join(f"{word}\n" for word in words.split()).encode())


def _listed(name: str, klass: str, state: str = "Halted") -> Seen:
    line = rf"{name} class={klass} state={state} uuid=[0-9a-f-]{{36}}\n"
    return Seen("admin.vm.List", like(line.encode()), name)


def _is(state: str) -> Seen:
    return _listed("work", "AppVM", state)


def _created(klass: str, *, volumes: bytes = b"") -> Good:
    words = b"name=new label=red" + volumes
    template = {"AppVM": "tpl", "DispVM": "base"}.get(klass, "")
    return Good(ok(), template, words, DOM0, seen=(_listed("new", klass),))


def _remote(good: Good) -> Good:
    return replace(good, seen=(_listed("new", "RemoteVM", "Running"),))


def _device(devclass: str) -> Mapping[str, Good]:
    port = "dom0+00_1f.2"
    assignment = f"mode='required' devclass='{devclass}'".encode()
    not_there = refused("DeviceNotAssigned", "device `dom0:00_1f.2:*` is not")
    return {
        f"admin.vm.device.{devclass}.{verb}": good
        for verb, good in {
            "Available": Good(ok(), "00_1f.2"),
            "Assigned": Good(ok(), port),
            "Attached": Good(ok(), port),
            "Assign": Good(_NO_DEVICE, port, assignment),
            "Unassign": Good(not_there, port),
            "Attach": Good(_NO_DEVICE, port, before=_RUNNING),
            "Detach": Good(not_there, port),
            "Set.assignment": Good(
                refused("QubesValueError", "is not assigned to qube `work`"), port, b"required"
            ),
        }.items()
    }


def _policy(name: str) -> bytes:
    content = POLICIES[name]
    return ok(f"sha256:{sha256(content).hexdigest()}\n".encode() + content)


GOOD: Final[Mapping[str, Good]] = {
    "admin.vmclass.List": Good(
        ok(b"AdminVM\nTemplateVM\nAppVM\nStandaloneVM\nDispVM\nRemoteVM\n"), dest=DOM0
    ),
    "admin.vm.List": Good(_listed("work", "AppVM").reply),
    "admin.Events": Good(CONNECTED, dest=DOM0),
    "admin.vm.Stats": Good(CONNECTED, dest=DOM0),
    # --- properties
    "admin.property.List": Good(_names(_GLOBAL), dest=DOM0),
    "admin.property.Get": Good(ok(b"default=False type=int 7"), "stats_interval", dest=DOM0),
    "admin.property.GetAll": Good(ok(_GLOBAL_VALUES), dest=DOM0),
    "admin.property.GetDefault": Good(ok(b"type=int 3"), "stats_interval", dest=DOM0),
    "admin.property.Help": Good(
        ok(b"How many seconds pass between two reports of statistics."), "stats_interval", dest=DOM0
    ),
    "admin.property.Set": Good(
        ok(),
        "stats_interval",
        b"9",
        DOM0,
        seen=(Seen("admin.property.Get+stats_interval", ok(b"default=False type=int 9"), DOM0),),
    ),
    "admin.property.Reset": Good(
        ok(),
        "stats_interval",
        dest=DOM0,
        seen=(Seen("admin.property.Get+stats_interval", ok(b"default=True type=int 3"), DOM0),),
    ),
    "admin.vm.property.List": Good(_names(_APP)),
    "admin.vm.property.Get": Good(ok(b"default=False type=str a\\b\nc"), "kernelopts"),
    "admin.vm.property.GetAll": Good(like(_REMOTE_VALUES), dest="far"),
    "admin.vm.property.GetDefault": Good(ok(b"type=int 400"), "memory"),
    "admin.vm.property.Help": Good(
        like(rb"Memory that the qube starts with, in MiB\. [ -~]+"), "memory"
    ),
    "admin.vm.property.Set": Good(
        ok(),
        "memory",
        b"600",
        seen=(Seen("admin.vm.property.Get+memory", ok(b"default=False type=int 600")),),
    ),
    "admin.vm.property.Reset": Good(
        ok(),
        "memory",
        seen=(Seen("admin.vm.property.Get+memory", ok(b"default=True type=int 400")),),
    ),
    # --- features, tags, labels, notes
    "admin.vm.feature.List": Good(ok(b"color\n")),
    "admin.vm.feature.Get": Good(ok(b"deep blue"), "color"),
    "admin.vm.feature.CheckWithTemplate": Good(ok(b"of tpl"), "kind"),
    "admin.vm.feature.CheckWithNetvm": Good(ok(b"of net"), "wire", dest="base"),
    "admin.vm.feature.CheckWithAdminVM": Good(ok(b"here"), "site"),
    "admin.vm.feature.CheckWithTemplateAndAdminVM": Good(ok(b"here"), "site"),
    "admin.vm.feature.Set": Good(
        ok(), "color", b"red", seen=(Seen("admin.vm.feature.Get+color", ok(b"red")),)
    ),
    "admin.vm.feature.Remove": Good(ok(), "color", seen=(Seen("admin.vm.feature.List", ok()),)),
    "admin.vm.tag.List": Good(ok(b"audiovm-dom0\ncreated-by-dom0\nguivm-dom0\nmine\n")),
    "admin.vm.tag.Get": Good(ok(b"1"), "mine"),
    "admin.vm.tag.Set": Good(ok(), "ours", seen=(Seen("admin.vm.tag.Get+ours", ok(b"1")),)),
    "admin.vm.tag.Remove": Good(ok(), "mine", seen=(Seen("admin.vm.tag.Get+mine", ok(b"0")),)),
    "admin.label.List": Good(
        ok(b"red\norange\nyellow\ngreen\ngray\nblue\npurple\nblack\nmint\n"), dest=DOM0
    ),
    "admin.label.Get": Good(ok(b"0xaabbcc"), "mint", dest=DOM0),
    "admin.label.Index": Good(ok(b"9"), "mint", dest=DOM0),
    "admin.label.Create": Good(
        ok(),
        "teal",
        b"0x008080",
        DOM0,
        seen=(
            Seen("admin.label.Get+teal", ok(b"0x008080"), DOM0),
            Seen("admin.label.Index+teal", ok(b"10"), DOM0),
        ),
    ),
    "admin.label.Remove": Good(
        ok(),
        "mint",
        dest=DOM0,
        seen=(Seen("admin.label.Get+mint", refused("QubesLabelNotFoundError", "`mint`"), DOM0),),
    ),
    "admin.vm.notes.Get": Good(ok(b"buy milk\n")),
    "admin.vm.notes.Set": Good(
        ok(), payload=b"buy \xc3\xa9", seen=(Seen("admin.vm.notes.Get", ok(b"buy \xc3\xa9")),)
    ),
    # --- life
    "admin.vm.Create.AdminVM": Good(
        refused("QubesException", "there is one admin qube"),
        payload=b"name=new label=red",
        dest=DOM0,
    ),
    "admin.vm.Create.AppVM": _created("AppVM"),
    "admin.vm.Create.DispVM": _created("DispVM"),
    "admin.vm.Create.RemoteVM": _remote(_created("RemoteVM")),
    "admin.vm.Create.StandaloneVM": _created("StandaloneVM"),
    "admin.vm.Create.TemplateVM": _created("TemplateVM"),
    "admin.vm.CreateInPool.AdminVM": Good(
        refused("QubesException", "there is one admin qube"),
        payload=b"name=new label=red pool=varlibqubes",
        dest=DOM0,
    ),
    "admin.vm.CreateInPool.AppVM": _created("AppVM", volumes=b" pool=varlibqubes"),
    "admin.vm.CreateInPool.DispVM": _created("DispVM", volumes=b" pool:volatile=varlibqubes"),
    "admin.vm.CreateInPool.RemoteVM": _remote(_created("RemoteVM", volumes=b" pool=varlibqubes")),
    "admin.vm.CreateInPool.StandaloneVM": _created("StandaloneVM", volumes=b" pool:root=host"),
    "admin.vm.CreateInPool.TemplateVM": _created("TemplateVM", volumes=b" pool:root=host"),
    "admin.vm.CreateDisposable": Good(
        like(rb"disp[0-9]{1,4}"),
        dest="base",
        seen=(Seen("admin.vm.List", like(rb".*\ndisp[0-9]+ class=DispVM .*"), DOM0),),
    ),
    "admin.vm.Remove": Good(
        ok(), seen=(Seen("admin.vm.List", refused("QubesVMNotFoundError", "no qube `work`")),)
    ),
    "admin.vm.Start": Good(ok(), seen=(_is("Running"),)),
    "admin.vm.Shutdown": Good(ok(), "force+wait", before=_RUNNING, seen=(_is("Halted"),)),
    "admin.vm.Kill": Good(ok(), before=_RUNNING, seen=(_is("Halted"),)),
    "admin.vm.Pause": Good(ok(), before=_RUNNING, seen=(_is("Paused"),)),
    "admin.vm.Unpause": Good(ok(), before=_PAUSED, seen=(_is("Running"),)),
    "admin.vm.Suspend": Good(ok(), before=_RUNNING, seen=(_is("Paused"),)),
    "admin.vm.Resume": Good(ok(), before=_PAUSED, seen=(_is("Running"),)),
    "admin.vm.Console": Good(
        refused("QubesNotImplementedError", "consoles are not available"), before=_RUNNING
    ),
    "admin.vm.CurrentState": Good(ok(b"mem=0 mem_static_max=0 cputime=0 power_state=Halted")),
    # --- volumes and pools
    "admin.vm.volume.List": Good(ok(b"root\nprivate\nvolatile\nkernel\n")),
    "admin.vm.volume.Info": Good(ok(_VOLUME), "private"),
    "admin.vm.volume.ListSnapshots": Good(ok(), "private"),
    "admin.vm.volume.Revert": Good(
        ok(),
        "private",
        b"{revision}",
        before=(
            Step("admin.vm.volume.Set.revisions_to_keep+private", payload=b"2"),
            Step("admin.vm.volume.Clear+private"),
        ),
        seen=(Seen("admin.vm.volume.ListSnapshots+private", like(rb"[^\n]+\n[^\n]+\n")),),
    ),
    "admin.vm.volume.Resize": Good(
        ok(),
        "private",
        b"3000000000",
        seen=(Seen("admin.vm.volume.Info+private", like(rb".*\nsize=3000000000\n.*")),),
    ),
    "admin.vm.volume.Clear": Good(
        ok(),
        "private",
        seen=(Seen("admin.vm.volume.ListSnapshots+private", like(rb"[^\n]+\n")),),
    ),
    "admin.vm.volume.CloneFrom": Good(like(rb"[0-9a-f]{32}"), "private"),
    "admin.vm.volume.CloneTo": Good(
        ok(),
        "private",
        b"{token}",
        seen=(Seen("admin.vm.volume.ListSnapshots+private", like(rb"[^\n]+\n")),),
    ),
    "admin.vm.volume.Set.revisions_to_keep": Good(
        ok(),
        "private",
        b"4",
        seen=(Seen("admin.vm.volume.Info+private", like(rb".*\nrevisions_to_keep=4\n.*")),),
    ),
    "admin.vm.volume.Set.rw": Good(
        ok(),
        "private",
        b"off",
        seen=(Seen("admin.vm.volume.Info+private", like(rb".*\nrw=False\n.*")),),
    ),
    "admin.vm.volume.Set.ephemeral": Good(ok(), "volatile", b"False"),
    "admin.vm.volume.Import": Good(_NO_IMPORT, "private", b"data"),
    "admin.vm.volume.ImportWithSize": Good(_NO_IMPORT, "private", b"4\ndata"),
    "admin.pool.List": Good(ok(b"varlibqubes\nhost\nlinux-kernel\n"), dest=DOM0),
    "admin.pool.ListDrivers": Good(
        ok(
            b"layers dir_path ephemeral_volatile revisions_to_keep\n"
            b"host ephemeral_volatile revisions_to_keep\n"
            b"linux-kernel dir_path ephemeral_volatile revisions_to_keep\n"
        ),
        dest=DOM0,
    ),
    "admin.pool.Info": Good(
        ok(b"driver=layers\nephemeral_volatile=False\nname=varlibqubes\nrevisions_to_keep=1\n"),
        "varlibqubes",
        dest=DOM0,
    ),
    "admin.pool.UsageDetails": Good(
        ok(b"data_size=1000\ndata_usage=10\n"), "varlibqubes", dest=DOM0
    ),
    "admin.pool.Add": Good(
        refused("QubesNotImplementedError", "pools cannot be added yet"),
        "layers",
        b"name=more\ndir_path=/srv\n",
        DOM0,
    ),
    "admin.pool.Remove": Good(
        refused("QubesPoolInUseError", "pool `varlibqubes`"), "varlibqubes", dest=DOM0
    ),
    "admin.pool.Set.revisions_to_keep": Good(
        ok(),
        "varlibqubes",
        b"3",
        DOM0,
        seen=(Seen("admin.pool.Info+varlibqubes", like(rb".*revisions_to_keep=3\n"), DOM0),),
    ),
    "admin.pool.Set.ephemeral_volatile": Good(ok(), "varlibqubes", b"no", DOM0),
    "admin.pool.volume.List": Good(
        like(rb"appvms/base/private\n.*vm-templates/tpl/root\n.*"), "varlibqubes", dest=DOM0
    ),
    # --- devices, firewall, backups
    "admin.deviceclass.List": Good(ok(b"block\nmic\npci\nusb\n"), dest=DOM0),
    **_device("block"),
    **_device("mic"),
    **_device("pci"),
    **_device("usb"),
    "admin.vm.device.denied.List": Good(ok(b"b******")),
    "admin.vm.device.denied.Add": Good(
        ok(),
        payload=b"u03****",
        seen=(Seen("admin.vm.device.denied.List", ok(b"b******\nu03****")),),
    ),
    "admin.vm.device.denied.Remove": Good(
        ok(), payload=b"all", seen=(Seen("admin.vm.device.denied.List", ok()),)
    ),
    "admin.vm.firewall.Get": Good(ok(b"action=accept\n")),
    "admin.vm.firewall.Set": Good(ok(), payload=b"action=accept\n"),
    "admin.vm.firewall.Reload": Good(ok()),
    "admin.backup.Execute": Good(_NO_BACKUP, "daily", dest=DOM0),
    "admin.backup.Info": Good(_NO_BACKUP, "daily", dest=DOM0),
    "admin.backup.Cancel": Good(
        refused("QubesException", "no backup of profile `daily`"), "daily", dest=DOM0
    ),
    # --- policy files
    "policy.List": Good(ok(b"30-user\n50-more\n"), dest=DOM0),
    "policy.include.List": Good(ok(b"unused\nweb\n"), dest=DOM0),
    "policy.Get": Good(_policy("30-user.policy"), "30-user", dest=DOM0),
    "policy.include.Get": Good(_policy("include/web"), "web", dest=DOM0),
    "policy.Replace": Good(
        ok(),
        "40-new",
        b"new\nmy.Other + work base deny\n",
        DOM0,
        seen=(Seen("policy.Get+40-new", like(rb"sha256:[0-9a-f]{64}\nmy.Other .*\n"), DOM0),),
    ),
    "policy.include.Replace": Good(
        ok(),
        "web",
        b"any\nwork base deny\n",
        DOM0,
        seen=(Seen("policy.include.Get+web", like(rb"sha256:.*\nwork base deny\n"), DOM0),),
    ),
    "policy.Remove": Good(
        ok(), "50-more", b"any", DOM0, seen=(Seen("policy.List", ok(b"30-user\n"), DOM0),)
    ),
    "policy.include.Remove": Good(
        ok(), "unused", b"any", DOM0, seen=(Seen("policy.include.List", ok(b"web\n"), DOM0),)
    ),
    "policy.GetFiles": Good(ok(b"30-user\n"), "my.Service", dest=DOM0),
    "policy.EvalSimple": Good(ok(b"result=allow\n"), "my.Service+x", b"work\0base", DOM0),
    "policy.EvalGUI": Good(ok(b"result=deny\n"), "my.Service", b"work\0base", DOM0),
    "policy.RegisterArgument": Good(
        ok(),
        "my.Back",
        b"key-1",
        source="tpl",
        seen=(
            Seen(
                "policy.Get+60-registered-arguments",
                like(rb".*\nmy.Back \+key-1 work (tpl|mgmt) allow\n"),
                DOM0,
            ),
        ),
    ),
    # --- our own, and the other sockets
    "caisson.doctor": Good(
        ok(b'[{"name":"moon","ok":false,"detail":"is new","remedy":"wait"}]'), dest=DOM0
    ),
    "caisson.policy.Grant": Good(
        like(rb"grant-[0-9a-f]{8}"),
        payload=_GRANT,
        dest=DOM0,
        seen=(Seen("caisson.policy.Grants", like(_GRANTED), DOM0),),
    ),
    "caisson.policy.Grants": Good(
        like(_GRANTED), dest=DOM0, before=(Step("caisson.policy.Grant", DOM0, _GRANT),)
    ),
    "caisson.policy.Revoke": Good(
        like(rb"grant-[0-9a-f]{8}\n"),
        "all",
        dest=DOM0,
        before=(Step("caisson.policy.Grant", DOM0, _GRANT),),
        seen=(Seen("caisson.policy.Grants", ok(b"[]"), DOM0),),
    ),
    "caisson.system.Export": Good(like(rb"<\?xml .*<qubes version=.*</qubes>\n"), dest=DOM0),
    "caisson.template.List": Good(ok(b"trixie\n"), dest=DOM0),
    "caisson.template.Build": Good(
        CONNECTED
        + b"1\0\0template-progress\0recipe\0trixie\0text\0fetching trixie\0\0"
        + b"1\0\0template-built\0recipe\0trixie\0\0",
        "trixie",
        dest=DOM0,
    ),
    "caisson.vm.List": Good(
        like(
            rb'\[\{"name":"work","class":"AppVM","state":"Halted","uuid":"[0-9a-f-]{36}",'
            rb'"properties":\{"label":"blue"\},"features":\{"color":"deep blue"\}\}\]'
        ),
        "label+.features",
    ),
    "caisson.vm.SetUp": Good(ok(b"failures=0"), before=_RUNNING),
    "internal.GetSystemInfo": Good(like(_SYSTEM_INFO), dest=DOM0),
    "internal.SuspendPre": Good(ok(), dest=DOM0, before=_RUNNING, seen=(_is("Paused"),)),
    "internal.SuspendPost": Good(
        ok(),
        dest=DOM0,
        before=(*_RUNNING, Step("internal.SuspendPre", DOM0)),
        seen=(_is("Running"),),
    ),
    "internal.vm.volume.ImportBegin": Good(_NO_IMPORT, "private"),
    "internal.vm.volume.ImportEnd": Good(_NO_IMPORT, "private", b"ok"),
    "qubes.FeaturesRequest": Good(
        ok(), dest=DOM0, source="tpl", seen=(Seen("admin.vm.feature.Get+os", ok(b"Linux"), "tpl"),)
    ),
    "qubes.NotifyTools": Good(
        ok(), dest=DOM0, source="tpl", seen=(Seen("admin.vm.feature.Get+os", ok(b"Linux"), "tpl"),)
    ),
    "qubes.NotifyUpdates": Good(
        ok(),
        payload=b"3",
        dest=DOM0,
        source="tpl",
        seen=(Seen("admin.vm.feature.Get+updates-available", ok(b"1"), "tpl"),),
    ),
}
"""By the names of the methods."""
