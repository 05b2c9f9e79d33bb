#!/usr/bin/env bash
# What a command takes in an archive of many names: the receiver's start, status, listbackups, and xrestore of a segment
# that is there and of one that is not.
#
#   benches/names.sh              makes a throw-away cluster with segments of 1 MiB
#
#   ROUNDS=5                  how often each command runs in each archive
#   COUNTS='1000 1000000'     how many segments the archives hold
#
# The segments but for the last ones are sparse files: what is measured is names. Nothing is dropped from the page
# cache between two runs. Needs PostgreSQL's server programs.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
(($# == 0)) || { sed -n '2,/^cache/s/^# \{0,1\}//p' "$0"; exit 2; }
rounds=${ROUNDS:-5}
read -ra counts <<<"${COUNTS:-1000 1000000}"

source benches/place.sh
# Far enough along for a million segments before it.
first=000000010000010100000000
as_server initdb -D "$pgdata" -A trust -N --no-instructions --wal-segsize=1 >/dev/null
as_server pg_resetwal -f -l "$first" "$pgdata" >/dev/null
as_server tee -a "$pgdata/postgresql.conf" >/dev/null <<CONF
fsync = off
archive_mode = on
archive_command = ''
CONF
start_server
introduce
as_server ./walmgr -q master.ini setup 2>>"$place/commands.log" || fail 'setup'
as_server ./walmgr -q master.ini backup 2>>"$place/commands.log" || fail 'backup'
# As many true ones as a start looks at.
for ((n = 0; n < 8; n++)); do
    as_server psql -XqAtc "SELECT pg_switch_wal() FROM (SELECT pg_logical_emit_message(true, '', '')) AS _" \
        -h "$place" postgres >/dev/null
done
until [[ -z $(find "$pgdata/pg_wal/archive_status" -name '*.ready') ]]; do sleep 0.1; done
stop_server
stop_receiver
newest=$(find "$archive" -name '0000*' ! -name '*.*' -printf '%f\n' | sort | tail -1)
[[ -n $newest ]] || newest=$(find "$archive" -name '0000*.zst' -printf '%f\n' | sort | tail -1)
newest=${newest%.zst}
oldest=$(find "$archive" -name '0000*' -printf '%f\n' | sort | head -1)
oldest=${oldest:0:24}

# fill COUNT: sparse segments before the oldest one.
fill() {
    as_server perl -e '
        my ($archive, $oldest, $count) = @ARGV;
        my $last = hex(substr $oldest, 8, 8) * 4096 + hex(substr $oldest, 16, 8);
        for my $number ($last - $count .. $last - 1) {
            my $name = sprintf "%s/%s%08X%08X", $archive, substr($oldest, 0, 8), $number >> 12, $number & 4095;
            next if -e $name;
            open my $file, ">", $name or die "$name: $!";
            truncate $file, 1 << 20 or die "$name: $!";
        }' "$archive" "$oldest" "$1"
}
absent=$(perl -e 'my $n = hex(substr $ARGV[0], 8, 8) * 4096 + hex(substr $ARGV[0], 16, 8) + 1;
    printf "%s%08X%08X", substr($ARGV[0], 0, 8), $n >> 12, $n & 4095' "$newest")

# took LABEL COMMAND...: its milliseconds.
took() {
    local label=$1 begun=$EPOCHREALTIME
    shift
    "$@" >/dev/null 2>>"$place/commands.log" || true
    awk -v label="$label" -v begun="$begun" -v ended="$EPOCHREALTIME" \
        'BEGIN { printf "%s\t%.2f\n", label, (ended - begun) * 1000 }'
}
measure() {
    local round
    for ((round = 0; round <= rounds; round++)); do
        took start start_receiver -q
        took status as_server ./walmgr -q standby.ini status
        took listbackups as_server ./walmgr -q standby.ini listbackups
        took found as_server ./walmgr -q standby.ini xrestore "$newest" "$place/restored"
        took absent as_server ./walmgr -q standby.ini xrestore "$absent" "$place/restored"
        awk '/VmHWM/ { printf "receiver_kib\t%d\n", $2 }' "/proc/$(cat "$place"/*.pid | head -1)/status" 2>/dev/null || true
        stop_receiver
    done
}
for count in "${counts[@]}"; do
    fill "$count"
    echo "$count names"
    measure | awk -F'\t' '{ if (!($1 in n)) order[++labels] = $1; v[$1, n[$1]++] = $2 }
        END { for (l = 1; l <= labels; l++) { k = order[l]; m = 0
            # Without the first, which warms up.
            for (i = 1; i < n[k]; i++) a[i] = v[k, i] + 0
            for (i = 2; i < n[k]; i++) for (j = i; j > 1 && a[j] < a[j-1]; j--) { t = a[j]; a[j] = a[j-1]; a[j-1] = t }
            printf "  %-14s %10.1f\n", k, a[int(n[k] / 2)] } }'
done
