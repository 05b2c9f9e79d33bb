#!/bin/sh
# Fetches what the tests of monitoring/ run: Debian's Prometheus with promtool, its node_exporter, and prometheus-client
# of PyPI, whose parser of OpenMetrics is strict. Nothing is installed: the packages are unpacked.
# Changes nothing that is already there. Ends with 0 and a SKIP line when something cannot be had: the tests then skip
# what needs it by themselves.
#
# The files lie outside of the checkout, as the PostgreSQL servers do. The tests look for them in
# $WALMGR_TEST_MONITORING/bin and $WALMGR_TEST_MONITORING/python.
set -u

directory=${WALMGR_TEST_MONITORING:-/var/tmp/walmgr-test-monitoring}
python_package=prometheus-client==0.26.0

skip() {
    echo "SKIP: $1: $2"
}

# unpack PACKAGE PROGRAM...: brings these programs of a Debian package to bin.
unpack() {
    package=$1
    shift
    complete=yes
    for program in "$@"; do
        [ -x "$directory/bin/$program" ] || complete=no
    done
    if [ $complete = yes ]; then
        echo "$package: already in $directory/bin"
        return
    fi
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
        skip "$package" 'there is no apt-get or no dpkg here'
        return
    fi
    work=$(mktemp -d "$directory/.fetch.XXXXXX") || return
    # A machine whose lists of packages were removed knows none.
    if [ "$(id -u)" = 0 ] && ! apt-cache show "$package" >/dev/null 2>&1; then
        apt-get update -q >/dev/null 2>&1
    fi
    # As the user that it is run by: apt's own may not write here.
    if ! (cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$package") >"$work/log" 2>&1; then
        skip "$package" "apt-get cannot deliver it ($(tail -n 1 "$work/log"))"
    elif ! dpkg -x "$work/$package"_*.deb "$work/unpacked" >"$work/log" 2>&1; then
        skip "$package" "the package does not unpack ($(tail -n 1 "$work/log"))"
    elif ! "$work/unpacked/usr/bin/$1" --version >"$work/log" 2>&1; then
        skip "$package" "it does not run here ($(tail -n 1 "$work/log"))"
    else
        for program in "$@"; do
            chmod a+rx "$work/unpacked/usr/bin/$program"
            mv "$work/unpacked/usr/bin/$program" "$directory/bin/$program"
        done
        echo "$package: $(head -n 1 "$work/log") in $directory/bin"
    fi
    rm -rf "$work"
}

fetch_python() {
    if [ -d "$directory/python/prometheus_client" ]; then
        echo "$python_package: already in $directory/python"
        return
    fi
    if ! command -v python3 >/dev/null || ! python3 -m pip --version >/dev/null 2>&1; then
        skip "$python_package" 'there is no python3 with pip here'
        return
    fi
    work=$(mktemp -d "$directory/.fetch.XXXXXX") || return
    if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --target "$work/python" "$python_package" >"$work/log" 2>&1; then
        skip "$python_package" "pip cannot deliver it ($(tail -n 1 "$work/log"))"
    else
        chmod -R a+rX "$work/python"
        rm -rf "$directory/python"
        mv "$work/python" "$directory/python"
        echo "$python_package: in $directory/python"
    fi
    rm -rf "$work"
}

mkdir -p "$directory/bin" && chmod a+rx "$directory" "$directory/bin" || exit 1
echo "Programs for the tests of monitoring/ go to $directory"
unpack prometheus prometheus promtool
unpack prometheus-node-exporter prometheus-node-exporter
fetch_python
