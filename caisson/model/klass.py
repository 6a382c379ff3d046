"""Classes of qubes and the states they can be in."""

from __future__ import annotations

from enum import StrEnum


class Klass(StrEnum):
    """The class of a qube; the value is its name on the wire."""

    ADMIN = "AdminVM"
    TEMPLATE = "TemplateVM"
    APP = "AppVM"
    STANDALONE = "StandaloneVM"
    DISPOSABLE = "DispVM"
    REMOTE = "RemoteVM"


class PowerState(StrEnum):
    """The state of a qube (sheet `admin-api`, section 2.4)."""

    HALTED = "Halted"
    TRANSIENT = "Transient"
    RUNNING = "Running"
    PAUSED = "Paused"
    SUSPENDED = "Suspended"
    HALTING = "Halting"
    DYING = "Dying"
    CRASHED = "Crashed"
    NA = "NA"
