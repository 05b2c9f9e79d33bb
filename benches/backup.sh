#!/usr/bin/env bash
# How long a base backup over the network takes, and its restore, against other ways to do the same.
#
#   benches/backup.sh              both clusters
#   benches/backup.sh large        pgbench's tables: most of it in a few large files
#   benches/backup.sh small        some 19,000 files of a few pages each
#
#   ROUNDS=3     how often each way is run; they take turns
#   MIB=1500     how large the large cluster is
#   TABLES=3000  how many tables the small one has, four files each
#   LIMIT=600    seconds after which a run that has not ended is a failure
#
# Everything goes through the network stack of loopback, encrypted, and ends when it is synced:
#   floor                   cp -a, then sync -f: no network, no checks
#   pg_basebackup           plain format over TLS, its checksums, its sync
#   pg_basebackup zstd      tar format, zstd level 1 by the client, over TLS; it stays packed
#   rsync                   rsync -a over ssh, then sync -f (no consistent backup, only its bytes)
#   walmgr                  two jobs over TLS; waits for the backup's WAL in the archive as well
#   walmgr, compression = 1
# The page cache is warm for all of them. Prints medians and their ratio to the floor; ends with 1 if
# walmgr is slower than pg_basebackup or rsync, or the receiver above its bound.
# Needs PostgreSQL 15 or newer with its programs; installs rsync and openssh-server (Debian, as root)
# if they are absent, and says SKIP for the rows it cannot run. With WALMGR_BENCH_BINARY=FILE it measures that program, and
# builds none.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin"
rounds=${ROUNDS:-3} mib=${MIB:-1500} tables=${TABLES:-3000} limit=${LIMIT:-600}
case ${1:-} in
    '') cases=(large small) ;;
    large | small) cases=("$1") ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

