#!/usr/bin/env bash
# How many bytes a finished segment takes in the archive at each level of `store_compression`, beside one zstd
# stream at level 3 over the whole segment, which is what pgBackRest's `compress-type=zst` stores by default.
#
#   benches/stored_wal.sh DIR     DIR has finished segments of pgbench; benches/xarchive.sh DIR/.. makes them
#
# A level's figure is that of 256 KiB blocks packed one by one, as walmgr stores them, without the 832 bytes of
# checks and seek table. Needs zstd and split. Sizes only: nothing is timed.
set -euo pipefail
(($# == 1)) || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
mapfile -t segments < <(find "$1" -maxdepth 1 -type f -size +1023k | grep -E '/[0-9A-F]{24}$' | sort)
((${#segments[@]} > 0)) || { echo "FAILED: $1 has no segments" >&2; exit 1; }

# of LEVEL: bytes of all segments, block by block.
of() {
    local segment
    for segment in "${segments[@]}"; do
        split -b 256k --filter="zstd -q -$1 --no-check -c" "$segment"
    done | wc -c
}
whole=$(for segment in "${segments[@]}"; do zstd -q -3 -c "$segment"; done | wc -c)
mib() { awk -v bytes="$1" -v count="${#segments[@]}" 'BEGIN { printf "%.2f", bytes / count / 1048576 }'; }
echo "${#segments[@]} segments; MiB a segment, and to zstd -3 over the whole segment"
printf '%-12s %6s  1.00\n' 'whole, -3' "$(mib "$whole")"
for level in 1 2 3 4 5 6 7 8 9; do
    bytes=$(of "$level")
    printf 'zstd:%-7s %6s  %s\n' "$level" "$(mib "$bytes")" "$(awk -v a="$bytes" -v b="$whole" 'BEGIN { printf "%.2f", a / b }')"
done
