#!/usr/bin/env bash
# Shows walmgr's main job on this machine: a throw-away PostgreSQL under load archives through a
# throw-away receiver, over TLS; a backup is made meanwhile; a standby is restored from it and replays what
# the master goes on to write. Archive and data are compared with the master's. Then the master ships
# record by record, is killed under load, and the standby is booted with all that it acknowledged.
# Installs what is missing (Debian packages, as root or with sudo), builds, cleans up behind itself.
# Exits with 0 only if everything was as it should be.
#
#   ./demo.sh [SECONDS]     how long pgbench runs (20)
#   WALMGR_PROGRAM=PATH     shows this program instead of building one
set -euo pipefail
cd "$(dirname "$0")"
export PATH="$PATH:$HOME/.cargo/bin"
load_seconds=${1:-20}

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf '\nFAILED: %s\n' "$*" >&2; exit 1; }
as_root() { if ((EUID == 0)); then "$@"; else sudo "$@"; fi; }

# --- what is missing ---------------------------------------------------------------------------
missing=()
compgen -G '/usr/lib/postgresql/*/bin/pgbench' >/dev/null || missing+=(postgresql postgresql-contrib)
[[ -n ${WALMGR_PROGRAM:-} ]] || command -v cc >/dev/null || missing+=(gcc)
# Debian only recommends it to the compiler.
[[ -n ${WALMGR_PROGRAM:-} || -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)
if ((${#missing[@]})); then
    command -v apt-get >/dev/null || fail "please install first: ${missing[*]}"
    say "Installing ${missing[*]}"
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
fi
[[ -n ${WALMGR_PROGRAM:-} ]] || command -v cargo >/dev/null || fail 'cargo is missing; see https://rustup.rs'

program=${WALMGR_PROGRAM:-target/release/walmgr}
if [[ -z ${WALMGR_PROGRAM:-} ]]; then
    say 'Building'
    cargo build --release --locked
fi
pg_bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)

# --- a place of our own --------------------------------------------------------------------------
# PostgreSQL refuses to run as root, and Debian's user for it may not read this checkout.
place=$(mktemp -d /tmp/walmgr-demo.XXXXXX)
install -m 755 "$program" "$place/walmgr"
if ((EUID == 0)); then
    chown postgres: "$place"
    as_server() { (cd "$place" && runuser -u postgres -- env HOME="$place" PATH="$pg_bin:$PATH" "$@"); }
else
    as_server() { (cd "$place" && env HOME="$place" PATH="$pg_bin:$PATH" "$@"); }
fi

receiver_running= server_running= standby_running= syncdaemon_running=
clean_up() {
    local code=$?
    # A second Ctrl-C must not leave a server behind.
    trap '' INT TERM
    trap - EXIT
    [[ -z $syncdaemon_running ]] || as_server ./walmgr -q master.ini syncdaemon -k || true
    [[ -z $standby_running ]] || as_server pg_ctl -D "$place/standby" -m immediate -w stop >/dev/null 2>&1 || true
    [[ -z $server_running ]] || as_server pg_ctl -D "$place/master" -m immediate -w stop >/dev/null 2>&1 || true
    [[ -z $receiver_running ]] || as_server ./walmgr -q standby.ini receiver -k || true
    if ((code && code != 130)) && [[ -f $place/master.log ]]; then
        printf '\nThe last lines of the logs:\n'
        tail -n 15 "$place/master.log" "$place/receiver.log" "$place/sync.log" "$place/standby.log" 2>/dev/null || true
    fi
    rm -rf "$place"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# A port that nobody listens on at this moment.
free_port() {
    local port
    while port=$((20000 + RANDOM % 20000)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}
receiver_port=$(free_port) server_port=$(free_port) standby_port=$(free_port)
on() { as_server psql -XAtq -h "$place" -p "$1" -d postgres -c "$2"; }
sql() { on "$server_port" "$1"; }

# --- the two sides -------------------------------------------------------------------------------
say "A master: $("$pg_bin/postgres" --version)"
as_server initdb -D master -A trust --no-instructions >/dev/null
cat >>"$place/master/postgresql.conf" <<CONF
port = $server_port
listen_addresses = ''
unix_socket_directories = '$place'
wal_keep_size = '20GB'   # so that the master still has every file to compare with
CONF
server_running=1
as_server pg_ctl -D "$place/master" -l "$place/master.log" -w start >/dev/null

say 'A standby folder with a receiver'
as_server ./walmgr -q standby.ini init >/dev/null
as_server sed -i "s/^#*listen = .*/listen = 127.0.0.1:$receiver_port/" standby.ini
as_server ./walmgr --set "logfile=$place/receiver.log" standby.ini setup
receiver_running=1
as_server ./walmgr --set "logfile=$place/receiver.log" standby.ini receiver -d

say 'They get to know each other'
fingerprint=$(as_server ./walmgr -q standby.ini identity)
as_server ./walmgr -q master.ini init --pgdata master --slave "127.0.0.1:$receiver_port" \
    --slave-fingerprint "$fingerprint" >/dev/null
echo "master_restart_cmd = $pg_bin/pg_ctl -D $place/master -l $place/master.log -w restart" |
    as_server tee -a master.ini >/dev/null
as_server ./walmgr standby.ini authorize "$(as_server ./walmgr -q master.ini identity)" demo-master

say 'setup: archiving on, and a first segment that has to arrive'
as_server ./walmgr master.ini setup

# --- the load, and a backup meanwhile ------------------------------------------------------------
archive=$place/walshipping/logs.complete
# load SECONDS: pgbench, with a forced segment switch every second.
load() {
    (
        while sleep 1; do sql 'SELECT pg_switch_wal()' >/dev/null || break; done
    ) &
    local switcher=$!
    as_server pgbench -n -c 4 -j 2 -T "$1" -h "$place" -p "$server_port" postgres 2>/dev/null |
        grep -E '^tps|transactions actually'
    kill "$switcher" 2>/dev/null || true
    wait "$switcher" 2>/dev/null || true
}
# Ends the segment under way and waits until it is archived; its name is in $last.
archive_the_rest() {
    local tries
    sql "SELECT pg_create_restore_point('demo')" >/dev/null
    last=$(sql 'SELECT pg_walfile_name(pg_switch_wal())')
    for ((tries = 0; tries < 300; tries++)); do
        [[ ! -f $archive/$last.zst ]] || return 0
        sleep 0.2
    done
    fail "the last segment, $last, did not arrive within 60 s"
}
say "pgbench for $load_seconds s, and a backup while it runs"
as_server pgbench -q -i -s 20 -h "$place" -p "$server_port" postgres >/dev/null 2>&1
load "$load_seconds" &
loader=$!
sleep 2
as_server ./walmgr master.ini backup
wait "$loader" || fail 'pgbench'
say 'A second backup, of what changed since the first'
as_server ./walmgr master.ini backup | tee "$place/second"
grep -q '^incremental, built on' "$place/second" || fail 'the second backup is not incremental'
as_server ./walmgr standby.ini listbackups
archive_the_rest

# --- the proof -----------------------------------------------------------------------------------
say 'Every archived file against the master'
compared=0 bytes=0 stored=0 first=
as_server mkdir "$place/unpacked"
for path in "$archive"/*; do
    name=$(basename "$path" .zst)
    # A later backup's end removes those of the ones before it.
    [[ $name != *.backup || -e $place/master/pg_wal/$name ]] || continue
    as_server ./walmgr -q standby.ini xrestore "$name" "$place/unpacked/$name"
    cmp -s "$place/unpacked/$name" "$place/master/pg_wal/$name" || fail "$name differs from the master's"
    : "${first:=$name}"
    compared=$((compared + 1)) bytes=$((bytes + $(stat -c %s "$place/unpacked/$name")))
    stored=$((stored + $(stat -c %s "$path")))
done
((compared > 2)) || fail "only $compared files were archived"
missing_files=0
for path in "$place"/master/pg_wal/archive_status/*.done; do
    name=$(basename "$path" .done)
    [[ -f $archive/$name || -f $archive/$name.zst ]] || { echo "acknowledged but not archived: $name"; missing_files=1; }
done
((missing_files == 0)) || fail 'the master was told of files that are not there'
dump=$(as_server pg_waldump --quiet -p "$place/unpacked" "$first" "$last" 2>&1) ||
    fail "pg_waldump from $first to $last: $dump"
records=$(as_server pg_waldump -p "$place/unpacked" "$first" "$last" 2>/dev/null | wc -l)
failed=$(sql 'SELECT failed_count FROM pg_stat_archiver')
((failed == 0)) || fail "pg_stat_archiver counts $failed failures"
memory=$(awk '/VmHWM/ {print int($2 / 1024)}' "/proc/$(cat "$place/standby.pid")/status")

# --- the standby ---------------------------------------------------------------------------------
say 'restore: a standby from the backup, replaying from the archive'
as_server tee -a standby.ini >/dev/null <<CONF
slave_data = $place/standby
slave_start_cmd = $pg_bin/pg_ctl -D $place/standby -l $place/standby.log -o "-c port=$standby_port" -w start
slave_stop_cmd = $pg_bin/pg_ctl -D $place/standby -m fast -w stop
CONF
standby_running=1
as_server ./walmgr standby.ini restore
say 'The master goes on for 3 s; then the data of both, compared'
load 3
written=$(sql 'SELECT pg_current_wal_insert_lsn()')
archive_the_rest
# Waits until a server answers this with t.
until_true() {
    local tries
    for ((tries = 0; tries < 300; tries++)); do
        [[ $(on "$1" "$2" 2>/dev/null) != t ]] || return 0
        sleep 0.2
    done
    fail "not within 60 s: $2"
}
until_true "$standby_port" "SELECT pg_last_wal_replay_lsn() >= '$written'"
tables='accounts branches history tellers'
for table in $tables; do
    content="SELECT count(*), sum(hashtextextended(t::text, 0)) FROM pgbench_$table t"
    on_master=$(sql "$content") on_standby=$(on "$standby_port" "$content")
    [[ $on_master == "$on_standby" ]] || fail "pgbench_$table: $on_master on the master, $on_standby on the standby"
done
transactions=$(on "$standby_port" 'SELECT count(*) FROM pgbench_history')

# --- the master dies -----------------------------------------------------------------------------
say 'syncdaemon ships each record; kill -9 of the master under load, after 4 s'
sql 'CREATE TABLE noted (n int)'
syncdaemon_running=1
as_server ./walmgr -v -v --set "logfile=$place/sync.log,use_xlog_functions=1,loop_delay=0.05" master.ini syncdaemon -d
# A client that notes each of its commits, and where in the WAL it was.
seq 100000 | sed 's/.*/INSERT INTO noted VALUES (&);\nSELECT &, pg_current_wal_lsn();/' |
    as_server tee commits.sql >/dev/null
as_server pgbench -n -c 4 -j 2 -T 60 -h "$place" -p "$server_port" postgres >/dev/null 2>&1 &
loader=$!
as_server psql -XAtq -h "$place" -p "$server_port" -d postgres -f commits.sql >"$place/client" 2>/dev/null &
client=$!
sleep 4
# As if the host were gone: the files of a dead server would still be shipped.
kill -9 "$(head -1 "$place/master/postmaster.pid")" "$(cat "$place/master.pid")"
syncdaemon_running= server_running=
wait "$loader" "$client" || true
acknowledged=$(sed -n 's/.*durable up to //p' "$place/sync.log" | tail -1)
echo "the standby acknowledged all records up to $acknowledged"
say 'boot'
as_server ./walmgr standby.ini boot

say 'The commits that were acknowledged, looked for on the standby'
grep -E '^[0-9]+\|[0-9A-F]+/[0-9A-F]+$' "$place/client" >"$place/noted" || fail 'no commit was noted'
counts=$(as_server psql -XAtq -h "$place" -p "$standby_port" -d postgres <<SQL
CREATE TEMP TABLE client (n int, lsn pg_lsn);
\copy client FROM '$place/noted' (DELIMITER '|')
SELECT count(*), count(*) FILTER (WHERE lsn <= '$acknowledged'),
       count(*) FILTER (WHERE lsn <= '$acknowledged' AND noted.n IS NULL)
FROM client LEFT JOIN noted USING (n);
SQL
)
IFS='|' read -r commits promised lost <<<"$counts"
((promised > 0)) || fail "of $commits commits none was acknowledged"
((lost == 0)) || fail "$lost of $promised acknowledged commits are missing on the standby"
as_server pg_amcheck --install-missing -h "$place" -p "$standby_port" -d postgres || fail 'pg_amcheck found damage'
# The dead master once more, to see what it had.
server_running=1
for ((tries = 0; tries < 50; tries++)); do
    ! as_server pg_ctl -D "$place/master" -l "$place/master.log" -w start >/dev/null 2>&1 || break
    sleep 0.2   # its children may not have noticed yet
done
all="SELECT (SELECT count(*) FROM noted), (SELECT count(*) FROM pgbench_history)"
IFS='|' read -r noted_here history_here < <(sql "$all")
IFS='|' read -r noted_there history_there < <(on "$standby_port" "$all")
((noted_there <= noted_here && history_there <= history_here)) || fail 'the standby has more than the master'

say 'What happened'
cat <<REPORT
  files archived             $compared, $((bytes >> 20)) MiB stored as $((stored >> 20)), all identical to the master's
  WAL records in them        $records, read from end to end by pg_waldump
  failed archive attempts    $failed
  backup, restored           replayed; $transactions transactions on both, all tables the same
  master killed under load   $promised of a client's $commits commits acknowledged, none of those missing
  rows on master, standby    $((noted_here + history_here)), $((noted_there + history_there)): what is not there was not acknowledged
  pg_amcheck                 found nothing
  receiver's memory, peak    $memory MiB
  connection                 TLS 1.3, both keys pinned

  Everything was as it should be.
REPORT
