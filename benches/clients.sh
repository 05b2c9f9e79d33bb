#!/usr/bin/env bash
# What many clients at once cost: `xarchive` of as many segments as there are clients, all at once, against the same by eight.
#
#   benches/clients.sh
#
#   CLIENTS=100  how many at once
#   ROUNDS=3     how often each way is run; they take turns
#
# Each client is a process of its own over TLS, with a segment of its own, and no syncdaemon helps. Prints segments a second, how many
# clients failed, and the most memory that the receiver took. Ends with 1 if a client failed, many at once archive less than
# 0.9 of what eight do, or the receiver took more than its bound, 32 MiB and 4 MiB a connection.
# Needs PostgreSQL's server programs.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
(($# == 0)) || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
clients=${CLIENTS:-100} rounds=${ROUNDS:-3}

source benches/place.sh
begin_master_with_wal "$clients"
introduce
as_server ./walmgr -q master.ini setup --no-check 2>>"$place/commands.log" || fail 'setup'
echo "max_connections = $((clients * 2))" | as_server tee -a standby.ini >/dev/null
stop_receiver
mapfile -t segments < <(segments_done | sed 's/\.done$//' | head -n "$clients")

# archive AT_ONCE: all of them.
archive() {
    local begun failed pid
    as_server rm -rf failed
    as_server mkdir failed
    as_server find "$archive" -maxdepth 1 -name '0000*' -delete
    start_receiver -q
    begun=$EPOCHREALTIME
    printf '%s\n' "${segments[@]}" |
        as_server xargs -P "$1" -I{} bash -c './walmgr -q master.ini xarchive "$0" "$1" || touch "failed/$1"' "$pgdata/pg_wal/{}" {} \
            2>>"$place/commands.log"
    failed=$(find "$place/failed" -type f | wc -l)
    awk -v at_once="$1" -v begun="$begun" -v ended="$EPOCHREALTIME" -v count="${#segments[@]}" -v failed="$failed" \
        'BEGIN { printf "%d\t%.2f\t%d\t", at_once, count / (ended - begun), failed }' >>"$place/times"
    pid=$(head -1 "$place/standby.pid")
    awk '/VmHWM/ { print $2 }' "/proc/$pid/status" >>"$place/times"
    stop_receiver
}
echo "measuring: ${#segments[@]} segments, $rounds rounds, everything on $file_system"
for ((round = 0; round < rounds; round++)); do
    archive 8
    archive "$clients"
done
sort -t $'\t' -k 1,1n -k 2,2n "$place/times" | awk -F '\t' -v clients="$clients" '
    { rate[$1, ++n[$1]] = $2; failed[$1] += $3; if ($4 > kib[$1]) kib[$1] = $4 }
    function median(label) { return (rate[label, int((n[label] + 1) / 2)] + rate[label, int(n[label] / 2) + 1]) / 2 }
    function row(label) {
        printf "%-16d %5d %12.1f %8.2f %10d %10.1f\n", label, n[label], median(label), median(label) / median(8), failed[label], kib[label] / 1024
    }
    END {
        printf "%-16s %5s %12s %8s %10s %10s\n", "clients at once", "n", "segments/s", "of 8", "failed", "MiB"
        row(8); row(clients)
        if (failed[8] + failed[clients]) { print "BROKEN: a client failed"; exceeded = 1 }
        if (median(clients) < 0.9 * median(8)) { print "BROKEN: many at once archive less than 0.9 of what eight do"; exceeded = 1 }
        if (kib[clients] > (32 + 4 * clients) * 1024) { print "BROKEN: the receiver took more than its bound"; exceeded = 1 }
        exit exceeded
    }'
