#!/bin/sh
# Puts outboxd on a host, from a copy of the project: the program in a directory of
# its version, with `current` naming the one in use; /usr/local/bin/outboxd; user,
# spool, socket and service; man page and completions. To be run as root, and again
# to upgrade. It starts nothing and never changes a configuration that is there.
#
#   install.sh            the agent of this host
#   install.sh ACCOUNT    beside it, one more agent for another account
#   install.sh --remove   all but configuration, outbox, spool and user
#   install.sh --purge    those too
#
# PYTHON names the Python to use (3.11 or newer; otherwise the system's). EXTRA=postgresql
# brings the driver of an outbox on PostgreSQL along; an upgrade keeps it. A packager
# sets DESTDIR, and perhaps VENDOR (/usr/lib: units of a package) and PROGRAM (where
# the program will be): then files are copied and nothing is run.
set -eu
umask 022 # what is installed is for all users, whatever the caller's
cd "$(dirname "$0")"
root=${DESTDIR:-}
vendor=$root${VENDOR:-/etc}
program=${PROGRAM:-/opt/outboxd/current}
etc=$root/etc
account=${1:-}

say() { printf '%s\n' "$@"; }

fail() {
    printf 'install.sh: %s\n' "$2" >&2
    exit "$1"
}

# --- removing ---------------------------------------------------------------

accounts() { # of agents beside the host's own
    for config in /etc/outboxd/*.toml; do
        name=$(basename "$config" .toml)
        [ "$name" = '*' ] || [ "$name" = config ] || say "$name"
    done
}

remove() {
    for unit in outboxd $(accounts | sed 's/^/outboxd@/'); do
        systemctl disable --now "$unit.service" "$unit.socket" 2>/dev/null || true
    done
    rm -f /etc/systemd/system/outboxd.service /etc/systemd/system/outboxd.socket \
        /etc/systemd/system/outboxd@.service /etc/systemd/system/outboxd@.socket \
        /etc/tmpfiles.d/outboxd.conf /etc/tmpfiles.d/outboxd-*.conf \
        /usr/local/bin/outboxd /usr/local/share/man/man1/outboxd.1 \
        /usr/local/share/bash-completion/completions/outboxd \
        /usr/local/share/zsh/site-functions/_outboxd \
        /usr/local/share/fish/vendor_completions.d/outboxd.fish
    rm -rf /opt/outboxd /run/outboxd /run/outboxd-*
    systemctl daemon-reload 2>/dev/null || true
    if [ "$1" = --remove ]; then
        say "removed; kept are /etc/outboxd, /var/lib/outboxd, /var/spool/outboxd and the user" \
            "with events that wait in them: install.sh --purge removes these too"
        exit 0
    fi
    rm -rf /etc/outboxd /var/lib/outboxd /var/lib/outboxd-* /var/spool/outboxd /var/spool/outboxd-*
    rm -f /etc/sysusers.d/outboxd.conf
    userdel outboxd 2>/dev/null || true
    groupdel outboxd 2>/dev/null || true
    say "removed, with configuration, key, outbox and spool"
    exit 0
}

case $account in
--remove | --purge) remove "$account" ;;
*[!A-Za-z0-9_-]* | -*)
    fail 64 "an account's name has letters, digits, - and _ only (or --remove, or --purge)"
    ;;
esac

# --- the program ------------------------------------------------------------

find_python() {
    for python in ${PYTHON:-/usr/bin/python3 python3 /usr/bin/python3.1[1-9]}; do
        # The one with its version in its name: it stays what it is when python3 becomes another.
        found=$("$python" -c '
import os, sys, venv, ensurepip
named = "%s/bin/python%d.%d" % (sys.base_prefix, *sys.version_info[:2])
print(named if os.path.exists(named) else sys.executable) if sys.version_info >= (3, 11) else 0
' 2>/dev/null) && [ -n "$found" ] && say "$found" && return
    done
    fail 69 "there is no Python 3.11 or newer with venv: on Debian, apt install python3-venv"
}

install_program() {
    python=$(find_python)
    mkdir -p /opt/outboxd/versions
    new=$(mktemp -d "/opt/outboxd/versions/$(date +%Y-%m-%dT%H%M%S).XXXX")
    chmod 0755 "$new"
    trap 'rm -rf "$new"' EXIT # half of a version is none
    "$python" -m venv "$new"
    extra=${EXTRA:-}
    if /opt/outboxd/current/bin/python -I -c 'import psycopg' 2>/dev/null; then
        extra=postgresql
    fi
    "$new/bin/python" -I -m pip --disable-pip-version-check install --quiet "..${extra:+[$extra]}"
    make_documents "$new/bin/outboxd" /usr/local/share
    # From here on it is the one in use. Each step is one rename: a job that starts
    # meanwhile has the old program or the new one, whole.
    ln -s "versions/${new##*/}" /opt/outboxd/.current.new
    mv -T /opt/outboxd/.current.new /opt/outboxd/current
    trap - EXIT
    mkdir -p /usr/local/bin
    "$new/bin/python" -I -m outboxd.producer.build /usr/local/bin/outboxd \
        --environment /opt/outboxd/current
    # The running agent may still read the one before; older ones nobody does.
    find /opt/outboxd/versions -mindepth 1 -maxdepth 1 -type d | sort | head -n -2 |
        while read -r old; do rm -rf "$old"; done
}

