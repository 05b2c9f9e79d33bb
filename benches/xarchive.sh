#!/usr/bin/env bash
# How long one `xarchive` takes, whole process, against what the disk alone takes for the same file.
#
#   benches/xarchive.sh           makes a throw-away cluster and WAL with pgbench
#   benches/xarchive.sh DIR       keeps them in DIR, and takes them from there if they are there:
#                                 DIR/pgdata is a cluster that is not running, DIR/segments has
#                                 finished segments of it
#
#   LAPS=2      how often each segment is archived each way
#   SEGMENTS=24 how many segments pgbench is to write
#   STORE=      store_compression of the standby, if not the default: compare with STORE=none
#
# The floor is `dd conv=fsync` and `mv` onto the file system that the archive is on: content synced,
# then named. xarchive starts from nothing each time: it reads its ini file and keys, connects, shakes
# hands (TLS 1.3 on loopback), sends; the receiver checks every WAL record, syncs the file, renames it,
# syncs the directory, and answers. The two take turns, so that a busy machine slows both.
# Needs PostgreSQL's server programs and perl. As root it runs all of it as the user postgres.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
laps=${LAPS:-2} segments_wanted=${SEGMENTS:-24}
case ${1:-} in
    -*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

source benches/place.sh
install -m 644 benches/stopwatch.pl "$place/stopwatch.pl"
source=$place
if [[ -n ${1:-} ]]; then
    mkdir -p "$1"
    source=$(realpath "$1")
    ((EUID != 0)) || chown postgres: "$source"
fi
pgdata=$source/pgdata

# --- a cluster and its segments ------------------------------------------------------------------
if [[ ! -f $pgdata/PG_VERSION ]]; then
    echo "making a cluster and $segments_wanted segments with pgbench"
    as_server initdb -D "$pgdata" -A trust -N --no-instructions >/dev/null
    as_server mkdir -p "$source/segments"
    as_server tee -a "$pgdata/postgresql.conf" >/dev/null <<CONF
fsync = off
max_wal_size = 256MB
archive_mode = on
archive_command = 'cp %p $source/segments/%f'
CONF
    start_server
    as_server pgbench -q -i -s 10 -h "$place" postgres >/dev/null 2>&1 || fail 'pgbench -i'
    finished() { find "$source/segments" -size 16M | wc -l; }
    while (($(finished) < segments_wanted)); do
        as_server pgbench -n -c 4 -j 2 -T 1 -h "$place" postgres >/dev/null 2>&1 || fail 'pgbench'
    done
    # The last segments that pgbench wrote are the ones of ordinary load.
    as_server bash -c "cd '$source/segments' && ls | grep -E '^[0-9A-F]{24}\$' | head -n -$segments_wanted | xargs -r rm"
else
    start_server
fi

# --- the two sides -------------------------------------------------------------------------------
introduce
as_server ./walmgr -q master.ini setup --no-check 2>>"$place/commands.log" || fail 'setup'
stop_server
mapfile -t segments < <(find "$source/segments" -maxdepth 1 -type f -size +1023k -printf '%f\n' |
    grep -E '^[0-9A-F]{24}$' | sort)
((${#segments[@]} > 0)) || fail "$source/segments has no segments"
as_server mkdir "$place/floor"

# --- the jobs ------------------------------------------------------------------------------------
# job LABEL SEGMENT OPTION...: one xarchive, and its file removed again, which is not measured.
job() {
    local label=$1 name=$2
    shift 2
    printf '%s\t./walmgr %s master.ini xarchive %s %s\n' "$label" "$*" "$source/segments/$name" "$name"
    printf -- '-\trm -f %s %s\n' "$archive/$name" "$archive/$name.zst"
}
floor() {
    printf '%s\tdd if=%s of=floor/.in bs=1M conv=fsync status=none\tmv floor/.in floor/%s\n' \
        "$1" "$source/segments/$2" "$2"
    printf -- '-\trm floor/%s\n' "$2"
}
# Takes the source out of the page cache.
forget() {
    printf -- '-\tdd if=%s iflag=nocache count=0 status=none\n' "$source/segments/$1"
}
jobs() {
    local lap name turn=0
    for ((lap = 0; lap < 50; lap++)); do printf 'version\t./walmgr --version\nnothing\t/bin/true\n'; done
    job - "${segments[0]}" -q
    for ((lap = 0; lap < laps; lap++)); do
        for name in "${segments[@]}"; do
            # Each way is the first as often as it is the last.
            case $((turn++ % 3)) in
                0) floor floor "$name"; job tls "$name" -q; job zstd "$name" -q --set compression=1 ;;
                1) job tls "$name" -q; job zstd "$name" -q --set compression=1; floor floor "$name" ;;
                2) job zstd "$name" -q --set compression=1; floor floor "$name"; job tls "$name" -q ;;
            esac
        done
    done
    for name in "${segments[@]}"; do
        case $((turn++ % 2)) in
            0) forget "$name"; floor cold_floor "$name"; forget "$name"; job cold_tls "$name" -q ;;
            1) forget "$name"; job cold_tls "$name" -q; forget "$name"; floor cold_floor "$name" ;;
        esac
    done
}
echo "measuring: ${#segments[@]} segments from $source, archive on $file_system"
jobs | as_server perl stopwatch.pl >"$place/times"

