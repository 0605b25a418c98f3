#!/bin/sh
# Makes outboxd_VERSION_ARCH.deb, in the directory given (default: the current one),
# from a copy of the project, on a system of the kind that it is for.
#
#   deb.sh [DIRECTORY]
#
# In it: a virtual environment at its final path, named by its version so that an
# upgrade puts one beside the other; /usr/bin/outboxd; units in the vendor's
# directory; man page and completions. It depends on the Python that it was made
# with. Needs python3-venv and dpkg-deb, and no root. PYTHON names another Python.
set -eu
umask 022
target=$(cd "${1:-.}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage=$work/stage

python=${PYTHON:-/usr/bin/python3}
python_version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
python=/usr/bin/python$python_version # not whatever python3 becomes
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/../src/outboxd/__init__.py")
version=$version${REVISION:+-$REVISION}
architecture=$(dpkg --print-architecture)
home=/usr/lib/outboxd
program=$home/versions/$version

mkdir -p "$stage$home/versions" "$stage/DEBIAN" "$stage/usr/bin" "$stage/usr/share/outboxd"
"$python" -m venv --without-pip "$stage$program"
"$python" -m venv "$work/builder"
"$work/builder/bin/python" -m pip --disable-pip-version-check \
    --python "$stage$program/bin/python" install --quiet --no-compile "$here/.."
# The scripts begin with the interpreter's path, which is the final one from here on.
grep -rlI "$stage" "$stage$program/bin" "$stage$program/pyvenv.cfg" |
    while read -r file; do sed -i "s,$stage,,g" "$file"; done
ln -s "versions/$version" "$stage$home/current"
"$stage$program/bin/python" -I -m outboxd.producer.build "$stage/usr/bin/outboxd" \
    --environment "$home/current"
"$python" -m compileall -q -s "$stage" -j 0 --invalidation-mode unchecked-hash \
    "$stage$program/lib" || true # some packages bring files for other Pythons

DESTDIR=$stage VENDOR=/usr/lib PROGRAM=$home/current sh "$here/install.sh"
# What an agent for another account is made of: `sh /usr/share/outboxd/install.sh NAME`.
cp "$here"/install.sh "$here"/outboxd* "$here/config.toml" "$stage/usr/share/outboxd/"
share=$stage/usr/share
mkdir -p "$share/man/man1" "$share/bash-completion/completions" "$share/zsh/vendor-completions" \
    "$share/fish/vendor_completions.d" "$share/doc/outboxd"
outboxd="$stage$program/bin/python -I -m outboxd"
$outboxd manpage | gzip -9n >"$share/man/man1/outboxd.1.gz"
$outboxd completion bash >"$share/bash-completion/completions/outboxd"
$outboxd completion zsh >"$share/zsh/vendor-completions/_outboxd"
$outboxd completion fish >"$share/fish/vendor_completions.d/outboxd.fish"
cp "$here/../LICENSE" "$share/doc/outboxd/copyright"
cp "$here/../config.example.toml" "$share/doc/outboxd/"

echo /etc/outboxd/config.toml >"$stage/DEBIAN/conffiles"
cat >"$stage/DEBIAN/control" <<CONTROL
Package: outboxd
Version: $version
Architecture: $architecture
Maintainer: outboxd <root@localhost>
Section: admin
Priority: optional
Depends: python$python_version, python3 (>= 3.10), systemd (>= 249), init-system-helpers
Installed-Size: $(du -ks --exclude=DEBIAN "$stage" | cut -f1)
Description: gets events to Komodor's timeline, whatever happens
 A local agent: programs hand it events over a Unix socket or a drop directory;
 it commits them to disk before it answers, and delivers them over HTTPS.
CONTROL

cat >"$stage/DEBIAN/postinst" <<'SCRIPT'
#!/bin/sh
set -e
case $1 in
configure | abort-upgrade | abort-deconfigure | abort-remove) ;;
*) exit 0 ;;
esac
systemd-sysusers outboxd.conf
systemd-tmpfiles --create outboxd.conf
deb-systemd-helper unmask outboxd.socket outboxd.service >/dev/null || true
if deb-systemd-helper --quiet was-enabled outboxd.service; then
    deb-systemd-helper enable outboxd.socket outboxd.service >/dev/null || true
else
    deb-systemd-helper update-state outboxd.socket outboxd.service >/dev/null || true
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    deb-systemd-invoke start outboxd.socket >/dev/null || true
    if [ -n "$2" ]; then
        deb-systemd-invoke try-restart 'outboxd.service' 'outboxd@*.service' >/dev/null || true
    fi
    deb-systemd-invoke start outboxd.service >/dev/null || true
fi
if [ ! -s /etc/outboxd/komodor-api-key ]; then
    echo "outboxd: events are kept until there is a key; as root:"
    echo "  install -m 0400 -o outboxd /dev/stdin /etc/outboxd/komodor-api-key"
    echo "  outboxd check"
fi
SCRIPT

cat >"$stage/DEBIAN/prerm" <<'SCRIPT'
#!/bin/sh
set -e
# At an upgrade it goes on; the new one is started by postinst.
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop outboxd.service outboxd.socket 'outboxd@*.service' 'outboxd@*.socket' || true
fi
# What Python compiled beside its sources is nobody's.
if [ "$1" = remove ]; then
    find /usr/lib/outboxd -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
fi
SCRIPT

cat >"$stage/DEBIAN/postrm" <<'SCRIPT'
#!/bin/sh
set -e
case $1 in
remove)
    [ -d /run/systemd/system ] && systemctl daemon-reload || true
    deb-systemd-helper mask outboxd.socket outboxd.service >/dev/null 2>&1 || true
    ;;
purge)
    deb-systemd-helper purge outboxd.socket outboxd.service >/dev/null 2>&1 || true
    deb-systemd-helper unmask outboxd.socket outboxd.service >/dev/null 2>&1 || true
    rm -rf /etc/outboxd /var/lib/outboxd /var/lib/outboxd-* /var/spool/outboxd \
        /var/spool/outboxd-* /run/outboxd /run/outboxd-* /usr/lib/outboxd
    rm -f /etc/tmpfiles.d/outboxd-*.conf
    userdel outboxd 2>/dev/null || true
    groupdel outboxd 2>/dev/null || true
    ;;
esac
SCRIPT
chmod 0755 "$stage/DEBIAN/postinst" "$stage/DEBIAN/prerm" "$stage/DEBIAN/postrm"

dpkg-deb --root-owner-group --build "$stage" "$target/outboxd_${version}_$architecture.deb"
