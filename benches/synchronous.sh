#!/usr/bin/env bash
# What a commit costs that waits for the standby.
#
#   benches/synchronous.sh
#
#   ROUNDS=4   how often each way has its turn
#   SECONDS_EACH=4   how long pgbench commits in one turn
#   CLIENTS=1  how many clients commit at once
#   STANDBY_DIR=DIR  a folder on another disk for what the standby stores, as on another host; unset, one disk syncs for both
#
# pgbench inserts a row a transaction. Commits wait, in turns, for nobody; for `pg_receivewal --synchronous` over a local
# socket; for a syncdaemon with synchronous = 1, which ships over TLS to a receiver. Reads pgbench's log of latencies.
# Ends with 1 if the median of the syncdaemon is above 1.2 x that of pg_receivewal, on one disk above 1.4 x.
# Needs PostgreSQL's programs. As root it runs all of it as the user postgres.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
rounds=${ROUNDS:-4} seconds=${SECONDS_EACH:-4} clients=${CLIENTS:-1}
(($# == 0)) || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }

source benches/place.sh
after_clean_up() { [[ $standby_place = "$place" ]] || rm -rf "$standby_place"; }
bound=1.4
if [[ -n ${STANDBY_DIR:-} ]]; then
    bound=1.2
    standby_place=$(mktemp -d "$STANDBY_DIR/walmgr-bench.XXXXXX")
    ((EUID != 0)) || chown postgres: "$standby_place"
fi
sql() { as_server psql -XAtq -v ON_ERROR_STOP=1 -h "$place" -d postgres "$@"; }
before_clean_up() {
    end_begun
    as_server ./walmgr -q master.ini syncdaemon -s 2>/dev/null || true
}

as_server initdb -D "$pgdata" -A trust -N --no-instructions >/dev/null
start_server
introduce
as_server ./walmgr -q master.ini setup --no-check 2>>"$place/commands.log" || fail 'setup'
stop_server
start_server
sql -c 'CREATE TABLE t (n bigint, pad text)'
as_server tee "$place/insert.sql" >/dev/null <<<"INSERT INTO t VALUES (:client_id, repeat('x', 100));"
as_server mkdir "$standby_place/receivewal"

# names VALUE: has commits wait for it, and waits until the server has it.
names() {
    sql -c "ALTER SYSTEM SET synchronous_standby_names = '$1'" -c 'SELECT pg_reload_conf()' >/dev/null
    for ((tries = 0; ; tries++)); do
        [[ $(sql -c 'SHOW synchronous_standby_names') != "$1" ]] || break
        ((tries < 200)) || fail "synchronous_standby_names is not $1"
        sleep 0.05
    done
}
# streams NAME: waits until a standby of this name is there.
streams() {
    for ((tries = 0; ; tries++)); do
        [[ $(sql -c "SELECT count(*) FROM pg_stat_replication WHERE application_name = '$1' AND state = 'streaming'") != 1 ]] || break
        ((tries < 200)) || fail "$1 does not stream"
        sleep 0.05
    done
}
# turn LABEL: pgbench commits; what each took goes to the report.
turn() {
    as_server pgbench -n -h "$place" -c "$clients" -T "$seconds" -f insert.sql -l --log-prefix="turn-$1" postgres \
        >/dev/null 2>>"$place/commands.log" || fail "pgbench: $1"
    awk -v label="$1" '{print label "\t" $3}' "$place/turn-$1".* >>"$place/latencies"
    rm -f "$place/turn-$1".*
}

echo "measuring commits: $rounds rounds of $seconds s each way, $clients client(s), everything on $file_system"
for ((round = 0; round < rounds; round++)); do
    turn alone
    begin_as_server pg_receivewal -h "$place" -d 'application_name=receivewal' -D "$standby_place/receivewal" --synchronous --no-loop
    streams receivewal
    names receivewal
    turn receivewal
    names ''
    end_begun
    as_server ./walmgr -q --set job_name=walmgr,synchronous=1 master.ini syncdaemon -d 2>>"$place/commands.log"
    streams walmgr
    names walmgr
    turn walmgr
    names ''
    as_server ./walmgr -q master.ini syncdaemon -s
done

sort -t "$(printf '\t')" -k1,1 -k2,2n "$place/latencies" | awk -F '\t' -v bound="$bound" '
    { value[$1, ++n[$1]] = $2 }
    function rank(label, part,   at) {
        at = int(n[label] * part + 0.999999)
        return value[label, at < 1 ? 1 : at] / 1000
    }
    function row(text, label) {
        printf "%-44s %6d %10.2f %8.2f %8.2f\n", text, n[label], rank(label, 0.5), rank(label, 0.99), \
            rank(label, 0.5) / rank("receivewal", 0.5)
    }
    END {
        printf "\n%-44s %6s %10s %8s %8s\n", "a commit that waits for", "n", "median ms", "p99 ms", "ratio"
        row("nobody", "alone")
        row("pg_receivewal --synchronous", "receivewal")
        row("syncdaemon, synchronous = 1, TLS", "walmgr")
        if (rank("walmgr", 0.5) > bound * rank("receivewal", 0.5)) {
            print "BROKEN: the median is above " bound " x that of pg_receivewal"
            exit 1
        }
    }'
