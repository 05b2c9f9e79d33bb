#!/bin/sh
# Fetches Patroni and etcd for tests/patroni.rs: a Python environment of its own, and Debian's etcd, unpacked only.
# Changes nothing that is already complete. Ends with 0 and a SKIP line when they cannot be had: the test then
# skips itself.
#
# Members do not run as root, so the files lie where the user postgres reaches them, unless WALMGR_TEST_PATRONI
# names another directory. Debian's python3 comes first: one below a private home is out of that user's reach.
set -u

directory=${WALMGR_TEST_PATRONI:-/var/tmp/walmgr-test-patroni}
wanted='patroni[etcd3]==4.1.5 psycopg[binary]==3.3.9'

skip() {
    echo "SKIP: Patroni: $1"
    exit 0
}

if [ "$(cat "$directory/complete" 2>/dev/null)" = "$wanted" ]; then
    echo "Patroni and etcd are in $directory"
    exit 0
fi
python=/usr/bin/python3
[ -x "$python" ] || python=$(command -v python3) || skip 'there is no python3'
command -v apt-get >/dev/null && command -v dpkg >/dev/null || skip 'there is no apt-get to fetch etcd-server with'

umask 022
rm -rf "$directory"
mkdir -p "$directory/package" || skip "$directory cannot be made"
"$python" -m venv "$directory/venv" || skip 'python3 -m venv fails; Debian has it in python3-venv'
# shellcheck disable=SC2086
"$directory/venv/bin/pip" install --quiet --disable-pip-version-check $wanted || skip 'pip cannot install it'
(cd "$directory/package" && apt-get download --quiet etcd-server) || skip 'apt-get cannot download etcd-server'
for package in "$directory/package"/*.deb; do
    dpkg -x "$package" "$directory/etcd" || skip "$package cannot be unpacked"
done
rm -r "$directory/package"
echo "$wanted" >"$directory/complete"
"$directory/venv/bin/patroni" --version || skip "it does not run here"
