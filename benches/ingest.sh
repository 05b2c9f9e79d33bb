#!/usr/bin/env bash
# What one receiver costs against another while WAL arrives over TLS: processor time and elapsed time.
#
#   benches/ingest.sh OTHER DIR     OTHER is another build of walmgr, to compare with; DIR has a cluster and its
#                                   segments, made by benches/xarchive.sh DIR
#
#   LAPS=6      how often each receiver takes all segments
#
# The two receivers take turns on the same archive, and the same client sends the same segments to both. To see what
# the block maps cost, build OTHER without `.noting_changes()` in Incoming::begin (src/store/incoming.rs).
# The processor time is the receiver's own, of all its threads. Ends with 1 if the block maps take more than 0.5 % of
# the WAL. Needs PostgreSQL's server programs and perl.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
(($# == 2)) || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
laps=${LAPS:-6}

source benches/place.sh
install -m 755 "$1" "$place/other"
install -m 755 "$place/walmgr" "$place/client"
install -m 755 "$place/walmgr" "$place/this"
install -m 644 benches/stopwatch.pl "$place/stopwatch.pl"
source=$(realpath "$2")
pgdata=$source/pgdata
start_server
introduce
as_server ./walmgr -q master.ini setup --no-check 2>>"$place/commands.log" || fail 'setup'
stop_server
stop_receiver
mapfile -t segments < <(find "$source/segments" -maxdepth 1 -type f -size +1023k -printf '%f\n' |
    grep -E '^[0-9A-F]{24}$' | sort)
((${#segments[@]} > 0)) || fail "$source/segments has no segments"

for name in "${segments[@]}"; do
    printf 'x\t./client -q master.ini xarchive %s %s\n' "$source/segments/$name" "$name"
done >"$place/jobs"

# lap LABEL: all segments into an archive that has none of them; the receiver's ticks and the elapsed milliseconds.
lap() {
    install -m 755 "$place/$1" "$place/walmgr"
    start_receiver -q
    local pid
    pid=$(head -n 1 "$place/standby.pid")
    as_server perl stopwatch.pl <"$place/jobs" >"$place/times"
    # What stands behind the name of the program in brackets.
    printf '%s\t%s\t%s\n' "$1" "$(sed 's/.*) //' "/proc/$pid/stat" | awk '{print $12 + $13}')" \
        "$(awk -F '\t' '{ms += $2} END {print ms}' "$place/times")"
    stop_receiver
    [[ $1 != this ]] || find "$archive" -path '*/.maps/*' -type f -printf '%s\n' >"$place/maps"
    find "$archive" -mindepth 1 \( -name '0000*' -o -name '*.maps' \) -prune -exec rm -r {} +
}
lap this >/dev/null
for ((turn = 0; turn < laps; turn++)); do
    if ((turn % 2)); then lap this; lap other; else lap other; lap this; fi
done | tee "$place/laps" >&2

awk -F '\t' -v segments="${#segments[@]}" -v hertz="$(getconf CLK_TCK)" '
    { n[$1]++; cpu[$1] += $2 * 1000 / hertz; ms[$1] += $3 }
    END {
        printf "\n%-10s %5s %18s %22s\n", "", "n", "receiver CPU ms", "xarchive elapsed ms"
        for (label in n) {
            files = n[label] * segments
            printf "%-10s %5d %18.2f %22.2f\n", label, files, cpu[label] / files, ms[label] / files
        }
        printf "%-10s %24.3f %22.3f\n", "ratio", cpu["this"] / cpu["other"], ms["this"] / ms["other"]
    }' "$place/laps"
raw=$(cd "$source/segments" && stat -c %s "${segments[@]}" | awk '{ sum += $1 } END { print sum }')
awk -v raw="$raw" '
    { sum += $1 }
    END {
        printf "block maps: %d bytes of %d segments, %.3f %% of their WAL\n", sum, NR, 100 * sum / raw
        if (sum > 0.005 * raw) { print "block maps take more than 0.5 % of the WAL"; exit 1 }
    }' "$place/maps"
