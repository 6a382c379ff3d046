#!/bin/sh
# What this system is, and which services it offers, for the admin qube's record of the template.

# A value as the admin qube takes it; of a longer one, the beginning.
plain() {
    printf %.255s "$(printf %s "$1" | tr -dc 'A-Za-z0-9.,_= -')"
}

# One value of os-release, which is read and not run.
release() {
    line=$(sed -n "s/^$1=//p" /etc/os-release 2>/dev/null | head -n 1)
    line=${line#[\"\']}
    plain "${line%[\"\']}"
}

qvm-features-request qrexec=1 vmexec=1 os=Linux || exit
for pair in distribution=ID distribution-like=ID_LIKE version=VERSION_ID eol=SUPPORT_END; do
    value=$(release "${pair#*=}")
    [ -z "$value" ] || qvm-features-request "os-${pair%%=*}=$value" || exit
done

set --
for directory in /etc/qubes-rpc /usr/local/etc/qubes-rpc; do
    for service in "$directory"/*; do
        name=${service##*/}
        case "$name" in
            *+* | *[!A-Za-z0-9_.-]*) continue ;;
        esac
        # A service may be a link to a port, which leads to no file.
        case "$(readlink "$service")" in
            /dev/tcp | /dev/tcp/*) ;;
            *) [ -x "$service" ] || [ -S "$service" ] || continue ;;
        esac
        set -- "$@" "supported-rpc.$name=1"
    done
done
set -- "$@" supported-service.updates-proxy-setup=1
if command -v tinyproxy >/dev/null; then
    set -- "$@" supported-service.qubes-updates-proxy=1
fi
exec qvm-features-request "$@"
