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
failed=0
for target in "$@"; do
    program=target/$host/release/$target
    if [ ! -x "$program" ]; then
        echo "there is no fuzz target $target" >&2
        exit 2
    fi
    mkdir -p "corpus/$target" "artifacts/$target"
    seeds=
    [ -d "seeds/$target" ] && seeds=seeds/$target
    log=artifacts/$target/log
    # A slow input (10 s) or a hungry one (1 GiB) is a crash as well.
    if "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=65536 \
        -artifact_prefix="artifacts/$target/" "corpus/$target" $seeds >"$log" 2>&1; then
        echo "$target: $(grep '^Done' "$log"), no crash"
    else
        failed=1
        echo "$target: CRASHED"
        grep -E 'panicked at|SUMMARY|ERROR: libFuzzer' -A1 "$log" | head -n 12
        input=$(sed -n 's/.*Test unit written to //p' "$log" | head -n 1)
        echo "again: fuzz/$program fuzz/${input:-corpus/$target}"
    fi
done
exit $failed