if ((EUID == 0)) && command -v apt-get >/dev/null; then
    missing=()
    command -v rsync >/dev/null || missing+=(rsync)
    [[ -x /usr/sbin/sshd ]] || missing+=(openssh-server)
    # A server that the package would start has no part in this.
    ((${#missing[@]} == 0)) || RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || true
fi
binary=${WALMGR_BENCH_BINARY:-target/release/walmgr}
[[ -n ${WALMGR_BENCH_BINARY:-} ]] || cargo build --release --locked --quiet
pg_bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
[[ -n $pg_bin ]] || fail 'PostgreSQL is not installed'

# --- a place of our own, on a disk ---------------------------------------------------------------
place=$(mktemp -d "${WALMGR_BENCH_DIR:-/var/tmp}/walmgr-bench.XXXXXX")
[[ $(stat -f -c %T "$place") != tmpfs ]] || fail "$place is in memory; set WALMGR_BENCH_DIR to a folder on a disk"
install -m 755 "$binary" "$place/walmgr"
if ((EUID == 0)); then
    chown postgres: "$place"
    as_server() { (cd "$place" && runuser -u postgres -- env HOME="$place" PATH="$pg_bin:$PATH" "$@"); }
else
    as_server() { (cd "$place" && env HOME="$place" PATH="$pg_bin:$PATH" "$@"); }
fi
free_port() {
    local port
    while port=$((20000 + RANDOM % 20000)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}

server_running= receiver_running=
stop_all() {
    [[ -z $receiver_running ]] || as_server ./walmgr -q standby.ini receiver -s || true
    [[ -z $server_running ]] || as_server pg_ctl -D "$place/pgdata" -m immediate -w stop >/dev/null || true
    receiver_running= server_running=
}
clean_up() {
    local code=$?
    trap '' INT TERM
    trap - EXIT
    stop_all
    [[ ! -s $place/ssh/pid ]] || kill "$(<"$place/ssh/pid")" 2>/dev/null || true
    ((code == 0 || code == 130)) || tail -n 15 "$place"/*.log >&2 || true
    rm -rf "$place"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# --- ssh -----------------------------------------------------------------------------------------
# A daemon of our own on a free port, with keys that exist only here.
start_sshd() {
    command -v rsync >/dev/null && [[ -x /usr/sbin/sshd ]] || return 1
    ssh_port=$(free_port)
    as_server mkdir -m 700 ssh
    as_server ssh-keygen -q -t ed25519 -N '' -f ssh/host
    as_server ssh-keygen -q -t ed25519 -N '' -f ssh/user
    as_server cp ssh/user.pub ssh/authorized_keys
    as_server tee ssh/config >/dev/null <<CONF
ListenAddress 127.0.0.1:$ssh_port
HostKey $place/ssh/host
AuthorizedKeysFile $place/ssh/authorized_keys
PidFile $place/ssh/pid
UsePAM no
StrictModes no
CONF
    ((EUID != 0)) || mkdir -p /run/sshd
    # It goes into the background by itself, and must not keep a pipe open that somebody reads to its end.
    as_server /usr/sbin/sshd -E "$place/sshd.log" -f ssh/config >/dev/null 2>&1 </dev/null
    for ((tries = 0; tries < 50; tries++)); do
        as_server timeout 5 "${ssh[@]}" -p "$ssh_port" 127.0.0.1 true 2>/dev/null </dev/null && return
        sleep 0.1
    done
    return 1
}
ssh=(ssh -q -i "$place/ssh/user" -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null
    -o ConnectTimeout=10)
has_ssh=
start_sshd && has_ssh=1 || echo 'SKIP: no sshd that answers here, so no rsync over ssh'

# --- clusters ------------------------------------------------------------------------------------
sql() { as_server psql -XAtq -v ON_ERROR_STOP=1 -h "$place" -p "$server_port" -d postgres "$@"; }
# A unit of pgbench's scale is 15 MiB.
fill_large() { as_server pgbench -q -i -s $((mib / 15 + 1)) -h "$place" -p "$server_port" postgres >/dev/null 2>&1; }
fill_small() {
    # A commit each, but no sync.
    echo 'SET synchronous_commit = off;' >"$place/fill.sql"
    for ((table = 1; table <= tables; table++)); do
        echo "CREATE TABLE small_$table (id int PRIMARY KEY, note text);"
        echo "INSERT INTO small_$table SELECT n, repeat('row ' || n, 20) FROM generate_series(1, 200) n;"
    done >>"$place/fill.sql"
    sql -f "$place/fill.sql" >/dev/null
}
start_server() {
    server_running=1
    as_server pg_ctl -D "$place/pgdata" -l "$place/server.log" -w start >/dev/null || fail 'the server did not start'
}
make_cluster() {
    server_port=$(free_port)
    # Elsewhere, so that nobody copies more WAL than others.
    as_server initdb -D pgdata --waldir="$place/wal" -A trust -k -N --no-instructions >/dev/null
    as_server openssl req -x509 -newkey ed25519 -nodes -subj /CN=localhost -days 2 \
        -keyout pgdata/server.key -out pgdata/server.crt 2>/dev/null
    as_server tee -a pgdata/postgresql.conf >/dev/null <<CONF
port = $server_port
listen_addresses = '127.0.0.1'
unix_socket_directories = '$place'
ssl = on
max_wal_size = 4GB
autovacuum = off
shared_buffers = 256MB
CONF
    start_server
    "fill_$1"
    local port
    port=$(free_port)
    as_server ./walmgr -q standby.ini init >/dev/null
    as_server sed -i "s/^#*listen = .*/listen = 127.0.0.1:$port/" standby.ini
    as_server ./walmgr -q standby.ini setup
    receiver_running=1
    as_server ./walmgr --set "logfile=$place/receiver.log" standby.ini receiver -d 2>/dev/null
    as_server ./walmgr -q master.ini init --pgdata "$place/pgdata" --slave "127.0.0.1:$port" \
        --slave-fingerprint "$(as_server ./walmgr -q standby.ini identity)" >/dev/null
    as_server tee -a master.ini >/dev/null <<CONF
master_restart_cmd = $pg_bin/pg_ctl -D $place/pgdata -l $place/server.log -w restart
backup_jobs = 2
CONF
    as_server sed -i "s|^#*master_db = .*|master_db = host=$place port=$server_port dbname=postgres|" master.ini
    as_server ./walmgr -q standby.ini authorize "$(as_server ./walmgr -q master.ini identity)" bench
    as_server ./walmgr -q master.ini setup 2>>"$place/master.log" || fail 'setup'
    sql -c 'VACUUM ANALYZE' -c CHECKPOINT
}

# --- the contestants, each synced when it ends ---------------------------------------------------
tls_db() { echo "host=127.0.0.1 port=$server_port user=postgres sslmode=require"; }
run_floor() { cp -a pgdata copy && sync -f copy; }
run_basebackup() { pg_basebackup -d "$(tls_db)" -D copy -X none -c fast --no-password; }
run_basebackup_zstd() { pg_basebackup -d "$(tls_db)" -D copy -Ft --compress=client-zstd:1 -X none -c fast --no-password; }
# 24: a file vanished meanwhile, as files of a running server do.
run_rsync() { rsync -a -e "${ssh[*]} -p $ssh_port" pgdata/ 127.0.0.1:"$place/copy/" || (($? == 24)) && sync -f copy; }
run_walmgr() { ./walmgr -q master.ini backup --full; }
run_walmgr_zstd() { ./walmgr -q --set compression=1 master.ini backup --full; }
run_restore_floor() { cp -a walshipping/data.master copy && sync -f copy; }
run_restore() { ./walmgr -q standby.ini restore data.master "$place/copy"; }
run_restore_remote() { ./walmgr -q master.ini restore data.master "$place/copy"; }

# Small files are kept to the end: ext4 does not use an inode again for a minute after it was freed, and
# looks for another one bit by bit, so whoever creates files after a removal pays for it.
out_of_the_way() {
    as_server mkdir -p done
    for path; do
        [[ ! -e $place/$path ]] || as_server mv "$path" "done/$((++moved))"
    done
    [[ $case == small ]] || as_server rm -rf done
}
moved=0

# one LABEL COMMAND: its wall-clock time goes to the table.
one() {
    local began ended
    out_of_the_way copy
    sync -f "$place"
    began=$EPOCHREALTIME
    as_server timeout "$limit" bash -c "$functions; $2" >>"$place/contest.log" 2>&1 </dev/null || fail "$1"
    ended=$EPOCHREALTIME
    printf '%s\t%s\n' "$1" "$(awk -v a="$began" -v b="$ended" 'BEGIN { printf "%.3f", b - a }')" >>"$place/times"
}
export_functions() {
    declare -p place server_port ssh
    [[ -z $has_ssh ]] || declare -p ssh_port
    declare -f tls_db
    declare -f run_floor run_basebackup run_basebackup_zstd run_rsync run_walmgr run_walmgr_zstd run_restore_floor run_restore run_restore_remote
}
contest() {
    local round turn way ways=(floor basebackup basebackup_zstd walmgr walmgr_zstd)
    [[ -z $has_ssh ]] || ways+=(rsync)
    functions=$(export_functions)
    : >"$place/times"
    one warm_up run_floor
    for ((round = 0; round < rounds; round++)); do
        # Each round begins with another one.
        for ((turn = 0; turn < ${#ways[@]}; turn++)); do
            way=${ways[(turn + round) % ${#ways[@]}]}
            one "$way" "run_$way"
            [[ $way != walmgr* ]] || out_of_the_way walshipping/data.master.0
        done
    done
    for ((round = 0; round < rounds; round++)); do
        one restore_floor run_restore_floor
        one restore run_restore
        one restore_remote run_restore_remote
    done
    out_of_the_way copy
    as_server rm -rf done
}
report() {
    local files bytes peak
    files=$(find "$place/pgdata" -type f | wc -l)
    bytes=$(du -sb "$place/pgdata" | cut -f 1)
    peak=$(awk '/^VmHWM/ {print $2}' "/proc/$(head -n 1 "$place/standby.pid")/status")
    printf '\n%s: %d files, %d MiB\n' "$1" "$files" $((bytes >> 20))
    sort -t $'\t' -k 1,1 -k 2,2n "$place/times" | awk -F '\t' -v which="$1" -v peak_kib="$peak" '
        { s[$1, ++n[$1]] = $2 }
        function median(label) { return n[label] ? s[label, int((n[label] + 1) / 2)] : 0 }
        function row(text, label, floor) {
            if (!n[label]) return
            printf "%-44s %3d %10.2f %8.2f\n", text, n[label], median(label), median(label) / median(floor)
        }
        function beaten(by, label) {
            if (n[by] && n[label] && median(label) > median(by)) { print label " is slower than " by; slower = 1 }
        }
        END {
            printf "%-44s %3s %10s %8s\n", "", "n", "median s", "x floor"
            row("floor: cp -a, sync -f", "floor", "floor")
            row("pg_basebackup, TLS", "basebackup", "floor")
            row("pg_basebackup, TLS, tar and zstd", "basebackup_zstd", "floor")
            row("rsync -a over ssh, sync -f", "rsync", "floor")
            row("walmgr backup, TLS, two jobs", "walmgr", "floor")
            row("  with compression = 1", "walmgr_zstd", "floor")
            row("floor of a restore: cp -a, sync -f", "restore_floor", "restore_floor")
            row("walmgr restore SET DST, on the standby", "restore", "restore_floor")
            row("  on the master, over TLS", "restore_remote", "restore_floor")
            # Three connections: two streams and the one that directs them.
            bound = 32 + 4 * 3
            printf "%-44s %14.1f MiB, bound %d MiB\n", "receiver, peak", peak_kib / 1024, bound
            if (peak_kib > bound * 1024) { print "the receiver is above its bound"; slower = 1 }
            beaten("basebackup", "walmgr"); beaten("rsync", "walmgr")
            beaten("rsync", "walmgr_zstd")
            # Of many files tar makes one, which is no data directory yet.
            if (which == "large") beaten("basebackup_zstd", "walmgr_zstd")
            exit slower
        }'
}

code=0
for case in "${cases[@]}"; do
    echo "making the $case cluster"
    make_cluster "$case"
    echo "measuring: $rounds rounds on $(stat -f -c %T "$place")"
    contest
    report "$case" || code=1
    stop_all
    as_server bash -c 'rm -rf pgdata wal walshipping standby.* master.* authorized_keys'
done
exit "$code"
