#!/usr/bin/env bash
# walmgr beside the tools that do the same work, on one machine, in turns.
#
#   benches/compare.sh                    all of it
#   benches/compare.sh backlog lag        some of: segment backlog backup restore fetch replay lag
#
#   ROUNDS=3      how often each way is run
#   MIB=600       how large the cluster is
#   SEGMENTS=64   how many segments a backlog has
#   MESSAGES=100  how many flushes are timed each way
#
# segment   one finished segment, the whole process: `xarchive`, `pgbackrest archive-push`, `rsync --fsync`
# backlog   so many segments, drained by PostgreSQL's own archiver: without a syncdaemon, looking ahead and not, with one that has shipped none of
#           them, and with one that shipped them as they were written, with the processor time of the whole machine; pgBackRest one by one and asynchronous, with two and four processes, packed by lz4 and by zst; `cp` and sync
# backup    a full backup: `backup --full`, `pgbackrest backup --type=full`, `pg_basebackup`, `rsync --fsync`
# restore   into an empty directory: `restore`, `pgbackrest restore`, `cp -a` and sync
# fetch     one segment handed out: `xrestore` on the standby, and over TLS on the master, of one that lies ready too; `pgbackrest archive-get`, `cp`
# replay    by a warm standby, milliseconds a segment: `xrestore` on the standby and over TLS on the master, each with and without segments that lie ready,
#           `pgbackrest archive-get`, one by one and asynchronous with two processes, `cp`; `mv`, the least that any command can take
# lag       from a record's flush until it is durable on the other side: `syncdaemon`, `pg_receivewal --synchronous`
#
# walmgr speaks TLS with its receiver and checks every record of a segment; everything else writes to a folder of this machine
# directly, which favours it. Everything ends when it is synced. Prints medians, and their ratio to the best of the others.
# Needs PostgreSQL 15 with its programs and perl; says SKIP where pgbackrest, rsync or pg_receivewal is not installed.
# As root it runs all of it as the user postgres.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
rounds=${ROUNDS:-3} mib=${MIB:-600} backlog=${SEGMENTS:-64} messages=${MESSAGES:-100}
parts=("$@")
((${#parts[@]})) || parts=(segment backlog backup restore fetch replay lag)
for part in "${parts[@]}"; do
    case $part in
        segment | backlog | backup | restore | fetch | replay | lag) ;;
        *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done
has() { command -v "$1" >/dev/null || { echo "SKIP: $1 is not installed"; return 1; }; }

source benches/place.sh
install -m 644 benches/stopwatch.pl benches/lag.pl "$place"
sql() { as_server psql -XAtq -v ON_ERROR_STOP=1 -h "$place" -d postgres "$@"; }
syncdaemon_running=
start_syncdaemon() {
    syncdaemon_running=1
    as_server ./walmgr -q master.ini syncdaemon -d 2>>"$place/commands.log" || fail 'the syncdaemon did not start'
}
stop_syncdaemon() {
    as_server ./walmgr -q master.ini syncdaemon -s 2>>"$place/commands.log"
    syncdaemon_running=
}
# Who is taken for a server.
imitation=
stop_imitation() {
    [[ -z $imitation ]] || kill "$imitation"
    imitation=
}
before_clean_up() {
    [[ -z $syncdaemon_running ]] || stop_syncdaemon || true
    stop_imitation || true
}

# --- a cluster, and everybody's settings ---------------------------------------------------------
echo "making a cluster of $mib MiB; everything on $file_system"
as_server initdb -D "$pgdata" -A trust -N --no-instructions >/dev/null
start_server
introduce
as_server ./walmgr -q master.ini setup --no-check 2>>"$place/commands.log" || fail 'setup'
printf 'use_xlog_functions = 1\nloop_delay = 0.05\n' | as_server tee -a master.ini >/dev/null
# A segment that a vacuum closes wakes the archiver before its time.
as_server tee -a "$pgdata/postgresql.conf" >/dev/null <<CONF
archive_command = ''
autovacuum = off
wal_keep_size = 8GB
max_wal_size = 16GB
fsync = off
CONF
stop_server
start_server
as_server pgbench -q -i -s $((mib / 15 + 1)) -h "$place" postgres >/dev/null 2>&1 || fail 'pgbench -i'
status=$pgdata/pg_wal/archive_status
waiting() { find "$status" -name '*.ready' | wc -l; }
enough_waiting() { (($(waiting) >= backlog)); }
sql -c CHECKPOINT
if [[ " ${parts[*]} " = *' replay '* ]]; then
    # Replay begins where this stopped.
    as_server pg_ctl -D "$pgdata" -m fast -w stop >/dev/null
    as_server cp -a "$pgdata" base
    as_server find base/pg_wal -maxdepth 1 -type f -delete
    start_server
fi
# What pgbench wrote before is another kind of WAL.
as_server find "$status" -name '*.ready' -delete
until enough_waiting; do
    as_server pgbench -n -c 4 -j 2 -T 1 -h "$place" postgres >/dev/null 2>&1 || fail 'pgbench'
done
mapfile -t segments < <(find "$status" -name '*.ready' -printf '%f\n' | sed 's/\.ready$//' | sort | head -"$backlog")
as_server find "$status" -name '*.ready' -delete

pgbackrest=
if has pgbackrest; then
    pgbackrest=1
    as_server mkdir repo log lock spool
    # pgbackrest_settings COMPRESSION ASYNC PROCESSES
    pgbackrest_settings() {
        as_server tee pgbackrest.conf >/dev/null <<CONF
[global]
repo1-path=$place/repo
log-path=$place/log
lock-path=$place/lock
spool-path=$place/spool
log-level-console=warn
log-level-file=off
compress-type=$1
archive-async=$2
process-max=$3
start-fast=y
[bench]
pg1-path=$pgdata
pg1-socket-path=$place
pg1-user=postgres
CONF
    }
    pgbackrest_settings lz4 n 1
    as_server pgbackrest --config="$place/pgbackrest.conf" --stanza=bench --no-online stanza-create || pgbackrest=
    [[ -n $pgbackrest ]] || echo 'SKIP: pgbackrest does not take this version of PostgreSQL'
fi
pgbackrest_line="pgbackrest --config=$place/pgbackrest.conf --stanza=bench"
forget_archived() {
    as_server find "$archive" -maxdepth 1 -type f \( -name '0*.zst' -o -name '0*' \) -delete
    # Its asynchronous process may still write when nothing is left to archive.
    [[ -z $pgbackrest ]] || as_server bash -c 'until rm -rf repo/archive/bench/15-1/0* spool/archive; do sleep 0.1; done' 2>/dev/null
    as_server bash -c 'rm -rf copied; mkdir copied'
}

# timed LABEL COMMAND...: one command, words without spaces.
timed() {
    local label=$1
    shift
    printf '%s\t%s\n' "$label" "$*" | as_server perl stopwatch.pl >>"$place/times"
}

# --- one segment ---------------------------------------------------------------------------------
segment() {
    local name round
    pgbackrest_settings lz4 n 1
    for ((round = 0; round < rounds; round++)); do
        forget_archived
        for name in "${segments[@]:0:16}"; do
            timed 'segment walmgr' ./walmgr -q master.ini xarchive "$pgdata/pg_wal/$name" "$name"
            [[ -z $pgbackrest ]] || timed 'segment pgbackrest lz4' $pgbackrest_line archive-push "$pgdata/pg_wal/$name"
            ! has_rsync || timed 'segment rsync' rsync -a --fsync "$pgdata/pg_wal/$name" "$place/copied/$name"
        done
    done
}
has_rsync() { command -v rsync >/dev/null; }
has rsync || true

# --- a backlog -----------------------------------------------------------------------------------
# drain LABEL COMMAND: all segments made ready again for an empty archive, then `drained`.
drain() {
    local name
    forget_archived
    sql -c "ALTER SYSTEM SET archive_command = \$\$$2\$\$"
    for name in "${segments[@]}"; do
        as_server rm -f "$status/$name.done"
        as_server touch "$status/$name.ready"
    done
    sync
    drained "$1" "${#segments[@]}"
}
# busy: milliseconds of processor that everything on this machine has taken.
busy() { awk -v hertz="$(getconf CLK_TCK)" '/^cpu / { print ($2 + $3 + $4 + $7 + $8) * 1000 / hertz }' /proc/stat; }
# drained LABEL COUNT: from the moment the archiver may begin until nothing waits, milliseconds a segment.
drained() {
    local begun ended busy_before
    (($(waiting) == $2)) || echo "$1: $(waiting) of $2 segments are left when its time begins" >&2
    busy_before=$(busy)
    begun=$(date +%s%N)
    sql -c 'SELECT pg_reload_conf()' >/dev/null
    wait_until_none "$status" .ready
    ended=$(date +%s%N)
    awk -v label="$1" -v before="$busy_before" -v after="$(busy)" -v count="$2" -v OFS='\t' \
        'BEGIN { print label, (after - before) / count }' >>"$place/busy"
    sql -c "ALTER SYSTEM SET archive_command = ''" -c 'SELECT pg_reload_conf()' >/dev/null
    printf '%s\t%s\t0\n' "$1" "$(((ended - begun) / 1000 / $2))" |
        awk -F '\t' -v OFS='\t' '{ $2 = $2 / 1000; print }' >>"$place/times"
}
# drain_shipped LABEL COMMAND: segments that are written while a syncdaemon ships their records, and archived when all are.
drain_shipped() {
    local written
    forget_archived
    start_syncdaemon
    write_wal_until enough_waiting
    # Longer than the last pass takes.
    sleep 1
    written=$(waiting)
    sql -c "ALTER SYSTEM SET archive_command = \$\$$2\$\$"
    sync
    drained "$1" "$written"
    stop_syncdaemon
    as_server find "$status" -name '*.done' -delete
}
backlog() {
    local round form jobs
    for ((round = 0; round < rounds; round++)); do
        drain 'backlog cp and sync' "cp %p $place/copied/%f && sync $place/copied/%f"
        drain 'backlog walmgr' "$place/walmgr -q $place/master.ini xarchive %p %f"
        # Whoever looked ahead knows nothing of an archive that was cleared behind his back.
        wait_until_none "$place" .ahead
        drain 'backlog walmgr, archive_batch = 0' "$place/walmgr -q --set archive_batch=0 $place/master.ini xarchive %p %f"
        # What it knows of an archive that was cleared behind its back is of no use.
        start_syncdaemon
        drain 'backlog walmgr, syncdaemon' "$place/walmgr -q $place/master.ini xarchive %p %f"
        stop_syncdaemon
        drain_shipped 'backlog walmgr, shipped before' "$place/walmgr -q $place/master.ini xarchive %p %f"
        [[ -n $pgbackrest ]] || continue
        pgbackrest_settings lz4 n 1
        drain 'backlog pgbackrest lz4' "$pgbackrest_line archive-push %p"
        for form in lz4 zst; do
            for jobs in 2 4; do
                pgbackrest_settings "$form" y "$jobs"
                drain "backlog pgbackrest $form async x$jobs" "$pgbackrest_line archive-push %p"
            done
        done
    done
}

# --- backup and restore --------------------------------------------------------------------------
sets_are_there=
backup() {
    local round
    forget_archived
    for ((round = 0; round < rounds; round++)); do
        as_server bash -c 'rm -rf basebackup rsynced'
        sql -c "ALTER SYSTEM SET archive_command = '$place/walmgr -q $place/master.ini xarchive %p %f'" \
            -c 'SELECT pg_reload_conf()' >/dev/null
        timed 'backup walmgr' ./walmgr -q master.ini backup --full
        if [[ -n $pgbackrest ]]; then
            pgbackrest_settings lz4 n 2
            sql -c "ALTER SYSTEM SET archive_command = '$pgbackrest_line archive-push %p'" -c 'SELECT pg_reload_conf()' >/dev/null
            timed 'backup pgbackrest lz4 x2' $pgbackrest_line --type=full --repo1-retention-full=9 backup
        fi
        timed 'backup pg_basebackup' pg_basebackup -h "$place" -D "$place/basebackup" -X none -c fast
        ! has_rsync || timed 'backup rsync' rsync -a --fsync "$pgdata/" "$place/rsynced/"
    done
    sql -c "ALTER SYSTEM SET archive_command = ''" -c 'SELECT pg_reload_conf()' >/dev/null
    sets_are_there=1
}
restore() {
    local round set
    [[ -n $sets_are_there ]] || { rounds=1 backup; sed -i '/^backup /d' "$place/times"; }
    set=$(as_server find "$place" -maxdepth 3 -name data.master -type d | head -1)
    for ((round = 0; round < rounds; round++)); do
        as_server bash -c 'rm -rf restored by_pgbackrest copy'
        timed 'restore walmgr' ./walmgr -q standby.ini restore data.master "$place/restored"
        [[ -z $pgbackrest ]] || timed 'restore pgbackrest x2' $pgbackrest_line --pg1-path="$place/by_pgbackrest" restore
        printf 'restore cp -a and sync\tcp -a %s copy\tsync -f copy\n' "$set" | as_server perl stopwatch.pl >>"$place/times"
    done
    as_server bash -c 'rm -rf restored by_pgbackrest copy'
}

# --- replay --------------------------------------------------------------------------------------
# replayed LABEL COMMAND: from the start of a warm standby until it has the last segment.
replayed() {
    local label=$1 begun ended last=${segments[-1]}
    as_server rm -rf replaying
    as_server cp -a base replaying
    as_server touch replaying/standby.signal
    as_server tee -a replaying/postgresql.conf >/dev/null <<CONF
archive_mode = off
restore_command = '$2'
CONF
    as_server rm -f replaying.log
    sync
    begun=$(date +%s%N)
    as_server pg_ctl -D replaying -l replaying.log -w start >/dev/null \
        -o "-c listen_addresses='' -c unix_socket_directories=$place -c port=5433" || fail "$label: the standby did not start"
    while ! grep -q "restored log file \"$last\"" "$place/replaying.log"; do sleep 0.02; done
    ended=$(date +%s%N)
    as_server pg_ctl -D replaying -m immediate -w stop >/dev/null
    printf '%s\t%s\t0\n' "$label" "$(((ended - begun) / 1000 / ${#segments[@]}))" |
        awk -F '\t' -v OFS='\t' '{ $2 = $2 / 1000; print }' >>"$place/times"
}
# archive_all: each segment, in the way of each.
archive_all() {
    local name
    forget_archived
    [[ -z $pgbackrest ]] || pgbackrest_settings lz4 n 1
    for name in "${segments[@]}"; do
        as_server ./walmgr -q master.ini xarchive "$pgdata/pg_wal/$name" "$name"
        [[ -z $pgbackrest ]] || as_server $pgbackrest_line archive-push "$pgdata/pg_wal/$name"
        as_server cp "$pgdata/pg_wal/$name" copied/
    done
}
fetch() {
    local round name to=fetched/pg_wal/RECOVERYXLOG
    archive_all
    for ((round = 0; round < rounds; round++)); do
        for name in "${segments[@]}"; do
            as_server bash -c 'rm -rf fetched; mkdir -p fetched/pg_wal'
            timed 'fetch cp' cp "copied/$name" $to
            timed 'fetch walmgr' ./walmgr -q standby.ini --set restore_ahead=0 xrestore "$name" $to
            timed 'fetch walmgr over TLS' ./walmgr -q master.ini xrestore "$name" $to
            # It wants to be where the server is.
            [[ -z $pgbackrest ]] || timed 'fetch pgbackrest lz4' -C "$pgdata" $pgbackrest_line archive-get "$name" "$place/$to"
        done
        as_server rm -rf fetched
        laid_ready 'fetch walmgr, laid ready' standby.ini
        laid_ready 'fetch walmgr over TLS, laid ready' master.ini
    done
}
# laid_ready LABEL SETTINGS: what calls before have laid ready is handed out, as to a server that asks for one segment behind the other.
laid_ready() {
    local name calls=0
    as_server bash -c 'rm -rf laid; mkdir -p laid/pg_wal laid/global'
    as_server cp "$pgdata/PG_VERSION" laid/
    as_server cp "$pgdata/global/pg_control" laid/global/
    # What works there with that number is taken for its server.
    begin_as_server env -C "$place/laid" sleep 600
    imitation=$begun_pid
    # Its end is no news.
    disown -a
    printf '%s\n%s\n1700000000\n' "$imitation" "$place/laid" | as_server tee laid/postmaster.pid >/dev/null
    for name in "${segments[@]}"; do
        # The second call in a row has the next ones fetched.
        if ((calls++ > 1)); then
            compgen -G "$place/laid/pg_wal/.walmgr/$name.*" >/dev/null || echo "$name does not lie ready" >&2
            timed "$1" -C "$place/laid" ../walmgr -q "../$2" xrestore "$name" pg_wal/RECOVERYXLOG
        else
            as_server env -C "$place/laid" ../walmgr -q "../$2" xrestore "$name" pg_wal/RECOVERYXLOG
        fi
        as_server rm -f laid/pg_wal/RECOVERYXLOG
        sleep 0.3
    done
    stop_imitation
    as_server rm -rf laid
}
replay() {
    local round
    archive_all
    for ((round = 0; round < rounds; round++)); do
        replayed 'replay cp' "cp $place/copied/%f %p"
        as_server cp -r copied moved
        replayed 'replay mv' "mv $place/moved/%f %p"
        as_server rm -rf moved
        replayed 'replay walmgr' "$place/walmgr -q $place/standby.ini xrestore %f %p"
        replayed 'replay walmgr, restore_ahead = 0' "$place/walmgr -q $place/standby.ini --set restore_ahead=0 xrestore %f %p"
        replayed 'replay walmgr over TLS' "$place/walmgr -q $place/master.ini xrestore %f %p"
        replayed 'replay walmgr over TLS, restore_ahead = 0' "$place/walmgr -q $place/master.ini --set restore_ahead=0 xrestore %f %p"
        [[ -n $pgbackrest ]] || continue
        pgbackrest_settings lz4 n 1
        replayed 'replay pgbackrest lz4' "$pgbackrest_line --pg1-path=$place/replaying archive-get %f %p"
        pgbackrest_settings lz4 y 2
        as_server rm -rf spool/archive
        replayed 'replay pgbackrest lz4 async x2' "$pgbackrest_line --pg1-path=$place/replaying archive-get %f %p"
    done
}

# --- lag -----------------------------------------------------------------------------------------
lag() {
    local done
    has pg_receivewal || [[ -x $pg_bin/pg_receivewal ]] || return 0
    as_server ./walmgr -q master.ini sync 2>>"$place/commands.log" || true
    sql -c "SELECT pg_create_physical_replication_slot('bench', true)" >/dev/null
    as_server mkdir receivewal
    for ((done = 0; done < messages; done += 50)); do
        as_server perl lag.pl "$place" receivewal 50 pg_receivewal -h "$place" -D receivewal -S bench --synchronous --no-loop
        as_server perl lag.pl "$place" walmgr 50 ./walmgr -v --set loop_delay=0.01 master.ini syncdaemon
    done | sed 's/^receivewal/lag pg_receivewal/; s/^walmgr/lag walmgr/; s/$/\t0/' >>"$place/times"
    sql -c "SELECT pg_drop_replication_slot('bench')" >/dev/null
}

: >"$place/times"
for part in "${parts[@]}"; do
    echo "measuring: $part"
    "$part"
done

# --- the report ----------------------------------------------------------------------------------
sort -t $'\t' -k 1,1 -k 2,2n "$place/times" | awk -F '\t' '
    { if (!($1 in n)) order[++labels] = $1; ms[$1, ++n[$1]] = $2 }
    function median(label) { return ms[label, int((n[label] + 1) / 2)] }
    # Fewer have none.
    function p99(label) { return n[label] < 100 ? "" : sprintf("%.2f", ms[label, int(n[label] * 0.99)]) }
    END {
        for (i = 1; i <= labels; i++) {
            split(order[i], word, " ")
            if (order[i] !~ / walmgr/ && (!(word[1] in best) || median(order[i]) < best[word[1]])) best[word[1]] = median(order[i])
        }
        printf "\n%-40s %5s %12s %10s %20s\n", "", "n", "median ms", "p99 ms", "x best of the others"
        for (i = 1; i <= labels; i++) {
            split(order[i], word, " ")
            printf "%-40s %5d %12.2f %10s", order[i], n[order[i]], median(order[i]), p99(order[i])
            if (word[1] in best) printf " %20.2f", median(order[i]) / best[word[1]]
            print ""
        }
        print "backlog, replay: milliseconds a segment"
    }'
[[ ! -s $place/busy ]] || sort -t $'\t' -k 1,1 -k 2,2n "$place/busy" | awk -F '\t' '
    { if (!($1 in n)) order[++labels] = $1; ms[$1, ++n[$1]] = $2 }
    END {
        printf "\n%-40s %5s %12s\n", "processor time of all this machine does", "n", "ms a segment"
        for (i = 1; i <= labels; i++) printf "%-40s %5d %12.2f\n", order[i], n[order[i]], ms[order[i], int((n[order[i]] + 1) / 2)]
    }'
