#!/usr/bin/env bash
# How long a restore by difference takes after a little was changed, against a copy and a full restore.
#
#   benches/restore_delta.sh
#
#   ROUNDS=3     how often each way is run; they take turns
#   MIB=600      how large the cluster is
#   PERCENT=1    how many of the pages of the old directory differ
#   WALMGR_BENCH_DIR=/var/tmp   on which disk; one that shares content (XFS, btrfs) makes `--delta` beside cheap
#
# All of it ends when it is synced, over loopback with TLS:
#   copy                    cp -a --reflink=never of the set, then sync -f: no checks
#   standby, full           restore SET
#   standby, --delta        beside the old directory
#   standby, --in-place     in it
#   master, full            restore SET DST, over TLS
#   master, --delta         beside the old directory
#   master, --in-place      in it
# Before each run the old directory is the set with PERCENT of the pages changed, a bit each, all over it, in files that share
# nothing: the page cache has them, and a clone of one is read from the disk. Prints medians, their ratio to the copy and to
# the full restore of the same side, and the bytes that were brought.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin"
rounds=${ROUNDS:-3} mib=${MIB:-600} percent=${PERCENT:-1}
[[ $# == 0 ]] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
# shellcheck source=benches/place.sh
. benches/place.sh

# --- a set, and an old directory that is nearly the same ------------------------------------------
as_server initdb -D "$pgdata" --waldir="$place/wal" -A trust -k -N --no-instructions >/dev/null
start_server -c wal_level=replica -c fsync=off
introduce
as_server ./walmgr -q master.ini setup >/dev/null
stop_server
start_server -c fsync=off
as_server pgbench -q -i -s $((mib / 15 + 1)) -h "$place" postgres >/dev/null 2>&1
as_server ./walmgr -q master.ini backup >/dev/null
set=$place/walshipping/data.master
[[ -d $set ]] || set=$(as_server find "$place" -maxdepth 3 -name data.master -type d | head -1)
slave=$place/slave-data
as_server sed -i "/^#*slave_data = /d;/^#*backup_datadir = /d" standby.ini
as_server sed -i "s|^\[walmgr\]|&\nslave_data = $slave\nbackup_datadir = yes|" standby.ini

# The same pages each time, so that every way has the same to do.
change() {
    as_server perl -e '
        my ($root, $percent) = @ARGV;
        srand 42;
        open my $find, "-|", "find", "$root/base", "-type", "f", "-size", "+0" or die;
        for my $path (sort <$find>) {
            chomp $path;
            open my $file, "+<:raw", $path or die "$path: $!";
            my $pages = int((-s $file) / 8192);
            for my $page (0 .. $pages - 1) {
                next if rand 100 >= $percent;
                sysseek $file, $page * 8192 + 4000, 0;
                sysread $file, my $byte, 1;
                sysseek $file, $page * 8192 + 4000, 0;
                syswrite $file, $byte ^ "\x01", 1;
            }
        }' "$1" "$percent"
}
as_server cp -a --reflink=never "$set" "$place/old"
change "$place/old"
set_mib=$(($(du -sm "$set" | cut -f 1)))

# old DIRECTORY: there as before, and nothing beside it.
old() {
    rm -rf "$1" "$1".*
    as_server cp -a --reflink=never "$place/old" "$1"
    sync -f "$place"
}
timed() { # timed NAME COMMAND...
    local name=$1 begin end
    shift
    begin=$(date +%s.%N)
    as_server "$@" >>"$place/$name.out" 2>&1 || fail "$name: $(tail -n 1 "$place/$name.out")"
    sync -f "$place"
    end=$(date +%s.%N)
    perl -e 'printf "%.3f\n", $ARGV[1] - $ARGV[0]' "$begin" "$end" >>"$place/$name.s"
}
median() { sort -n "$place/$1.s" | awk '{ s[NR] = $1 } END { print (s[int((NR + 1) / 2)] + s[int(NR / 2) + 1]) / 2 }'; }

there=$place/there
for ((round = 1; round <= rounds; round++)); do
    rm -rf "$place/copy"
    sync -f "$place"
    timed copy cp -a --reflink=never "$set" "$place/copy"
    rm -rf "$place/copy"
    old "$slave"; timed standby-full ./walmgr standby.ini restore data.master
    old "$slave"; timed standby-delta ./walmgr standby.ini restore --delta data.master
    old "$slave"; timed standby-in-place ./walmgr standby.ini restore --delta --in-place data.master
    rm -rf "$slave" "$slave".* "$there" "$there".*
    sync -f "$place"
    timed master-full ./walmgr master.ini restore data.master "$there"
    old "$there"; timed master-delta ./walmgr master.ini restore data.master "$there" --delta
    old "$there"; timed master-in-place ./walmgr master.ini restore data.master "$there" --delta --in-place
    rm -rf "$there" "$there".*
done

printf '%s MiB, %s %% of the pages changed, %s rounds, on %s\n' "$set_mib" "$percent" "$rounds" "$file_system"
printf '%-18s %8s %8s %8s  %s\n' way seconds /copy /full brought
copy=$(median copy)
for name in copy standby-full standby-delta standby-in-place master-full master-delta master-in-place; do
    seconds=$(median "$name") full=$copy
    [[ $name == copy ]] || full=$(median "${name%%-*}-full")
    brought=$(grep -ho '[0-9.]* [KMG]*i*B came from the set' "$place/$name.out" | tail -n 1 || true)
    perl -e 'printf "%-18s %8.2f %8.2f %8.2f  %s\n", $ARGV[0], $ARGV[1], $ARGV[1] / $ARGV[2], $ARGV[1] / $ARGV[3], $ARGV[4]' \
        "$name" "$seconds" "$copy" "$full" "${brought% came from the set}"
done
