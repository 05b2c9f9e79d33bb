#!/usr/bin/env bash
# What an incremental backup costs against a full one of the same cluster.
#
#   benches/incremental.sh             on a file system that shares blocks (XFS), and on one that does not (ext4)
#   benches/incremental.sh xfs         only there
#   benches/incremental.sh ext4
#
#   ROUNDS=3     how often each way is run; they take turns
#   MIB=1000     how large the cluster is
#   CACHE=warm   leaves the page cache as it is, as for a backup an hour where memory has room for both
#
# The ways, each over TLS, ended when the set is sealed and its WAL archived. Before each run all is synced and the page
# cache dropped, so that master and receiver read from the disk, as they do for a backup a day:
#   nothing changed                 behind a full set
#   1 % of the pages, after full    one row in a hundred changed, those that lie together, each on the page where it
#                                   was; behind a full set
#   1 % of the rows                 every hundredth row changed: more than a quarter of the pages; behind the last
#   1 % of the pages, after rows    the same pages as above, behind a set that shares its other blocks with older ones
#                                   here and there
#   full                            backup --full of the same, right behind it
#   a copy of a set, on the disk    cp -a of the newest set, and a sync: what the disk takes for as much
# Each file system is in a file of its own below WALMGR_BENCH_DIR, with both the cluster and the archive on it. What a
# backup read and sent is its own count; the changed pages are those whose LSN is behind the parent's start; what it takes
# of the disk are the blocks that it shares with no other set (`own_bytes` of `listbackups --json`).
# Ends with 1 if of the backup with 1 % of the pages changed, behind a full set: the time is more than 0.25 of a full one's
# on XFS, or 0.6 on ext4; more than 2 % of the relations' pages were read; more than 1.5 times the changed pages were sent; or, on
# XFS, it took more than 1.1 times the changed pages of the disk (what is not a relation's page aside in all of these).
# Needs root for the file systems, PostgreSQL's programs, perl and xfsprogs. With WALMGR_BENCH_BINARY=FILE it measures
# that program, and builds none.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin"
rounds=${ROUNDS:-3} mib=${MIB:-1000} cache=${CACHE:-cold}
case ${1:-} in
    '') kinds=(xfs ext4) ;;
    xfs | ext4) kinds=("$1") ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
((EUID == 0)) || { echo 'SKIP: a file system of its own needs root'; exit 0; }

