#!/bin/sh
# Makes a clean Debian with PostgreSQL, in which the package is tried; prints its directory.
# Changes nothing that is already complete. Ends with 1 and a SKIP line when it cannot be had.
#
# It takes some minutes and 600 MB once, and outlives the checkout: WALMGR_TEST_DEBIAN names another directory.
set -u

directory=${WALMGR_TEST_DEBIAN:-/var/tmp/walmgr-test-debian}
suite=bookworm
include=postgresql,sudo,systemd-sysv,dbus
# Another list of packages is another root: the one that is there may be in use.
root=$directory/$suite-$(echo "$include" | cksum | cut -d ' ' -f 1)

skip() {
    echo "SKIP: $1"
    exit 1
}

[ "$(id -u)" = 0 ] || skip 'a Debian of its own takes root'
exec 9>"$directory.lock" || skip "$directory.lock cannot be written"
flock 9
if [ -e "$root.complete" ]; then
    echo "$root"
    exit 0
fi
command -v debootstrap >/dev/null || skip 'debootstrap is absent (apt-get install debootstrap)'
rm -rf "$root"
mkdir -p "$directory" || skip "$directory cannot be made"
# A mirror that answers nothing must not stop the tests.
if ! timeout 900 debootstrap --variant=minbase --include="$include" "$suite" "$root" >"$directory/log" 2>&1; then
    skip "debootstrap failed, see $directory/log: $(tail -n 1 "$directory/log")"
fi
# What a test starts, it starts itself.
rm -rf "$root/var/cache/apt/archives" "$root"/var/lib/apt/lists/*
touch "$root.complete"
echo "$root"
