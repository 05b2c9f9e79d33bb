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
# cache between two runs, and the receiver has noted the names once. `status`, `listbackups` and `xrestore` run right behind
# its start. At last its note is removed: `noted` is how long a start then takes to make it, `unnoted` what `status` takes meanwhile.
# Ends with 1 if a start takes more than a second, or a command with the most names more than 1.5 times what it takes with the fewest.
# Needs PostgreSQL's server programs.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
(($# == 0)) || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
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
# The receiver has noted what is in the archive.
is_noted() { [[ $archive/.names/index -nt $place/filled ]]; }
until_noted() {
    local tries
    for ((tries = 0; tries < 1200; tries++)); do
        ! is_noted || return 0
        sleep 0.05
    done
    fail 'the names were not noted within a minute'
}
measure() {
    local round
    touch "$place/filled"
    sleep 0.1
    start_receiver -q
    until_noted
    stop_receiver
    for ((round = 0; round <= rounds; round++)); do
        took start start_receiver -q
        took status as_server ./walmgr -q standby.ini status
        took listbackups as_server ./walmgr -q standby.ini listbackups
        took found as_server ./walmgr -q standby.ini xrestore "$newest" "$place/restored"
        took absent as_server ./walmgr -q standby.ini xrestore "$absent" "$place/restored"
        awk '/VmHWM/ { printf "receiver_kib\t%d\n", $2 }' "/proc/$(cat "$place"/*.pid | head -1)/status" 2>/dev/null || true
        stop_receiver
    done
    rm "$archive/.names/index"
    start_receiver -q
    took unnoted as_server ./walmgr -q standby.ini status
    took noted until_noted
    stop_receiver
}
for count in "${counts[@]}"; do
    fill "$count"
    measure | sed "s/^/$count\t/" >>"$place/times"
done
awk -F '\t' '
    {
        if (!($2 in rows)) order[++labels] = $2
        rows[$2] = 1
        if (!($1 in columns)) counts[++archives] = $1
        columns[$1] = 1
        values[$1, $2, n[$1, $2]++] = $3
    }
    # Where there are several without the first, which warms up.
    function median(count, label,    i, j, t, m, a) {
        m = 0
        for (i = n[count, label] > 1; i < n[count, label]; i++) {
            for (j = m++; j > 0 && a[j - 1] > values[count, label, i]; j--) a[j] = a[j - 1]
            a[j] = values[count, label, i]
        }
        return (a[int((m - 1) / 2)] + a[int(m / 2)]) / 2
    }
    END {
        printf "%-14s", "names"
        for (c = 1; c <= archives; c++) printf "%12d", counts[c]
        print ""
        for (l = 1; l <= labels; l++) {
            label = order[l]
            printf "%-14s", label
            for (c = 1; c <= archives; c++) printf "%12.1f", median(counts[c], label)
            print ""
            if (label ~ /noted|receiver/) continue
            few = median(counts[1], label)
            many = median(counts[archives], label)
            if (label == "start" ? many > 1000 : many > 1.5 * few) exceeded = exceeded " " label
        }
        if (exceeded) print "too long with many names:" exceeded
        exit exceeded != ""
    }' "$place/times"
