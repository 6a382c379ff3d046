"""The first layer of a private volume: what `/rw` looks like in a new qube."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from caisson.names import LayerId
from caisson.storage.pool import Pool

USER: Final = 1000
"""The id of the user `user` inside a qube, and of its group."""

_DIRECTORIES: Final = (
    "bind-dirs",
    "config",
    "config/qubes-bind-dirs.d",
    "home",
    "usrlocal",
    "usrlocal/bin",
    "usrlocal/etc",
    "usrlocal/etc/qubes",
    "usrlocal/etc/qubes-rpc",
    "usrlocal/games",
    "usrlocal/include",
    "usrlocal/lib",
    "usrlocal/sbin",
    "usrlocal/share",
    "usrlocal/share/ca-certificates",
    "usrlocal/src",
)
_SHELL_FILES: Final = {
    ".profile": '[ -n "$BASH_VERSION" ] && [ -r ~/.bashrc ] && . ~/.bashrc\n'
    '[ -d ~/.local/bin ] && PATH="$HOME/.local/bin:$PATH"\n',
    ".bashrc": "case $- in *i*) ;; *) return ;; esac\n"
    "HISTCONTROL=ignoreboth\nHISTSIZE=10000\nHISTFILESIZE=20000\n"
    "shopt -s histappend checkwinsize\n"
    "PS1='\\u@\\h:\\w\\$ '\nalias ls='ls --color=auto'\nalias grep='grep --color=auto'\n",
}


def new_private(pool: Pool) -> LayerId:
    """Make the first layer of a new private volume, sealed."""
    with pool.building(sync=False) as new:
        _lay(new.tree)
    return new.id


def _lay(tree: Path) -> None:
    for name in _DIRECTORIES:
        directory = tree / name
        directory.mkdir()
        directory.chmod(0o755)
    (tree / "usrlocal/man").symlink_to("share/man")
    home = tree / "home/user"
    home.mkdir()
    home.chmod(0o700)
    for name, text in _SHELL_FILES.items():
        file = home / name
        file.write_text(text)
        file.chmod(0o644)
        os.chown(file, USER, USER)
    os.chown(home, USER, USER)
