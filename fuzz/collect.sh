#!/bin/sh
# Collects what servers of every version here wrote, for `write_seeds`:  fuzz/collect.sh FOLDER
# Makes FOLDER/MAJOR/ with WAL of 1 MiB segments, pg_control, a history file and so on. Starts
# nothing that it does not end; a version that is not here is left out with a line that says so.
set -eu
[ $# -eq 1 ] || { echo "usage: fuzz/collect.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
servers=${WALMGR_TEST_PG:-/var/tmp/walmgr-test-postgres}
psql=$(command -v psql || ls /usr/lib/postgresql/*/bin/psql 2>/dev/null | tail -n 1)
[ -n "$psql" ] || { echo "SKIP: there is no psql"; exit 0; }

place=$(mktemp -d)
chmod 755 "$place"
as_server() {
    if [ "$(id -u)" -eq 0 ]; then su postgres -s /bin/sh -c "$1"; else sh -c "$1"; fi
}
running=
stop() {
    [ -z "$running" ] || as_server "$running/pg_ctl -D $data -m immediate -w stop" >/dev/null || true
    rm -rf "$place"
}
trap stop EXIT

for major in 13 14 15 16 17 18; do
    bin=/usr/lib/postgresql/$major/bin
    [ -x "$bin/postgres" ] || bin=$servers/$major/native/bin
    [ -x "$bin/postgres" ] || { echo "PostgreSQL $major is not here"; continue; }
    work=$place/$major
    data=$work/data
    mkdir "$work"
    [ "$(id -u)" -ne 0 ] || chown postgres "$work"
    as_server "$bin/initdb -D $data -k --wal-segsize=1 -U postgres -A trust" >/dev/null
    cat >>"$data/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '$work'
wal_level = replica
max_wal_size = 200MB
archive_mode = on
archive_command = 'mkdir -p $work/archive && cp %p $work/archive/%f'
END
    as_server "$bin/pg_ctl -D $data -w -l $work/log start" >/dev/null
    running=$bin
    sql() { as_server "$psql -qAtX -h $work -U postgres postgres" ; }
    sql <<'END'
create table numbers as select n, repeat('x', n % 900) as text from generate_series(1, 2000) n;
create index on numbers (n);
update numbers set text = text || 'y' where n % 7 = 0;
create table long as select repeat(md5(n::text), 900) from generate_series(1, 40) n;
select pg_switch_wal();
delete from numbers where n % 3 = 0;
vacuum numbers;
checkpoint;
select pg_switch_wal();
END
    out=$folder/$major
    rm -rf "$out"
    mkdir -p "$out"
    if [ "$major" -le 15 ] && command -v pg_basebackup >/dev/null; then
        as_server "pg_basebackup -h $work -U postgres -D $work/base -Ft -X none -c fast" 2>/dev/null
        head -c 65536 "$work/base/base.tar" >"$out/base.tar"
        cp "$work/base/backup_manifest" "$out/"
        tar -xOf "$work/base/base.tar" backup_label >"$out/backup_label"
    fi
    sleep 1
    cp "$data/postmaster.pid" "$data/postgresql.conf" "$data/global/pg_control" "$out/"
    as_server "$bin/pg_ctl -D $data -w stop" >/dev/null
    running=
    touch "$data/standby.signal"
    [ "$(id -u)" -ne 0 ] || chown postgres "$data/standby.signal"
    as_server "$bin/pg_ctl -D $data -w -l $work/log start" >/dev/null
    running=$bin
    as_server "$bin/pg_ctl -D $data -w promote" >/dev/null
    sleep 1
    as_server "$bin/pg_ctl -D $data -w stop" >/dev/null
    running=
    cp "$work"/archive/* "$out/" 2>/dev/null || true
    cp "$data"/pg_wal/*.history "$out/" 2>/dev/null || true
    echo "PostgreSQL $major: $(ls "$out" | wc -l) files"
done
