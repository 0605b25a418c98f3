#!/bin/sh
# Puts outboxd's user, spool, socket and service in place; to be run as root,
# after the program itself is in /opt/outboxd, and again after an update. It
# starts nothing and never changes a configuration that is there.
#
#   install.sh            the agent of this host
#   install.sh ACCOUNT    beside it, one more agent for another account
#
# A packager sets DESTDIR: then files are copied and nothing is run.
set -eu
umask 022
cd "$(dirname "$0")"
etc=${DESTDIR:-}/etc
account=${1:-}

case $account in
*[!A-Za-z0-9_-]* | -*)
    echo "install.sh: an account's name has letters, digits, - and _ only" >&2
    exit 64
    ;;
esac

for unit in outboxd.service outboxd.socket outboxd@.service outboxd@.socket; do
    install -D -m 0644 "$unit" "$etc/systemd/system/$unit"
done
install -D -m 0644 outboxd.sysusers.conf "$etc/sysusers.d/outboxd.conf"

if [ -n "$account" ]; then
    name=outboxd-$account
    config=$etc/outboxd/$account.toml
else
    name=outboxd
    config=$etc/outboxd/config.toml
fi

# The same for another account, with its own directories.
for_account() {
    sed -e "s,/\(run\|spool\|lib\)/outboxd,/\1/$name,g" \
        -e "s,/etc/outboxd/komodor-api-key,/etc/outboxd/${account:+$account.}komodor-api-key," "$1"
}

mkdir -p "$etc/tmpfiles.d" "$etc/outboxd"
for_account outboxd.tmpfiles.conf >"$etc/tmpfiles.d/$name.conf"
if [ ! -e "$config" ]; then
    for_account config.toml >"$config"
fi

if [ -z "${DESTDIR:-}" ]; then
    systemd-sysusers outboxd.conf
    systemd-tmpfiles --create "$name.conf"
    mkdir -p /usr/local/bin
    ln -sfn /opt/outboxd/bin/outboxd /usr/local/bin/outboxd
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
    fi
fi