# Bringing a segment back, against `cp` of the master's: neither syncs. It is unpacked and checked record by record.
back() {
    local name lap turn=0
    for name in "${segments[@]}"; do job - "$name" -q | head -n 1; done
    for ((lap = 0; lap < laps; lap++)); do
        for name in "${segments[@]}"; do
            if ((turn++ % 2)); then
                printf 'cp\tcp %s floor/back\n-\trm floor/back\n' "$source/segments/$name"
                printf 'xrestore\t./walmgr -q standby.ini xrestore %s floor/back\n-\trm floor/back\n' "$name"
            else
                printf 'xrestore\t./walmgr -q standby.ini xrestore %s floor/back\n-\trm floor/back\n' "$name"
                printf 'cp\tcp %s floor/back\n-\trm floor/back\n' "$source/segments/$name"
            fi
        done
    done
    for name in "${segments[@]}"; do printf -- '-\trm -f %s %s\n' "$archive/$name" "$archive/$name.zst"; done
}
back | as_server perl stopwatch.pl >>"$place/times"

# --- memory of the receiver ----------------------------------------------------------------------
# peak CLIENTS OPTION...: what a fresh receiver needed at most while that many clients sent at once.
peak() {
    local clients=$1 client index=0 waiting=()
    shift
    stop_receiver
    start_receiver
    for ((client = 0; client < clients; client++)); do
        for ((index = client; index < ${#segments[@]}; index += clients)); do
            job - "${segments[index]}" -q "$@"
        done >"$place/client.$client"
        as_server perl stopwatch.pl <"$place/client.$client" &
        waiting+=($!)
    done
    for client in "${waiting[@]}"; do wait "$client" || fail 'a client failed'; done
    awk '/^VmHWM/ {print $2}' "/proc/$(head -n 1 "$place/standby.pid")/status"
}
for clients in 1 4 8; do
    printf 'receiver %d\t%d\n' "$clients" "$(peak "$clients")"
done >"$place/peaks"
printf 'largest 8\t%d\n' "$(peak 8 --set compression=1,block_size=256kB)" >>"$place/peaks"

# --- the report ----------------------------------------------------------------------------------
sort -t $'\t' -k 1,1 -k 2,2n "$place/times" | awk -F '\t' -v peaks="$place/peaks" '
    { ms[$1, ++n[$1]] = $2; if ($1 != "version" && $1 != "nothing" && $1 !~ /floor|^cp$|^xrestore$/ && $3 > client) client = $3 }
    function rank(label, part,   at) {
        at = int(n[label] * part + 0.999999)
        return ms[label, at < 1 ? 1 : at]
    }
    function row(text, label, floor) {
        printf "%-44s %5d %10.2f %8.2f", text, n[label], rank(label, 0.5), rank(label, 0.9)
        if (floor != "") printf " %8.2f", rank(label, 0.5) / rank(floor, 0.5)
        print ""
    }
    function memory(text, kib, bound_mib,   above) {
        above = kib > bound_mib * 1024
        printf "%-44s %8.1f MiB, bound %d MiB%s\n", text, kib / 1024, bound_mib, above ? " EXCEEDED" : ""
        if (above) exceeded = 1
    }
    END {
        printf "\n%-44s %5s %10s %8s %8s\n", "", "n", "median ms", "p90 ms", "x floor"
        row("floor: dd conv=fsync, mv", "floor")
        row("xarchive, TLS, records verified", "tls", "floor")
        row("  with compression = 1", "zstd", "floor")
        row("floor, source not in the page cache", "cold_floor")
        row("xarchive, source not in the page cache", "cold_tls", "cold_floor")
        row("floor: cp of the segment", "cp")
        row("xrestore, records verified", "xrestore", "cp")
        row("floor: /bin/true", "nothing")
        row("walmgr --version", "version", "nothing")
        print ""
        if (client > 0) memory("xarchive, peak", client, 24)
        while ((getline line < peaks) > 0) {
            split(line, part, "\t"); split(part[1], word, " ")
            memory("receiver, peak with " word[2] " clients at once" \
                (word[1] == "largest" ? " (*)" : ""), part[2], 32 + 4 * word[2])
        }
        print "(*) compression = 1, block_size = 256kB: the most a client can ask for"
        if (rank("version", 0.5) > 5 * rank("nothing", 0.5)) { print "walmgr --version is above 5 x floor"; exceeded = 1 }
        if (rank("tls", 0.5) > 2 * rank("floor", 0.5)) { print "xarchive is above 2 x floor"; exceeded = 1 }
        exit exceeded
    }'
