#!/bin/sh
# Runs every fuzz target, or those named, for SECONDS each:  fuzz/run.sh [SECONDS [TARGET...]]
# With `--soak` the five that read most of what a peer sends run for an hour each, others for 60 s.
# With `--store [COLLECTED]` nothing is searched for: seeds/ becomes the smallest set of inputs that
# reaches what seeds/, corpus/ and the seeds of what collect.sh collected reach together.
# Says `SKIP: reason` and succeeds where fuzzing cannot be built; fails when a target crashes,
# and says how to run the crash again. Inputs worth keeping gather in corpus/NAME/.
set -u
cd "$(dirname "$0")" || exit 1

store=
collected=
soak=
case ${1:-} in
--store)
    store=1
    if [ $# -gt 1 ]; then
        collected=$(cd "$2" && pwd) || exit 2
        shift
    fi
    shift
    seconds=1
    ;;
--soak) soak=1 seconds=60; shift ;;
*)
    seconds=${1:-10}
    [ $# -gt 0 ] && shift
    ;;
esac
case $seconds in
'' | *[!0-9]* | 0) sed -n '2,5s/^# //p' run.sh >&2; exit 2 ;;
esac
soaked='tar_stream frame partial_session backup_session message'

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
# from build scripts. `--cfg fuzzing` leaves out the checksums that a fuzzer cannot guess.
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
binaries=target/$host/release
# Seeds that code makes cost nothing to make again; those of servers are in seeds/ already.
rm -rf target/made
"$binaries/write_seeds" target/made ${collected:+"$collected"} 2>target/seeds.log || {
    cat target/seeds.log
    exit 1
}

[ $# -gt 0 ] || set -- $(cd src/bin && grep -l '^//! Parser: ' -- *.rs | sed 's/\.rs$//')
for target in "$@"; do
    if [ ! -x "$binaries/$target" ]; then
        echo "there is no fuzz target $target" >&2
        exit 2
    fi
done

# options TARGET: sets what every run of a target is given, and where its inputs lie.
options() {
    mkdir -p "corpus/$1" "artifacts/$1"
    # A slow input (10 s) or a hungry one (1 GiB) is a crash as well.
    given="-timeout=10 -rss_limit_mb=1024 -artifact_prefix=artifacts/$1/"
    [ ! -f "dictionaries/$1.dict" ] || given="$given -dict=dictionaries/$1.dict"
    inputs=
    for folder in "seeds/$1" "target/made/$1"; do
        [ ! -d "$folder" ] || inputs="$inputs $folder"
    done
}

if [ -n "$store" ]; then
    for target in "$@"; do
        options "$target"
        # Edges alone decide, not how often they are passed: that keeps a tenth of the inputs.
        rm -rf "target/stored/$target"
        mkdir -p "target/stored/$target"
        "$binaries/$target" -merge=1 -use_counters=0 -max_len=16384 $given \
            "target/stored/$target" $inputs "corpus/$target" >"artifacts/$target/log" 2>&1 || exit 1
        rm -rf "seeds/$target"
        mkdir -p seeds
        mv "target/stored/$target" "seeds/$target"
        # The longest go where a target has more than 96 KiB, so that all have less than 1 MiB.
        bytes=0
        for input in $(ls -rS "seeds/$target"); do
            bytes=$((bytes + $(wc -c <"seeds/$target/$input")))
            [ "$bytes" -le 98304 ] || rm "seeds/$target/$input"
        done
        # What servers wrote stays whole beside its parts, if it is small.
        find "target/made/$target" -type f -name 'pg*' -size -16 -exec cp {} "seeds/$target/" \; 2>/dev/null
        echo "$target: $(ls "seeds/$target" | wc -l) inputs," \
            "$(cat "seeds/$target"/* | wc -c) bytes"
    done
    exit 0
fi

# run_target NAME: for its seconds; says how it went.
run_target() {
    options "$1"
    case " $soaked " in
    *" $1 "*) [ -z "$soak" ] || seconds=3600 ;;
    esac
    log=artifacts/$1/log
    # First every stored input once, however few the seconds are.
    {
        [ ! -d "seeds/$1" ] || "$binaries/$1" -runs=0 $given "seeds/$1"
    } >"$log" 2>&1 && {
        "$binaries/$1" -max_total_time="$seconds" -max_len=65536 $given \
            "corpus/$1" $inputs >>"$log" 2>&1 &
        program_pid=$!
        trap 'kill "$program_pid" 2>/dev/null; exit 130' TERM
        wait "$program_pid"
    } && {
        echo "$1: $(grep '^Done' "$log" | tail -n 1), no crash"
        return 0
    }
    input=$(sed -n 's/.*Test unit written to //p' "$log" | head -n 1)
    echo "$1: CRASHED
$(grep -E 'panicked at|SUMMARY|ERROR: libFuzzer' -A1 "$log" | head -n 12)
again: fuzz/$binaries/$1 fuzz/${input:-seeds/$1}"
    return 1
}

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
# The long ones first, so that none of them runs alone at the end.
if [ -n "$soak" ]; then
    long= short=
    for target in "$@"; do
        case " $soaked " in
        *" $target "*) long="$long $target" ;;
        *) short="$short $target" ;;
        esac
    done
    set -- $long $short
fi
for target in "$@"; do
    run_target "$target" &
    running="$running $!"
    [ "$(echo "$running" | wc -w)" -lt "$at_once" ] || wait_for_running
done
wait_for_running
exit $failed
