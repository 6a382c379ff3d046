"""The errors of Caisson: what went wrong, for a person, and its name on the wire.

Every error that a user can cause or cure derives from `CaissonError`.
`wire_name` is the exception name of the Admin API (specification sheet `admin-api`, section 4);
unmodified clients map it back to their own classes.
"""

from __future__ import annotations

from typing import ClassVar


class CaissonError(Exception):
    """A refusal that is shown to a person.

    Args:
        message: lower case, the value in backticks, what was expected.
        hint: the remedy, shown on its own line; None where there is none.
    """

    wire_name: ClassVar[str] = "QubesException"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class InternalError(CaissonError):
    """A bug of ours: it asks the reader for a report."""

    def __init__(self, message: str) -> None:
        super().__init__(f"internal error: {message}", hint="this is a bug in Caisson; report it")


class ValueRefusedError(CaissonError, ValueError):
    """A value that does not fit its type."""

    wire_name = "QubesValueError"


class PropertyValueError(ValueRefusedError):
    """A value that a property refuses."""

    wire_name = "QubesPropertyValueError"


class NoSuchPropertyError(CaissonError):
    """A property that this class of qube does not have."""

    wire_name = "QubesNoSuchPropertyError"


class QubeNotFoundError(CaissonError):
    """No qube has that name or UUID."""

    wire_name = "QubesVMNotFoundError"


class InvalidUUIDError(CaissonError):
    """A `uuid:` reference that is not a canonical UUID."""

    wire_name = "QubesVMInvalidUUIDError"


class QubeExistsError(CaissonError):
    """The name is taken."""

    wire_name = "QubesVMAlreadyExistsError"


class QubeError(CaissonError):
    """A qube cannot do what was asked of it."""

    wire_name = "QubesVMError"


class QubeInUseError(QubeError):
    """Something else depends on the qube."""

    wire_name = "QubesVMInUseError"


class NotStartedError(QubeError):
    """The qube is halted, and the request needs it started."""

    wire_name = "QubesVMNotStartedError"


class NotRunningError(NotStartedError):
    """The qube is up, but not in the running state."""

    wire_name = "QubesVMNotRunningError"


class NotPausedError(NotStartedError):
    """The qube is not paused."""

    wire_name = "QubesVMNotPausedError"


class NotHaltedError(QubeError):
    """The request needs a halted qube."""

    wire_name = "QubesVMNotHaltedError"


class ShutdownTimeoutError(QubeError):
    """The qube did not shut down in time."""

    wire_name = "QubesVMShutdownTimeoutError"


class LabelNotFoundError(CaissonError):
    """No label has that name."""

    wire_name = "QubesLabelNotFoundError"


class InvalidLabelError(CaissonError):
    """A label name that is not one."""

    wire_name = "QubesInvalidLabelError"


class LabelValueError(CaissonError):
    """A colour that is not one."""

    wire_name = "QubesInvalidLabelValueError"


class LabelInUseError(CaissonError):
    """The label exists already, or a qube has it."""

    wire_name = "QubesLabelInUseError"


class InvalidTagError(CaissonError):
    """A tag that is not one."""

    wire_name = "QubesInvalidTagError"


class TagNotFoundError(CaissonError):
    """The qube does not have that tag."""

    wire_name = "QubesTagNotFoundError"


class FeatureNotFoundError(CaissonError):
    """The qube does not have that feature."""

    wire_name = "QubesFeatureNotFoundError"


class StorageError(CaissonError):
    """A pool, volume or layer cannot do what was asked of it."""

    wire_name = "StoragePoolException"


class PoolInUseError(CaissonError):
    """The pool exists already, or something lives in it."""

    wire_name = "QubesPoolInUseError"


class CopyTokenNotFoundError(CaissonError):
    """No copy of a volume was begun with that token, or it was used."""

    wire_name = "QubesVolumeCopyTokenNotFoundError"


class NotesError(CaissonError):
    """The notes of a qube cannot be read or written."""

    wire_name = "QubesNotesError"


class DeviceNotAssignedError(CaissonError):
    """The device is neither assigned nor attached to the qube."""

    wire_name = "DeviceNotAssigned"


class AssignmentModeError(CaissonError):
    """No mode of an assignment has that name."""

    wire_name = "QubesUnrecognizedDeviceAssignmentMode"


class BackupProfileNotFoundError(CaissonError):
    """No backup profile has that name."""

    wire_name = "QubesBackupProfileNotFoundError"


class NotImplementedHereError(CaissonError):
    """A part of the interface that this version does not have."""

    wire_name = "QubesNotImplementedError"


class ProtocolError(CaissonError):
    """A malformed request."""

    wire_name = "ProtocolError"


class PermissionDeniedError(CaissonError):
    """Refused by a permission hook or an allow-list."""

    wire_name = "PermissionDenied"


class EngineError(QubeError):
    """An engine cannot start or hold a qube; the message names the barrier or the step."""


class NetworkError(QubeError):
    """A qube's link to its network qube cannot be made."""


class PolicyError(CaissonError):
    """A policy that cannot be loaded; the message starts with `FILE:LINE:COLUMN`.

    Args:
        message: what is wrong.
        hint: the remedy.
        file: the policy file; None where the error is not about one.
        line: its line, counted from 1; None where the error is about the whole file.
        column: the column, counted from 1.
        text: that line as it is written; None where it is not at hand.
    """

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        text: str | None = None,
    ) -> None:
        place = ":".join(str(part) for part in (file, line, column) if part is not None)
        super().__init__(f"{place}: {message}" if place else message, hint)
        self.file, self.line, self.column = file, line, column
        self.text = text


class PolicyAdminError(CaissonError):
    """The policy files cannot be read or changed as asked (sheet `qrexec`, section 4.4)."""

    wire_name = "PolicyAdminException"


class PolicyTokenError(PolicyAdminError):
    """The file is not what the caller took it for: somebody else changed it meanwhile."""

    wire_name = "PolicyAdminTokenException"


class PolicyFileNotFoundError(PolicyAdminError):
    """There is no policy file of that name."""

    wire_name = "PolicyAdminFileNotFoundException"


class PolicyRequestError(PolicyAdminError):
    """A malformed request about policy files."""

    wire_name = "PolicyAdminProtocolException"


class PolicySyntaxError(PolicyAdminError):
    """The policy would not load with the change."""

    wire_name = "PolicyAdminSyntaxException"


class InvalidPolicyNameError(PolicyAdminError):
    """A name that policy files may not have."""

    wire_name = "PolicyAdminInvalidFileNameException"


class InvalidPolicyPathError(PolicyAdminError):
    """Under that name there is no plain file of the policy directory."""

    wire_name = "PolicyAdminInvalidFilePathException"


class DaemonError(CaissonError):
    """The daemon does not run or does not answer."""

    wire_name = "QubesDaemonCommunicationError"
