#!/bin/sh
# Runs every fuzz target, or those named, for SECONDS each:  fuzz/run.sh [SECONDS [TARGET...]]
# Says `SKIP: reason` and succeeds where fuzzing cannot be built; fails when a target crashes,
# and says how to run the crash again. Inputs worth keeping gather in corpus/NAME/.
set -u
cd "$(dirname "$0")" || exit 1

seconds=${1:-10}
[ $# -gt 0 ] && shift
case $seconds in
'' | *[!0-9]* | 0) echo "usage: fuzz/run.sh [SECONDS [TARGET...]]" >&2; exit 2 ;;
esac

skip() {
    echo "SKIP: $1"
    exit 0
}

command -v cargo >/dev/null || skip "there is no cargo"
command -v c++ >/dev/null || skip "there is no C++ compiler for libFuzzer"
host=$(rustc -vV | sed -n 's/^host: //p')
[ -n "$host" ] || skip "rustc does not say what it compiles for"

# What cargo-fuzz passes, less the address sanitizer, which needs a nightly compiler: the code
# under test is safe Rust, so a broken promise shows as a panic. --target keeps the flags away
# from build scripts.
sancov='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4'
sancov="$sancov -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
sancov="$sancov -Cllvm-args=-sanitizer-coverage-pc-table"
sancov="$sancov -Cllvm-args=-sanitizer-coverage-trace-compares"
build() {
    RUSTFLAGS="$sancov --cfg fuzzing" CARGO_TARGET_DIR=target \
        cargo build --quiet --release --target "$host" "$@"
}

mkdir -p corpus artifacts target
if ! build -p libfuzzer-sys 2>target/probe.log; then
    skip "libFuzzer cannot be built here: $(grep -m1 '^error' target/probe.log)"
fi
build --bins || exit 1

[ $# -gt 0 ] || set -- $(cd src/bin && ls -- *.rs | sed 's/\.rs$//')
# run_target NAME: for its seconds; says how it went.
run_target() {
    program=target/$host/release/$1
    mkdir -p "corpus/$1" "artifacts/$1"
    seeds=
    [ -d "seeds/$1" ] && seeds=seeds/$1
    log=artifacts/$1/log
    # A slow input (10 s) or a hungry one (1 GiB) is a crash as well.
    "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=65536 \
        -artifact_prefix="artifacts/$1/" "corpus/$1" $seeds >"$log" 2>&1 &
    program_pid=$!
    trap 'kill "$program_pid" 2>/dev/null; exit 130' TERM
    if wait "$program_pid"; then
        echo "$1: $(grep '^Done' "$log"), no crash"
        return 0
    fi
    input=$(sed -n 's/.*Test unit written to //p' "$log" | head -n 1)
    echo "$1: CRASHED
$(grep -E 'panicked at|SUMMARY|ERROR: libFuzzer' -A1 "$log" | head -n 12)
again: fuzz/$program fuzz/${input:-corpus/$1}"
    return 1
}

for target in "$@"; do
    if [ ! -x "target/$host/release/$target" ]; then
        echo "there is no fuzz target $target" >&2
        exit 2
    fi
done
# As many at once as there are processors; all of them take the same time.
failed=0
running=
# Whoever ends this script ends its targets.
stop() {
    trap '' INT TERM
    for pid in $running; do kill "$pid" 2>/dev/null; done
    wait
    exit 130
}
trap stop INT TERM
at_once=$(nproc 2>/dev/null || echo 1)
wait_for_running() {
    for pid in $running; do
        wait "$pid" || failed=1
    done
    running=
}
for target in "$@"; do
    run_target "$target" &
    running="$running $!"
    [ "$(echo "$running" | wc -w)" -lt "$at_once" ] || wait_for_running
done
wait_for_running
exit $failed
