"""The policy files (specification sheet `qrexec`, section 4.4).

In the admin qube these are methods like the others. For qubes they are services that answer
without a frame, see `piped`; the policy decides who may call them, as about everything else.
Whoever may write policy may give itself every right.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial

import structlog

from caisson.admin.methods.text import listing
from caisson.admin.registry import Access, Call, Scope, Text, To, method
from caisson.errors import CaissonError, NotImplementedHereError, PolicyRequestError
from caisson.names import DOM0, ServiceArgument, ServiceName, shown
from caisson.qrexec.evaluating import Kind
from caisson.store.policy_directory import Changed, PolicyFile, Token
from caisson.store.policy_store import PolicyStore
from caisson.store.registered_arguments import FILE as REGISTERED
from caisson.store.registered_arguments import register_argument

_LONGEST_TOKEN = 71
_REGISTERED = re.compile(rb"[A-Za-z0-9._-]{1,64}")

_log = structlog.get_logger("policy")


def _store(call: Call) -> PolicyStore:
    if call.services.policies is None:
        raise NotImplementedHereError("this daemon has no policy files")
    return call.services.policies


def _file(call: Call, *, included: bool) -> PolicyFile:
    """The file that the argument names."""
    return PolicyFile.parse(call.untrusted_argument, included=included)


def _token(untrusted: bytes) -> Token:
    return Token.parse(untrusted[: _LONGEST_TOKEN + 1].decode("latin-1"))


async def _list(call: Call, *, included: bool) -> str:
    return listing(await asyncio.to_thread(_store(call).names, included=included))


async def _get(call: Call, *, included: bool) -> bytes:
    file = _file(call, included=included)
    content = await asyncio.to_thread(_store(call).read, file)
    _warn(call, file)
    return f"{Token.of(content).text}\n".encode() + content


async def _replace(call: Call, *, included: bool) -> None:
    file = _file(call, included=included)
    untrusted_token, newline, content = call.untrusted_payload.partition(b"\n")
    if not newline:
        raise PolicyRequestError(
            "the payload has no second line", hint="send a token, a line break, the new content"
        )
    await _change(call, file, partial(_store(call).replace, file, _token(untrusted_token), content))
    _warn(call, file)


async def _remove(call: Call, *, included: bool) -> None:
    file = _file(call, included=included)
    token = _token(call.untrusted_payload)
    await _change(call, file, partial(_store(call).remove, file, token))
    _warn(call, file)


async def _change(call: Call, file: PolicyFile, change: Callable[[], Changed]) -> None:
    """Change a file, and write down who did."""
    async with call.services.policy_writing:
        # A right that was withdrawn by the change before this one is gone.
        call.require(call.untrusted_argument)
        changed = await asyncio.to_thread(change)
    if changed.old == changed.new:
        return
    _log.info(
        "policy changed",
        file=file.path,
        by=call.origin.name,
        method=call.method.name,
        old=changed.old.text,
        new=changed.new.text,
    )


def _warn(call: Call, file: PolicyFile) -> None:
    if _store(call).is_hidden(file):
        call.warn(
            f"`/run/qubes/policy.d/{file.basename}` takes the place of this file, "
            "which decides nothing as long as that one is there"
        )


@method(
    "policy.List", to=To.ADMIN, scope=Scope.POLICY, help="List the policy files, without `.policy`."
)
async def list_policies(call: Call) -> str:
    """List the policies of `/etc/qubes/policy.d`."""
    return await _list(call, included=False)


@method(
    "policy.include.List",
    to=To.ADMIN,
    scope=Scope.POLICY,
    help="List the files in `include/` of the policy directory.",
)
async def list_includes(call: Call) -> str:
    """List the included files."""
    return await _list(call, included=True)


@method(
    "policy.Get",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.POLICY,
    help="Tell a policy file: a line `sha256:…`, then its content.",
)
async def get_policy(call: Call) -> bytes:
    """Tell a policy, behind the token that a change of it needs."""
    return await _get(call, included=False)


@method(
    "policy.include.Get",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.POLICY,
    help="Tell a file of `include/`: a line `sha256:…`, then its content.",
)
async def get_include(call: Call) -> bytes:
    """Tell an included file, behind the token that a change of it needs."""
    return await _get(call, included=True)


@method(
    "policy.Replace",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.POLICY,
    access=Access.WRITE,
    help="Replace or make a policy file. Payload: `any`, `new` or `sha256:…`; the new content.",
)
async def replace_policy(call: Call) -> None:
    """Replace or make a policy, if it is what the token says."""
    await _replace(call, included=False)


@method(
    "policy.include.Replace",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.POLICY,
    access=Access.WRITE,
    help="Replace or make a file of `include/`. Payload as for `policy.Replace`.",
)
async def replace_include(call: Call) -> None:
    """Replace or make an included file, if it is what the token says."""
    await _replace(call, included=True)


@method(
    "policy.Remove",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.POLICY,
    access=Access.WRITE,
    help="Remove a policy file. Payload: `any` or `sha256:…`.",
)
async def remove_policy(call: Call) -> None:
    """Remove a policy, if it is what the token says."""
    await _remove(call, included=False)


@method(
    "policy.include.Remove",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.POLICY,
    access=Access.WRITE,
    help="Remove a file of `include/` that no policy includes. Payload: `any` or `sha256:…`.",
)
async def remove_include(call: Call) -> None:
    """Remove an included file, if it is what the token says."""
    await _remove(call, included=True)


@method(
    "policy.GetFiles",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.POLICY,
    help="List the files that hold a rule for a service, in the order of the rules.",
)
async def get_files(call: Call) -> str:
    """List the files that decide about a service; rules for every service count."""
    service = _service(call.untrusted_argument)
    return listing(await asyncio.to_thread(_store(call).files_for, service))


@method(
    "policy.RegisterArgument",
    to=To.NOT_ADMIN,
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.POLICY,
    access=Access.WRITE,
    help="Let the qube that it is called on call a service (the argument) of the calling qube back,"
    " with one argument (the payload, up to 64 bytes).",
)
async def register(call: Call) -> None:
    """Add the rule `SERVICE +ARGUMENT DESTINATION CALLER allow`, unless it is there."""
    service = _service(call.untrusted_argument)
    if _REGISTERED.fullmatch(call.untrusted_payload) is None:
        raise PolicyRequestError(
            f"`{shown(call.untrusted_payload)}` cannot be registered as an argument",
            hint="use 1 to 64 letters, digits, `.`, `_` and `-`",
        )
    caller, destination = call.origin.name, call.destination.name
    if caller == DOM0:
        raise PolicyRequestError(f"nobody calls `{DOM0}` back", hint="write the rule yourself")
    argument = ServiceArgument.parse(call.untrusted_payload.decode("ascii"))
    await _change(
        call,
        REGISTERED,
        partial(
            register_argument,
            _store(call),
            service,
            argument,
            source=destination,
            target=caller,
        ),
    )


@method(
    "policy.EvalSimple",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.POLICY,
    help="Tell whether the policy would allow a call of a service (the argument, `SERVICE` or"
    " `SERVICE+ARGUMENT`), if asked-for people said yes. Payload: source, a NUL, target.",
)
async def evaluate(call: Call) -> bytes:
    """Tell one bit of the policy."""
    return _evaluated(call, Kind.SIMPLE)


@method(
    "policy.EvalGUI",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.POLICY,
    help="As `policy.EvalSimple`, about qubes that have the tag `guivm-CALLER`; of others it is"
    " always denied.",
)
async def evaluate_for_gui(call: Call) -> bytes:
    """Tell one bit of the policy to the GUI qube of those that it is about."""
    return _evaluated(call, Kind.GUI)


def _evaluated(call: Call, kind: Kind) -> bytes:
    caller, payload = call.origin.name, call.untrusted_payload
    return call.services.evaluate(kind, call.untrusted_argument, caller, payload)


def _service(untrusted: str) -> ServiceName:
    try:
        return ServiceName.parse(untrusted)
    except CaissonError as error:
        raise PolicyRequestError(error.message, error.hint) from None
