#!/usr/bin/env bash
# Where the processor time of one segment goes: of `xarchive` and of the receiver, by what the standby stores and what
# `compression` says; and what the receiver spends it on.
#
#   benches/budget.sh DIR [OTHER]   DIR has a cluster and its segments, made by benches/xarchive.sh DIR; OTHER is
#                                   another build, which takes turns with this
#
#   LAPS=2      how often each way takes all segments
#   SEGMENTS=12 how many of them
#   WAYS="none: zstd: zstd:0"     store_compression, and compression behind the last colon, empty for unset
#   PERF=       1: also what perf sees of the receiver, the last way, by thread and function
#
# Needs PostgreSQL's server programs and perl; PERF needs perf.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
(($# >= 1)) || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
laps=${LAPS:-2}
read -ra ways <<<"${WAYS:-none: zstd: zstd:0}"

source benches/place.sh
install -m 644 benches/stopwatch.pl "$place/stopwatch.pl"
install -m 755 "$place/walmgr" "$place/this"
builds=(this)
[[ -z ${2:-} ]] || { install -m 755 "$2" "$place/other"; builds+=(other); }
source=$(realpath "$1")
pgdata=$source/pgdata
start_server
introduce
as_server ./walmgr -q master.ini setup --no-check 2>>"$place/commands.log" || fail 'setup'
stop_server
stop_receiver
mapfile -t segments < <(find "$source/segments" -maxdepth 1 -type f -size +1023k -printf '%f\n' |
    grep -E '^[0-9A-F]{24}$' | sort | head -n "${SEGMENTS:-12}")
((${#segments[@]} > 0)) || fail "$source/segments has no segments"
as_server cp "$place/standby.ini" "$place/standby.base"

# send: all segments, with the `compression` of the way.
send() {
    local name level=
    [[ -z $1 ]] || level="--set compression=$1 "
    for name in "${segments[@]}"; do
        printf 'x\t./walmgr -q %smaster.ini xarchive %s %s\n' "$level" "$source/segments/$name" "$name"
    done | as_server perl stopwatch.pl
}
# lap BUILD WAY: BUILD/WAY, the receiver's and the client's milliseconds of processor a segment, and the median's elapsed.
lap() {
    install -m 755 "$place/$1" "$place/walmgr"
    { cat "$place/standby.base"; echo "store_compression = ${2%:*}"; } | as_server tee "$place/standby.ini" >/dev/null
    start_receiver -q
    local pid watching=
    pid=$(head -n 1 "$place/standby.pid")
    if [[ -n ${3:-} ]]; then
        # perf sees no thread that begins later, and this has those begin that pack.
        as_server ./walmgr -q --set compression=0 master.ini xarchive "$source/segments/${segments[0]}" "${segments[0]}"
        perf record -q -e cpu-clock -F 5000 -p "$pid" -o "$place/perf.data" 2>/dev/null &
        watching=$!
    fi
    send "${2##*:}" >"$place/times"
    [[ -z $watching ]] || { kill -INT "$watching"; wait "$watching" || true; }
    # What stands behind the name of the program in brackets.
    printf '%s %s\t%s\t%s\n' "$1" "$2" "$(sed 's/.*) //' "/proc/$pid/stat" |
        awk -v n="${#segments[@]}" -v hertz="$(getconf CLK_TCK)" '{printf "%.3f", ($12 + $13) * 1000 / hertz / n}')" \
        "$(sort -t $'\t' -k 2,2n "$place/times" | awk -F '\t' '{cpu += $4; ms[NR] = $2} END {printf "%.3f\t%.3f", cpu / NR, ms[int((NR + 1) / 2)]}')"
    stop_receiver
    find "$archive" -mindepth 1 \( -name '0000*' -o -name '*.maps' \) -prune -exec rm -r {} +
}
lap this "${ways[0]}" >/dev/null
for ((turn = 0; turn < laps; turn++)); do
    for way in "${ways[@]}"; do
        for build in "${builds[@]}"; do lap "$build" "$way"; done
    done
done >"$place/laps"

sort "$place/laps" | awk -F '\t' '
    { n[$1]++; receiver[$1] += $2; client[$1] += $3; elapsed[$1, n[$1]] = $4 }
    END {
        printf "%-22s %5s %13s %13s %13s\n", "", "laps", "receiver CPU", "client CPU", "elapsed ms"
        for (way in n) {
            for (i = 2; i <= n[way]; i++) for (j = i; j > 1 && elapsed[way, j] < elapsed[way, j - 1]; j--) {
                held = elapsed[way, j]; elapsed[way, j] = elapsed[way, j - 1]; elapsed[way, j - 1] = held
            }
            printf "%-22s %5d %13.1f %13.1f %13.1f\n", way, n[way], receiver[way] / n[way], client[way] / n[way], elapsed[way, int((n[way] + 1) / 2)]
        }
    }' | sort
[[ -z ${PERF:-} ]] || {
    lap this "${ways[-1]}" perf >/dev/null
    echo "of the receiver while ${#segments[@]} segments came, ${ways[-1]}:"
    perf report -i "$place/perf.data" --no-children --sort comm,symbol --stdio 2>/dev/null |
        awk '/^ +[0-9]/ && ++row <= 30 { sub(/[ -]*$/, ""); print }'
}
