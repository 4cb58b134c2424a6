#!/bin/sh
# Installs Emberbox from this checkout as a service: deploy/install.sh [RELEASE]
#
# Each call makes a release of its own below /opt/emberbox/releases (by default named by the time), with dependencies
# checked against requirements/runtime.lock, and makes it the current one. The unit is replaced; settings and data that
# are there stay as they are. To go back: ln -sfn releases/OLDER /opt/emberbox/current, and restart. Nothing is started
# here.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
release=${1:-$(date -u +%Y%m%d-%H%M%S)}
base=/opt/emberbox
target=$base/releases/$release

say() { printf '%s\n' "install: $*" >&2; }
die() { say "$*"; exit 1; }

[ "$(id -u)" = 0 ] || die "root is needed"
[ ! -e "$target" ] || die "$target is there already"
python3 -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "Python 3.11 or newer with venv is needed: apt-get install python3-venv"

trap 'rm -rf "$target"' EXIT
mkdir -p "$target"
say "making $target"
python3 -m venv "$target/venv"
"$target/venv/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes --only-binary=:all: \
    -r "$here/requirements/runtime.lock"
packages=$("$target/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -R "$here/src/emberbox" "$packages/emberbox"
find "$packages/emberbox" -name __pycache__ -prune -exec rm -rf {} +
"$target/venv/bin/python" -m compileall -q "$packages/emberbox" || die "the package does not compile"
cp -R "$here/docs" "$here/deploy" "$target/"
printf '#!%s\nfrom emberbox.cli.app import main\n\nmain()\n' "$target/venv/bin/python" >"$target/venv/bin/emberbox"
chmod 755 "$target/venv/bin/emberbox"
"$target/venv/bin/emberbox" --version >&2
trap - EXIT

ln -sfn "releases/$release" "$base/current"
ln -sfn "$base/current/venv/bin/emberbox" /usr/local/bin/emberbox
if [ ! -e /etc/emberbox/emberbox.toml ]; then
    mkdir -p -m 755 /etc/emberbox
    sed 's|^#cache_dir = .*|cache_dir = "/var/cache/emberbox"|' "$here/deploy/emberbox.toml" \
        >/etc/emberbox/emberbox.toml
    chmod 600 /etc/emberbox/emberbox.toml
    say "made /etc/emberbox/emberbox.toml"
fi
if [ -d /etc/systemd/system ]; then
    cp "$here/deploy/emberbox.service" /etc/systemd/system/emberbox.service
    say "next: emberbox --config /etc/emberbox/emberbox.toml setup --yes"
    say "      systemctl daemon-reload && systemctl enable --now emberbox    (restart, if it runs)"
fi
