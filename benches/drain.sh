#!/usr/bin/env bash
# How long PostgreSQL's archiver takes to drain finished segments, a segment, into a standby that packs them, one that
# stores them as they are, and onto the disk alone.
#
#   benches/drain.sh              makes a throw-away cluster and WAL with pgbench
#
#   ROUNDS=3    how often each way drains all of them
#   SEGMENTS=24 how many segments pgbench is to write
#
# The same segments every time: what is done is made ready again, and the archive is emptied. The floor is
# `dd conv=fsync` and `mv` as archive_command. The ways take turns. Needs PostgreSQL's server programs.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
(($# == 0)) || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
rounds=${ROUNDS:-3} wanted=${SEGMENTS:-24}

source benches/place.sh
echo "making a cluster and $wanted segments with pgbench"
begin_master_with_wal "$wanted"
sql() { as_server psql -XqAtc "$1" -h "$place" postgres; }
introduce
as_server ./walmgr -q master.ini setup --no-check 2>>"$place/commands.log" || fail 'setup'
stop_receiver
mapfile -t segments < <(segments_done | tail -n "$wanted")
as_server mkdir "$place/floor"
as_server cp "$place/standby.ini" "$place/standby.base"

# archive_by COMMAND: the setting, which the archiver heeds at once; an empty one has it wait.
archive_by() {
    sql "ALTER SYSTEM SET archive_command = '$1'"
    sql 'SELECT pg_reload_conf()' >/dev/null
}
# drain LABEL COMMAND: the milliseconds a segment.
drain() {
    local name begun
    archive_by ''
    for name in "${segments[@]}"; do
        as_server mv "$pgdata/pg_wal/archive_status/$name" "$pgdata/pg_wal/archive_status/${name%.done}.ready"
    done
    begun=$EPOCHREALTIME
    archive_by "$2"
    wait_until_none "$pgdata/pg_wal/archive_status" .ready
    awk -v label="$1" -v begun="$begun" -v ended="$EPOCHREALTIME" -v count="${#segments[@]}" \
        'BEGIN { printf "%s\t%.3f\n", label, (ended - begun) * 1000 / count }'
}
into() {
    { cat "$place/standby.base"; echo "store_compression = $2"; } | as_server tee "$place/standby.ini" >/dev/null
    start_receiver -q
    drain "$1" "$place/walmgr -q $place/master.ini xarchive %p %f"
    stop_receiver
    find "$archive" -mindepth 1 \( -name '0000*' -o -name '*.maps' \) -prune -exec rm -r {} +
}
floor() {
    drain floor "dd if=%p of=$place/floor/.in bs=1M conv=fsync status=none && mv $place/floor/.in $place/floor/%f"
    rm -f "$place"/floor/*
}
floor >/dev/null
for ((round = 0; round < rounds; round++)); do
    case $((round % 3)) in
        0) floor; into plain none; into packed zstd ;;
        1) into packed zstd; floor; into plain none ;;
        2) into plain none; into packed zstd; floor ;;
    esac
done | tee "$place/times" >&2

sort -t $'\t' -k 1,1 -k 2,2n "$place/times" | awk -F '\t' '
    { ms[$1, ++n[$1]] = $2 }
    function median(label) { return ms[label, int(n[label] / 2 + 0.999999)] }
    function row(text, label) { printf "%-40s %5d %10.2f %8.2f\n", text, n[label], median(label), median(label) / median("floor") }
    END {
        printf "\n%-40s %5s %10s %8s\n", "", "n", "ms a segment", "x floor"
        row("floor: dd conv=fsync, mv", "floor")
        row("into a standby that stores as it is", "plain")
        row("into a standby that packs", "packed")
        printf "packed to plain %.3f\n", median("packed") / median("plain")
    }'