# Both kinds in turn, each in a process of its own that cleans up behind itself.
if ((${#kinds[@]} > 1)); then
    code=0
    for kind in "${kinds[@]}"; do "$0" "$kind" || code=1; done
    exit "$code"
fi
kind=${kinds[0]}
command -v "mkfs.$kind" >/dev/null || { echo "SKIP: mkfs.$kind is not installed"; exit 0; }

# --- a file system, a cluster in it, and a first set ---------------------------------------------
outside=$(mktemp -d "${WALMGR_BENCH_DIR:-/var/tmp}/walmgr-disk.XXXXXX")
truncate -s $((mib * (rounds * 4 + 5) + 6144))M "$outside/image"
case $kind in
    xfs) mkfs.xfs -q -m reflink=1 "$outside/image" ;;
    ext4) mkfs.ext4 -q -E lazy_itable_init=0 "$outside/image" ;;
esac
mkdir "$outside/disk"
mount -o loop "$outside/image" "$outside/disk"
unmount() {
    for ((tries = 0; tries < 50; tries++)); do
        umount "$outside/disk" 2>/dev/null && break
        sleep 0.2
    done
    # Whoever made a namespace of its own meanwhile keeps it mounted there.
    umount -l "$outside/disk" 2>/dev/null || true
    rm -rf --one-file-system "$outside"
}
trap unmount EXIT
chmod 711 "$outside"
WALMGR_BENCH_DIR=$outside/disk
source benches/place.sh
after_clean_up() { unmount; }
install -m 644 benches/stopwatch.pl "$place/stopwatch.pl"
as_server initdb -k -D "$pgdata" -A trust -N --no-instructions >/dev/null
as_server tee -a "$pgdata/postgresql.conf" >/dev/null <<CONF
archive_mode = on
max_wal_size = 8GB
autovacuum = off
checkpoint_timeout = 1h
CONF
start_server
introduce
as_server sed -i 's/^#*keep_backups = .*/keep_backups = 0/' standby.ini
as_server ./walmgr -q standby.ini receiver -s && start_receiver
as_server ./walmgr -q master.ini setup 2>>"$place/commands.log" || fail 'setup'
sql() { as_server psql -XAtq -v ON_ERROR_STOP=1 -h "$place" -d postgres "$@"; }
# Pages half full: an updated row stays on its page.
scale=$((mib / 28 + 1))
as_server pgbench -q -i -F 50 -s "$scale" -h "$place" postgres >/dev/null 2>&1 || fail 'pgbench -i'
sql -c 'VACUUM FREEZE pgbench_accounts'
as_server ./walmgr -q master.ini backup --full >/dev/null 2>>"$place/commands.log" || fail 'backup'
rows=$((scale * 100000))
pages=$(sql -c "SELECT sum(pg_relation_size(oid))::bigint / 8192 FROM pg_class WHERE relkind IN ('r', 'i', 't')")

# --- the contest ---------------------------------------------------------------------------------
# What the newest set shares with no other.
own_bytes() {
    as_server ./walmgr -q standby.ini listbackups --json | perl -MJSON::PP -0777 -ne '
        my $sets = decode_json($_);
        print map { $_->{own_bytes} // 0 } grep { $_->{set} eq "data.master" } @$sets'
}
# The change is on the disk and in the archive before the clock starts: a backup's checkpoint writes less then.
change() {
    sql -c "$1" -c CHECKPOINT -c 'SELECT pg_switch_wal()' >/dev/null
    local last tries
    last=$(sql -c "SELECT pg_walfile_name(pg_current_wal_lsn() - 1)")
    for ((tries = 0; ; tries++)); do
        [[ $(sql -c "SELECT last_archived_wal >= '$last' FROM pg_stat_archiver") != t ]] || break
        ((tries < 1200)) || fail "$last was not archived"
        sleep 0.1
    done
}
settle() {
    sync
    [[ $cache == warm ]] || echo 3 >/proc/sys/vm/drop_caches
}
timed() {
    local label=$1 ms
    shift
    settle
    printf '%s\t./walmgr -q master.ini backup %s\n' "$label" "$*" | as_server perl stopwatch.pl >"$place/time" 2>"$place/said"
    ms=$(cut -f 2 "$place/time")
    printf '%s\t%s\t%s\n' "$label" "$ms" "$(($(own_bytes) / 1024))" >>"$place/times"
}
copied() {
    settle
    printf '%s\tcp -a --reflink=never walshipping/data.master copied\tsync -f copied\n' "$1" |
        as_server perl stopwatch.pl >"$place/time" 2>"$place/said"
    printf '%s\t%s\t%s\n' "$1" "$(cut -f 2 "$place/time")" "$(du -sk "$place/copied" | cut -f 1)" >>"$place/times"
    rm -rf "$place/copied"
}
# What a backup reads whole each time: all that is no page of a relation.
other_bytes() {
    find "$pgdata" -type f ! -path '*/pg_wal/*' ! -path '*/pg_stat*' ! -path '*/pg_dynshmem/*' ! -name 'postmaster.*' \
        ! -regex '.*/\(base/[0-9]*\|global\)/[0-9]*\(\.[0-9]*\)?' -printf '%s\n' | awk '{ sum += $1 } END { print sum }'
}
# Pages with an LSN that is not before this.
changed_pages() {
    find "$pgdata" -type f -regex '.*/\(base/[0-9]*\|global\)/[0-9]*\(\.[0-9]*\)?' -print0 | perl -0 -ne '
        BEGIN { $lsn = shift; ($hi, $lo) = map { hex } split m{/}, $lsn; $from = $hi << 32 | $lo; $count = 0 }
        chomp;
        open my $file, "<:raw", $_ or next;
        while (read($file, my $page, 8192) == 8192) {
            my ($high, $low) = unpack "L2", $page;
            $count++ if ($high << 32 | $low) >= $from;
        }
        END { print "$count\n" }' "$1"
}
clustered="UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= $((rows / 100))"
scattered='UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 100 = 0'
after_full='1 % of the pages, after full' after_rows='1 % of the pages, after rows'
floor='a copy of a set, on the disk'
echo "measuring: $pages pages of relations, $rounds rounds, everything on $kind"
for ((round = 0; round < rounds; round++)); do
    timed 'nothing changed'
    change "$clustered"
    timed "$after_full"
    change "$scattered"
    timed '1 % of the rows'
    change "$clustered"
    timed "$after_rows"
    timed full --full
    copied "$floor"
done
change "$clustered"
as_server ./walmgr master.ini backup 2>>"$place/commands.log" >"$place/said" || fail 'backup'
disk=$(own_bytes)
since=$(sed -n 's/.*incremental, built on .* since \([0-9A-F/]*\):.*/\1/p' "$place/said")
[[ -n $since ]] || fail "the backup is not incremental: $(cat "$place/said")"
changed=$(changed_pages "$since")
other=$(other_bytes)

# --- the report ----------------------------------------------------------------------------------
code=0
sort -t $'\t' -k 1,1 -k 2,2n "$place/times" | awk -F '\t' -v kind="$kind" -v pages="$after_full" -v behind="$after_rows" -v floor="$floor" '
    { ms[$1, ++n[$1]] = $2; kib[$1] += $3 }
    function median(label) { return (ms[label, int((n[label] + 1) / 2)] + ms[label, int(n[label] / 2) + 1]) / 2 }
    function row(label) {
        printf "%-29s %3d %10.0f %8.2f %14.1f\n", label, n[label], median(label), median(label) / median("full"), kib[label] / n[label] / 1024
    }
    END {
        printf "%-29s %3s %10s %8s %14s\n", "", "n", "median ms", "of full", "MiB of disk"
        row("nothing changed"); row(pages); row("1 % of the rows"); row(behind); row("full"); row(floor)
        bound = kind == "xfs" ? 0.25 : 0.6
        if (median(pages) / median("full") > bound) {
            printf "1 %% of the pages takes more than %s of a full backup\n", bound
            exit 1
        }
    }' || code=1
sed -n '/ sent, \|incremental/s/^/1 % of the pages: /p' "$place/said"
awk -v kind="$kind" -v pages="$pages" -v changed="$changed" -v other="$other" -v disk="$disk" '
    function bytes(number, unit) {
        return number * (unit == "KiB" ? 1024 : unit == "MiB" ? 1048576 : unit == "GiB" ? 1073741824 : 1)
    }
    / sent, / { for (at = 3; at <= NF; at++) if ($at ~ /^sent/) sent = bytes($(at - 2), $(at - 1)) }
    /incremental/ { for (at = 5; at <= NF; at++) if ($at ~ /^of$/) { read = bytes($(at - 2), $(at - 1)); break } }
    END {
        read_part = (read - other) / 8192 / pages
        sent_ratio = sent / (changed * 8192 + other)
        disk_ratio = (disk - other) / (changed * 8192)
        printf "%d of %d pages changed, %.1f MiB are no pages; %.4f of the pages read, %.2f x sent, %.2f x of disk\n", \
            changed, pages, other / 1048576, read_part, sent_ratio, disk_ratio
        if (read_part > 0.02) { print "more than 2 % of the pages were read"; exceeded = 1 }
        if (sent_ratio > 1.5) { print "more than 1.5 x the changed pages were sent"; exceeded = 1 }
        if (kind == "xfs" && disk_ratio > 1.1) { print "it took more than 1.1 x the changed pages of the disk"; exceeded = 1 }
        exit exceeded
    }' "$place/said" || code=1
exit "$code"
