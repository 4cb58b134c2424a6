#!/bin/bash
# Builds the minimal guest kernel (Linux 6.1, from Debian's linux-source-6.1) for microVMs.
#
#   kernel/build.sh TARGET               for hardware KVM
#   kernel/build.sh --emulated TARGET    for test hosts whose KVM emulates the guest's kernel mode (README.md)
#
# TARGET is where the uncompressed vmlinux goes. Takes some minutes. Needs the packages linux-source-6.1 flex bison bc
# libelf-dev libssl-dev build-essential xz-utils patch; nothing is installed by this script.
# SOURCE: another archive of the kernel's source than the package's. JOBS: compilers at once (all processors).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
emulated=no
if [ "${1:-}" = --emulated ]; then
  emulated=yes
  shift
fi
if [ $# -ne 1 ]; then
  echo "usage: $0 [--emulated] TARGET" >&2
  exit 2
fi
target=$(realpath -m -- "$1")
source=${SOURCE:-/usr/src/linux-source-6.1.tar.xz}
missing=
for program in flex bison bc gcc make patch xz; do
  command -v "$program" >/dev/null || missing="$missing $program"
done
[ -e "$source" ] || missing="$missing $source (package linux-source-6.1)"
if [ -n "$missing" ]; then
  echo "not found:$missing" >&2
  exit 1
fi

work=$(mktemp -d "${TMPDIR:-/var/tmp}/emberbox-kernel.XXXXXX")
trap 'rm -rf -- "$work"' EXIT
tar --extract --file "$source" --directory "$work" --strip-components=1
cd "$work"
fragments=("$here/frag.config")
if [ "$emulated" = yes ]; then
  patch --strip=1 --silent < "$here/emukvm.patch"
else
  fragments+=("$here/hardware.config")
fi
export KBUILD_BUILD_TIMESTAMP='1970-01-01' KBUILD_BUILD_USER=emberbox KBUILD_BUILD_HOST=emberbox
make -s tinyconfig
scripts/kconfig/merge_config.sh -m .config "${fragments[@]}" >/dev/null
make -s olddefconfig
# an option that the kernel does not know, or whose conditions are not met, is left out without a word: a kernel without
# its protections would look like one that has them
lost=$(cat "${fragments[@]}" | awk -F= '
  /^CONFIG_[A-Z0-9_]+=/ { wanted[$1] = $2 }
  /^# CONFIG_[A-Z0-9_]+ is not set/ { split($0, word, " "); wanted[word[2]] = "n" }
  END { for (name in wanted) if (wanted[name] != "n") print name "=" wanted[name] }' | sort | grep -vxFf .config || true)
if [ -n "$lost" ]; then
  echo "this source has no such options, or not with this configuration:" $lost >&2
  exit 1
fi
make -j"${JOBS:-$(nproc)}" vmlinux
mkdir -p -- "$(dirname -- "$target")"
strip -o "$work/vmlinux.stripped" vmlinux
chmod 0444 "$work/vmlinux.stripped"
# a copy beside the target and a rename: whoever looks never sees half a kernel
cp --preserve=mode -- "$work/vmlinux.stripped" "$target.$$"
mv -- "$target.$$" "$target"
sha256sum -- "$target"
