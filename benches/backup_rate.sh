#!/usr/bin/env bash
# Whether a backup with `backup_rate` keeps it, and whether archiving notices the backup.
#
#   RATE=20MB    the limit
#   MIB=400      how large the cluster is; it bounds how long a backup lasts
#   ROUNDS=3     how often a pass of archiving alone and one beside a backup take turns
#   SEGMENTS=16  how many segments a pass archives
#
# Each round archives the same segments twice, `xarchive` as a whole process each: alone, and while a backup runs at the
# limit. Both are on the same disk and take turns, so that a busy machine slows both. Prints the 95th percentiles and
# their ratio, and what the backups read per second as a part of the limit; ends with 1 if archiving beside a backup
# takes more than 1.2 times as long, or a backup is more than a tenth faster than its limit.
# Needs PostgreSQL's server programs and perl. As root it runs all of it as the user postgres. With
# WALMGR_BENCH_BINARY=FILE it measures that program, and builds none.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
rate=${RATE:-20MB} mib=${MIB:-400} rounds=${ROUNDS:-3} segments_wanted=${SEGMENTS:-16}
case ${1:-} in
    ?*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

source benches/place.sh
install -m 644 benches/stopwatch.pl "$place/stopwatch.pl"
as_server initdb -D "$pgdata" -A trust -N --no-instructions >/dev/null
as_server tee -a "$pgdata/postgresql.conf" >/dev/null <<CONF
archive_mode = on
max_wal_size = 2GB
autovacuum = off
CONF
start_server
introduce
as_server ./walmgr -q master.ini setup 2>>"$place/commands.log" || fail 'setup'
sql() { as_server psql -XAtq -v ON_ERROR_STOP=1 -h "$place" -d postgres "$@"; }
as_server pgbench -q -i -s $((mib / 15 + 1)) -h "$place" postgres >/dev/null 2>&1 || fail 'pgbench -i'
sql -c CHECKPOINT -c 'SELECT pg_switch_wal()' >/dev/null
last=$(sql -c "SELECT max(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}\$' AND name < pg_walfile_name(pg_current_wal_lsn())")
for ((tries = 0; ; tries++)); do
    [[ ! -e $archive/$last && ! -e $archive/$last.zst ]] || break
    ((tries < 1200)) || fail "$last was not archived"
    sleep 0.1
done
as_server mkdir "$place/segments"
mapfile -t segments < <(find "$archive" -maxdepth 1 -type f -printf '%f\n' | sed 's/\.zst$//' | grep -E '^[0-9A-F]{24}$' | sort | tail -n "$segments_wanted")
for name in "${segments[@]}"; do as_server ./walmgr -q standby.ini xrestore "$name" "$place/segments/$name"; done

# --- the contest ---------------------------------------------------------------------------------
pass() {
    local name
    for name in "${segments[@]}"; do
        printf -- '-\trm -f %s %s\n' "$archive/$name" "$archive/$name.zst"
        printf '%s\t./walmgr -q master.ini xarchive %s %s\n' "$1" "$place/segments/$name" "$name"
    done | as_server perl stopwatch.pl >>"$place/times"
}
echo "measuring: $rounds rounds of ${#segments[@]} segments, backups at $rate, everything on $file_system"
pass warm_up
for ((round = 0; round < rounds; round++)); do
    pass alone
    as_server ./walmgr --set "backup_rate=$rate,backup_jobs=4" master.ini backup --full >"$place/backup" 2>>"$place/commands.log" &
    backup=$!
    for ((tries = 0; ; tries++)); do
        [[ ! -e $place/walshipping/data.master.incoming/base ]] || break
        ((tries < 600)) || fail 'the backup does not begin'
        sleep 0.1
    done
    pass beside
    kill -0 "$backup" 2>/dev/null || fail 'the backup was over before the segments were: raise MIB, or lower RATE'
    wait "$backup" || fail 'backup'
    grep 'files with' "$place/backup" >>"$place/backups"
    as_server rm -rf "$place/walshipping/data.master"
done

# --- the report ----------------------------------------------------------------------------------
sed 's/^/backup: /' "$place/backups"
limit=$(sed -n 's/.*(at most \([0-9.]*\) MiB.*/\1/p' "$place/backups" | head -n 1)
awk -F '[, ]+' -v limit="$limit" '
    { for (at = 1; at < NF; at++) if ($(at + 1) ~ /^MiB\/s$/) { part = $at / limit; if (part > most) most = part; break } }
    END {
        printf "fastest backup, as a part of the limit %28.3f\n", most
        exit !(most > 0 && most <= 1.1)
    }' "$place/backups" || fail 'the limit was not kept'
sort -t $'\t' -k 1,1 -k 2,2n "$place/times" | awk -F '\t' '
    { value[$1, ++n[$1]] = $2 }
    function rank(label, part,   at) {
        at = int(n[label] * part + 0.999999)
        return value[label, at < 1 ? 1 : at]
    }
    function row(text, label) {
        printf "%-36s %4d %10.1f %10.1f\n", text, n[label], rank(label, 0.5), rank(label, 0.95)
    }
    END {
        printf "%-36s %4s %10s %10s\n", "", "n", "median ms", "p95 ms"
        row("xarchive alone", "alone")
        row("xarchive beside a backup", "beside")
        ratio = rank("beside", 0.95) / rank("alone", 0.95)
        printf "%-36s %26.2f\n", "ratio of p95, bound 1.2", ratio
        if (ratio > 1.2) { print "archiving notices the backup"; exit 1 }
    }'
