#!/usr/bin/env bash
# What shipping record by record costs and brings.
#
#   benches/partial.sh
#
#   MESSAGES=200  how many flushes are timed each way
#   SEGMENTS=12   how many segments are archived after they were shipped
#   ROUNDS=3      how often pgbench runs each way, ROUND_SECONDS=5 each
#
# Lag: from the moment a client sees its record flushed to the moment it is durable on the standby:
# `syncdaemon` with loop_delay = 0.01 over TLS, and `pg_receivewal --synchronous` over a local socket
# with a slot. They take turns of 50 messages; the messages come at random moments. The syncdaemon looks at the files
# of WAL (`use_xlog_functions = 0`) or asks the server how far it has flushed (1).
# Load: pgbench at full speed with four clients alone, and beside each of the two: its transactions a second, and the
# processor time of the program.
# Wire: what syncdaemon sends without TLS under pgbench, against the WAL it ships.
# Archive: `xarchive` of segments that syncdaemon has shipped, against the same that finds no syncdaemon, in turns;
# bytes are those of the loopback device, both directions and their TCP/IP headers included.
# Ends with 1 if a bound is broken: a median lag of 1.0 x pg_receivewal's and a p99 of 1.5 x, where the files are looked at;
# 1.5 x its processor time and 0.97 of the transactions without it under load; 2 % of the WAL and 256 bytes a
# tick on the wire, 64 KiB or a quarter of the time for an archive.
# Needs PostgreSQL's programs, perl and ss. As root it runs all of it as the user postgres.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
messages=${MESSAGES:-200} segments_wanted=${SEGMENTS:-12} rounds=${ROUNDS:-3} round_seconds=${ROUND_SECONDS:-5}
(($# == 0)) || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }

source benches/place.sh
install -m 644 benches/stopwatch.pl benches/lag.pl "$place"
sql() { as_server psql -XAtq -v ON_ERROR_STOP=1 -h "$place" -d postgres "$@"; }
before_clean_up() {
    as_server ./walmgr -q master.ini syncdaemon -s 2>/dev/null || true
    end_begun
}

# --- a master and its standby's receiver ---------------------------------------------------------
as_server initdb -D "$pgdata" -A trust -N --no-instructions >/dev/null
start_server
introduce
as_server ./walmgr -q master.ini setup --no-check 2>>"$place/commands.log" || fail 'setup'
# What is archived, and when, is this script's affair; the segments stay until then.
as_server tee -a "$pgdata/postgresql.conf" >/dev/null <<CONF
archive_command = '/bin/false'
log_min_messages = panic
CONF
stop_server
start_server
as_server pgbench -q -i -s 5 -h "$place" postgres >/dev/null 2>&1 || fail 'pgbench -i'
sql -c CHECKPOINT
as_server ./walmgr -q master.ini sync

# --- lag -----------------------------------------------------------------------------------------
echo "measuring lag: $messages messages each way, everything on $file_system"
sql -c "SELECT pg_create_physical_replication_slot('bench', true)" >/dev/null
as_server mkdir receivewal
for ((done = 0; done < messages; done += 50)); do
    as_server perl lag.pl "$place" receivewal 50 pg_receivewal -h "$place" -D receivewal -S bench --synchronous --no-loop
    as_server perl lag.pl "$place" walmgr 50 ./walmgr -v --set loop_delay=0.01,use_xlog_functions=0 master.ini syncdaemon
    as_server perl lag.pl "$place" walmgr 50 ./walmgr -v --set loop_delay=0.01,use_xlog_functions=1 master.ini syncdaemon |
        sed 's/^walmgr/asking/'
done >"$place/lags"

# --- load ----------------------------------------------------------------------------------------
echo "measuring pgbench: $rounds rounds of $round_seconds s each way"
processor_ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
# load LABEL PID: transactions a second, and the part of a core that the program took.
load() {
    local before=0 after=0 tps
    [[ -z $2 ]] || before=$(processor_ticks "$2")
    tps=$(as_server pgbench -n -c 4 -j 2 -T "$round_seconds" -h "$place" postgres 2>/dev/null | sed -n 's/^tps = \([0-9.]*\).*/\1/p')
    [[ -z $2 ]] || after=$(processor_ticks "$2")
    printf '%s\t%s\n' "$1 tps" "$tps" "$1 cpu" "$(((after - before) * 100 / round_seconds))" >>"$place/loads"
}
for ((round = 0; round < rounds; round++)); do
    load alone ''
    begin_as_server pg_receivewal -h "$place" -D receivewal -S bench --synchronous --no-loop
    sleep 1
    load receivewal "$begun_pid"
    end_begun
    for asks in 0 1; do
        as_server ./walmgr -q --set loop_delay=0.01,use_xlog_functions=$asks master.ini syncdaemon -d 2>>"$place/commands.log"
        sleep 1
        load "walmgr $asks" "$(head -1 "$place/master.pid")"
        as_server ./walmgr -q master.ini syncdaemon -s
    done
done
sql -c "SELECT pg_drop_replication_slot('bench')" >/dev/null

# --- wire ----------------------------------------------------------------------------------------
echo 'measuring bytes on the wire: pgbench for 10 s, loop_delay = 0.1, without TLS'
stop_receiver
start_receiver --set tls=off
as_server perl lag.pl "$place" wire "$receiver_port" \
    ./walmgr -v --set tls=off,loop_delay=0.1 master.ini syncdaemon >"$place/wire"
stop_receiver
start_receiver

# --- archive -------------------------------------------------------------------------------------
echo "measuring xarchive: $segments_wanted segments"
as_server ./walmgr -q --set loop_delay=0.05 master.ini syncdaemon -d 2>>"$place/commands.log"
on_loopback() { awk '$1 == "lo:" {print $2}' /proc/net/dev; }
# one LABEL SEGMENT [OPTION...]
one() {
    local before
    before=$(on_loopback)
    printf '%s\t./walmgr -q %s master.ini xarchive %s %s\n' "$1" "${*:3}" "$pgdata/pg_wal/$2" "$2" |
        as_server perl stopwatch.pl | tr '\n' '\t'
    echo "$(($(on_loopback) - before))"
}
for ((made = 0; made < segments_wanted; made++)); do
    # Nearly full, so that there is something to ship.
    sql -c "SELECT count(pg_logical_emit_message(true, 'bench', repeat(md5(random()::text), 250)))
            FROM generate_series(1, 1700)" >/dev/null
    segment=$(sql -c 'SELECT pg_walfile_name(pg_current_wal_insert_lsn())')
    sql -c 'SELECT pg_switch_wal()' -c "SELECT pg_logical_emit_message(true, 'bench', 'next')" >/dev/null
    next=$(sql -c 'SELECT pg_walfile_name(pg_current_wal_insert_lsn())')
    for ((tries = 0; ; tries++)); do
        [[ ! -e $place/walshipping/logs.partial/$next ]] || break
        ((tries < 200)) || fail "syncdaemon did not get to $next: $(ls -R "$place/walshipping")"
        sleep 0.05
    done
    sleep 0.2
    one shipped "$segment"
    as_server rm -f "$archive/$segment" "$archive/$segment.zst"
    one whole "$segment" --set pidfile="$place/none.pid"
done >"$place/archived"
as_server ./walmgr -q master.ini syncdaemon -s

# --- the report ----------------------------------------------------------------------------------
awk -F '\t' '
    function sort(label, count,   i, j, held) {
        for (i = 2; i <= count; i++) {
            held = value[label, i]
            for (j = i - 1; j > 0 && value[label, j] > held; j--) value[label, j + 1] = value[label, j]
            value[label, j + 1] = held
        }
    }
    function rank(label, part,   at) {
        at = int(n[label] * part + 0.999999)
        return value[label, at < 1 ? 1 : at]
    }
    function row(text, label, floor) {
        printf "%-44s %5d %10.2f %8.2f", text, n[label], rank(label, 0.5), rank(label, 0.99)
        if (floor != "") printf " %8.2f", rank(label, 0.5) / rank(floor, 0.5)
        print ""
    }
    function load(text, label) {
        printf "%-44s %5d %10.0f %8.2f", text, n[label " tps"], rank(label " tps", 0.5), rank(label " tps", 0.5) / rank("alone tps", 0.5)
        if (label != "alone") printf " %8.1f", rank(label " cpu", 0.5) / 100
        print ""
    }
    function broken(text) { print "BROKEN: " text; failed = 1 }
    $1 == "wire" { ticks = $2; sent = $3; wal = $4; next }
    { value[$1, ++n[$1]] = $2 }
    $4 != "" { if ($4 > bytes[$1]) bytes[$1] = $4 }
    END {
        for (label in n) sort(label, n[label])
        printf "\n%-44s %5s %10s %8s %8s\n", "lag, flushed to durable on the standby", "n", "median ms", "p99 ms", "ratio"
        row("pg_receivewal --synchronous", "receivewal")
        row("syncdaemon, loop_delay = 0.01, TLS", "walmgr", "receivewal")
        row("  with use_xlog_functions = 1", "asking", "receivewal")
        printf "\n%-44s %5s %10s %8s %8s\n", "pgbench at full speed beside", "n", "median tps", "ratio", "% of core"
        load("nothing", "alone")
        load("pg_receivewal --synchronous", "receivewal")
        load("syncdaemon, loop_delay = 0.01, TLS", "walmgr 0")
        load("  with use_xlog_functions = 1", "walmgr 1")
        printf "\n%-44s %5s %10s %8s %8s\n", "archive of a segment of 16 MiB", "n", "median ms", "p99 ms", "ratio"
        row("xarchive", "whole")
        row("xarchive, shipped by syncdaemon before", "shipped", "whole")
        printf "%-44s %16.1f KiB, bound 64 KiB\n", "  most bytes on the wire", bytes["shipped"] / 1024
        over = (sent - wal) / ticks
        printf "\n%-44s %.1f KiB of WAL in %d ticks, %.1f KiB sent\n", "wire, without TLS", wal / 1024, ticks, sent / 1024
        printf "%-44s %.1f bytes a tick, %.2f %% of the WAL\n", "  beside the WAL itself", over, 100 * (sent - wal) / wal
        if (rank("walmgr", 0.5) > rank("receivewal", 0.5)) broken("the median lag is above that of pg_receivewal")
        if (rank("walmgr", 0.99) > 1.5 * rank("receivewal", 0.99)) broken("the p99 of the lag is above 1.5 x that of pg_receivewal")
        if (rank("walmgr 0 cpu", 0.5) > 1.5 * rank("receivewal cpu", 0.5)) broken("under load it takes more than 1.5 x what pg_receivewal does")
        if (rank("walmgr 0 tps", 0.5) < 0.97 * rank("alone tps", 0.5)) broken("pgbench has less than 0.97 of its transactions")
        if (rank("shipped", 0.5) > rank("whole", 0.5) / 4) broken("archiving a shipped segment takes more than a quarter")
        if (bytes["shipped"] > 65536) broken("archiving a shipped segment sends more than 64 KiB")
        if (sent > 1.02 * wal + 256 * ticks) broken("the wire carries more than 2 % and 256 bytes a tick beside the WAL")
        exit failed
    }' "$place/lags" "$place/loads" "$place/wire" "$place/archived"
