#!/usr/bin/env bash
# Installs, uses, upgrades, removes and purges the package on a clean Debian: packaging/try.sh DEB
# What it starts and writes is gone afterwards; see tests/in-debian.sh.
set -euo pipefail

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    code=0
    "$(dirname "$0")/../tests/in-debian.sh" 1 "$0" "$1" || code=$?
    # 77 was said with its reason.
    exit "$((code == 77 ? 0 : code))"
fi

check() {
    on 1 sh -ec "$1" || {
        echo "FAILED: $1" >&2
        exit 1
    }
}

# The process ids of walmgr, in this network and on this host alone.
running='for each in /proc/[0-9]*; do [ "$(cat $each/comm 2>/dev/null)" != walmgr ] || echo "${each#/proc/}"; done'
standby='sudo -u postgres walmgr /etc/walmgr/standby.ini'
check 'dpkg -i walmgr_*.deb 2>&1 | tail -n 3'
check 'walmgr --version'
# Nothing runs, and only PostgreSQL's user can put settings where it will look for them.
check "[ -z \"\$($running)\" ]"
check '[ "$(stat -c "%U %G %a" /etc/walmgr)" = "postgres postgres 700" ] && [ -z "$(ls -A /etc/walmgr)" ]'
check '[ -z "$(find /etc/systemd -name "walmgr*")" ]'

check "$standby init >/dev/null && $standby setup && $standby receiver -d"
check 'touch /var/lib/postgresql/walshipping/logs.complete/000000010000000000000001'
# An upgrade keeps settings and what runs.
check "before=\$($running); [ -n \"\$before\" ]; dpkg -i walmgr_*.deb >/dev/null 2>&1; [ \"\$($running)\" = \"\$before\" ]"
check "[ -e /etc/walmgr/standby.ini ] && $standby receiver --stop"
check 'dpkg -r walmgr 2>&1 | grep "standby.ini keeps its WAL"'
check '[ -e /etc/walmgr/standby.key ] && [ ! -e /usr/bin/walmgr ]'

# Purging removes settings, never an archive, nor what somebody else put beside them.
check 'touch /etc/walmgr/notes && dpkg -P walmgr'
check '[ "$(ls -A /etc/walmgr)" = notes ]'
check '[ -e /var/lib/postgresql/walshipping/logs.complete/000000010000000000000001 ]'
check 'rm -r /etc/walmgr && dpkg -i walmgr_*.deb >/dev/null 2>&1 && touch /etc/walmgr/standby.ini && dpkg -P walmgr'
check '[ ! -e /etc/walmgr ]'
# A link was somebody's decision: what it leads to stays.
check 'mkdir /srv/kept && touch /srv/kept/standby.ini && ln -s /srv/kept /etc/walmgr'
check 'dpkg -i walmgr_*.deb >/dev/null 2>&1 && dpkg -P walmgr && [ -e /srv/kept/standby.ini ] && rm /etc/walmgr'
# The receiver needs no PostgreSQL, and so there may be no user for it.
check 'dpkg -P --force-depends postgresql postgresql-15 postgresql-client-15 postgresql-common postgresql-client-common >/dev/null 2>&1 || true
    ! getent passwd postgres || userdel postgres
    dpkg -i walmgr_*.deb >/dev/null 2>&1 && [ "$(stat -c %U:%a /etc/walmgr)" = postgres:700 ]'
echo 'installed, used, upgraded, removed, purged'