make_documents() { # PROGRAM SHARE: man page and completions
    mkdir -p "$2/man/man1" "$2/bash-completion/completions" "$2/zsh/site-functions" \
        "$2/fish/vendor_completions.d"
    "$1" manpage >"$2/man/man1/outboxd.1"
    "$1" completion bash >"$2/bash-completion/completions/outboxd"
    "$1" completion zsh >"$2/zsh/site-functions/_outboxd"
    "$1" completion fish >"$2/fish/vendor_completions.d/outboxd.fish"
}

# --- the service ------------------------------------------------------------

if [ -z "$account" ] || [ ! -e "$vendor/systemd/system/outboxd@.service" ]; then
    for unit in outboxd.service outboxd.socket outboxd@.service outboxd@.socket; do
        mkdir -p "$vendor/systemd/system"
        sed "s,/opt/outboxd/current,$program,g" "$unit" >"$vendor/systemd/system/$unit"
    done
    install -D -m 0644 outboxd.sysusers.conf "$vendor/sysusers.d/outboxd.conf"
fi

if [ -n "$account" ]; then
    name=outboxd-$account
    config=$etc/outboxd/$account.toml
    tmpfiles=$etc/tmpfiles.d/$name.conf # never a package's
else
    name=outboxd
    config=$etc/outboxd/config.toml
    tmpfiles=$vendor/tmpfiles.d/$name.conf
fi
key=/etc/outboxd/${account:+$account.}komodor-api-key

# The same for another account, with its own directories and key.
for_account() {
    sed -e "s,/\(run\|spool\|lib\)/outboxd,/\1/$name,g" \
        -e "s,/etc/outboxd/komodor-api-key,$key," "$1"
}

mkdir -p "$(dirname "$tmpfiles")" "$etc/outboxd"
for_account outboxd.tmpfiles.conf >"$tmpfiles"
if [ ! -e "$config" ]; then
    for_account config.toml >"$config"
fi

if [ -n "$root" ]; then
    exit 0
fi
if [ -z "$account" ] && [ -z "${VENDOR:-}" ]; then
    install_program
fi
systemd-sysusers "$vendor/sysusers.d/outboxd.conf"
systemd-tmpfiles --create "$tmpfiles"
service=outboxd${account:+@$account}
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if systemctl is-active --quiet "$service.service"; then
        say "installed; the agent that runs is the one before. Now:" \
            "  systemctl restart $service.service    # producers do not notice"
        exit 0
    fi
fi
say "installed. Now:"
[ -s "$key" ] || say "  install -m 0400 -o outboxd /dev/stdin $key    # paste the key, end with Ctrl-D"
say "  systemctl enable --now $service.socket $service.service" \
    "  outboxd check -c $config" \
    "Whoever is to hand in events: usermod -aG outboxd NAME, then a new login."
