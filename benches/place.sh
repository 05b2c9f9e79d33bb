# What the bench scripts have in common: a folder of their own on a disk, a throw-away server in it,
# a receiver, the introduction of both sides. To be sourced from the root of the repository.
# Never leaves anything behind. As root everything runs as the user postgres.
# shellcheck shell=bash

# The script may end inside a redirection.
exec 9>&2
fail() { printf 'FAILED: %s\n' "$*" >&9; exit 1; }

binary=${WALMGR_BENCH_BINARY:-target/release/walmgr}
[[ -n ${WALMGR_BENCH_BINARY:-} ]] || cargo build --release --locked --quiet
pg_bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
[[ -n $pg_bin ]] || pg_bin=$(dirname "$(command -v postgres)") || fail 'PostgreSQL is not installed'

place=$(mktemp -d "${WALMGR_BENCH_DIR:-/var/tmp}/walmgr-bench.XXXXXX")
trap 'rm -rf "$place"' EXIT
# What a standby has on its disk; scripts in which that may be another one set it before they introduce.
standby_place=$place
file_system=$(stat -f -c %T "$place")
[[ $file_system != tmpfs ]] || fail "$place is in memory; set WALMGR_BENCH_DIR to a folder on a disk"
install -m 755 "$binary" "$place/walmgr"
pgdata=$place/pgdata
if ((EUID == 0)); then
    chown postgres: "$place"
    as_server() { (cd "$place" && exec runuser -u postgres -- env HOME="$place" PATH="$pg_bin:$PATH" "$@"); }
else
    as_server() { (cd "$place" && exec env HOME="$place" PATH="$pg_bin:$PATH" "$@"); }
fi

# begin_as_server COMMAND...: begins it and sets begun_pid, which is its own and not that of who runs it.
begin_as_server() {
    rm -f "$place/begun.pid"
    as_server bash -c 'echo $$ >begun.new; mv begun.new begun.pid; exec "$@"' - "$@" &
    local tries
    for ((tries = 0; ; tries++)); do
        [[ ! -s $place/begun.pid ]] || break
        ((tries < 500)) || fail "it did not begin: $*"
        sleep 0.02
    done
    begun_pid=$(cat "$place/begun.pid")
}
# end_begun: ends what was begun, if it was.
begun_pid=
end_begun() {
    [[ -n $begun_pid ]] || return 0
    local tries
    kill "$begun_pid" 2>/dev/null || true
    for ((tries = 0; tries < 500; tries++)); do
        kill -0 "$begun_pid" 2>/dev/null || break
        sleep 0.02
    done
    kill -KILL "$begun_pid" 2>/dev/null || true
    begun_pid=
}

server_running= receiver_running=
# start_server [OPTION...]: the cluster in $pgdata, which listens to a socket in $place only.
start_server() {
    server_running=1
    as_server pg_ctl -D "$pgdata" -l "$place/server.log" -w start >/dev/null \
        -o "-c listen_addresses='' -c unix_socket_directories=$place $*" || fail 'the server did not start'
}
stop_server() {
    as_server pg_ctl -D "$pgdata" -m immediate -w stop >/dev/null
    server_running=
}
# start_receiver [OPTION...]
start_receiver() {
    receiver_running=1
    as_server ./walmgr "$@" standby.ini receiver -d 2>>"$place/receiver.log" || fail 'the receiver did not start'
}
stop_receiver() {
    as_server ./walmgr -q standby.ini receiver -s
    receiver_running=
}
# before_clean_up is for what a script started itself.
before_clean_up() { :; }
# after_clean_up is for what was there before the place.
after_clean_up() { :; }
clean_up() {
    local code=$?
    trap '' INT TERM
    trap - EXIT
    before_clean_up
    [[ -z $server_running ]] || stop_server || true
    [[ -z $receiver_running ]] || stop_receiver || true
    ((code == 0 || code == 130)) || tail -n 15 "$place"/*.log >&9 || true
    rm -rf "$place"
    after_clean_up
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

free_port() {
    local port
    while port=$((20000 + RANDOM % 20000)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}

# introduce: writes both ini files, starts the receiver and acquaints the sides; the server must run.
introduce() {
    receiver_port=$(free_port)
    as_server ./walmgr -q standby.ini init >/dev/null
    as_server sed -i "s/^#*listen = .*/listen = 127.0.0.1:$receiver_port/; s|^walmgr_data = .*|walmgr_data = $standby_place/walshipping|" standby.ini
    [[ -z ${STORE:-} ]] || echo "store_compression = $STORE" | as_server tee -a standby.ini >/dev/null
    as_server ./walmgr -q standby.ini setup
    start_receiver
    as_server ./walmgr -q master.ini init --pgdata "$pgdata" --slave "127.0.0.1:$receiver_port" \
        --slave-fingerprint "$(as_server ./walmgr -q standby.ini identity)" >/dev/null
    as_server sed -i "s|^#*master_db = .*|master_db = host=$place dbname=postgres|" master.ini
    as_server ./walmgr -q standby.ini authorize "$(as_server ./walmgr -q master.ini identity)" bench
    archive=$standby_place/walshipping/logs.complete
}

# write_wal_until CONDITION...: pgbench, for seconds until the condition holds.
write_wal_until() {
    until "$@"; do
        # Or there are no page images, and few bytes a second.
        as_server psql -XqAtc CHECKPOINT -h "$place" postgres
        as_server pgbench -n -c 4 -j 2 -T 1 -h "$place" postgres >/dev/null 2>&1 || fail 'pgbench'
    done
}

# begin_master_with_wal COUNT: a cluster that runs, with at least so many segments of pgbench that are marked as archived.
begin_master_with_wal() {
    as_server initdb -D "$pgdata" -A trust -N --no-instructions >/dev/null
    as_server tee -a "$pgdata/postgresql.conf" >/dev/null <<CONF
fsync = off
wal_keep_size = 16GB
max_wal_size = 16GB
archive_mode = on
archive_command = 'true'
CONF
    start_server
    as_server pgbench -q -i -s 10 -h "$place" postgres >/dev/null 2>&1 || fail 'pgbench -i'
    wanted_done=$1
    write_wal_until has_wanted_done
}
segments_done() { find "$pgdata/pg_wal/archive_status" -name '*.done' -printf '%f\n' | sort; }
has_wanted_done() { (($(segments_done | wc -l) >= wanted_done)); }

# wait_until_none FOLDER SUFFIX: looks every 10 ms until no file there ends so. Without a process of its own: three for each look
# took a quarter of the two processors from what was measured.
wait_until_none() {
    local found pause
    exec {pause}<> <(:)
    # Without any the pattern stands for itself. Whether the first one is still there says nothing of the others.
    while found=("$1"/*"$2") && [[ ${found[0]} != "$1/*$2" ]]; do read -rt 0.01 -u "$pause" || true; done
    exec {pause}>&-
}
