#!/usr/bin/env bash
# How many bytes a finished segment takes in the archive at each level of `store_compression`, beside one zstd
# stream at level 3 over the whole segment, which is what pgBackRest's `compress-type=zst` stores by default; and how
# fast one processor packs and unpacks it.
#
#   benches/stored_wal.sh DIR     DIR has finished segments of pgbench; benches/xarchive.sh DIR/.. makes them
#
# A level's figures are those of 256 KiB blocks packed one by one, as walmgr stores them, without the 832 bytes of
# checks and seek table. Needs zstd.
set -euo pipefail
(($# == 1)) || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
mapfile -t segments < <(find "$1" -maxdepth 1 -type f -size +1023k | grep -E '/[0-9A-F]{24}$' | sort)
((${#segments[@]} > 0)) || { echo "FAILED: $1 has no segments" >&2; exit 1; }

whole=$(for segment in "${segments[@]}"; do zstd -q -3 -c "$segment"; done | wc -c)
echo "${#segments[@]} segments; MiB a segment, to zstd -3 over the whole segment, MB/s packed and unpacked"
row() { awk -v name="$1" -v bytes="$2" -v whole="$whole" -v count="${#segments[@]}" -v packed="${3:-}" -v unpacked="${4:-}" \
    'BEGIN { printf "%-10s %6.2f %6.3f %7s %7s\n", name, bytes / count / 1048576, bytes / whole, packed, unpacked }'; }
row 'whole, -3' "$whole"
# tried NAME ARGUMENT...: what zstd says of these arguments.
tried() {
    local name=$1 figures bytes packed unpacked
    shift
    # 3#24 files : 402653184 -> 34567890 (x11.65), 512.3 MB/s, 1503.2 MB/s
    figures=$(zstd "$@" -i1 -B262144 "${segments[@]}" 2>&1 | tr '\r' '\n' | grep -E 'MB/s,.*MB/s' | tail -n 1 |
        sed -E 's/.*-> *([0-9]+) .*, *([0-9.]+) MB\/s, *([0-9.]+) MB\/s.*/\1 \2 \3/')
    read -r bytes packed unpacked <<<"$figures"
    row "$name" "$bytes" "$packed" "$unpacked"
}
tried 'zstd -1' -b1
# Level 1 looks for shorter matches than zstd's own (`FASTEST_MATCH_BYTES`).
tried zstd:1 -b1 --zstd=minMatch=5
for level in 2 3 4 5 6 7 8 9; do tried "zstd:$level" -b"$level"; done
