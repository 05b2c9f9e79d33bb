#!/usr/bin/env bash
# Checks everything there is to check, exactly as CI does, and ends with a summary.
#
#   ./test.sh           everything
#   ./test.sh --quick   format, lints and tests, for the time between two commits
#   ./test.sh --soak    everything, with the full counts of the long tests (WALMGR_SOAK=1)
#
# Servers are PostgreSQL 15 and the newest; with --soak or ALL_VERSIONS=1 every version from 13 on.
# What the main flows took on each is printed with the tests.
# What is missing gets installed (Debian packages as root or with sudo; cargo-deny with cargo). A check
# whose tool cannot be had says SKIP and why. Stops at the first check that fails.
# Tests run under cargo-nextest if it is there, else under cargo test: building it takes too long.
set -euo pipefail
cd "$(dirname "$0")"

quick=0
fuzz_seconds=5
nextest_profile=default
for argument in "$@"; do
    case $argument in
        --quick) quick=1 ;;
        --soak) export WALMGR_SOAK=1 fuzz_seconds=--soak nextest_profile=soak ;;
        *)
            sed -n '2,12s/^# \{0,1\}//p' "$0"
            [[ $argument == --help || $argument == -h ]] && exit 0
            exit 2
            ;;
    esac
done

# mkfs, iptables and the like live where an ordinary user does not look.
export PATH="$PATH:$HOME/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin"
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}

summary=()
current=
current_begun=0
skipped=
begun=$SECONDS

# step HEADING COMMAND...: runs the command; its failure ends the script.
step() {
    current=$1
    current_begun=$SECONDS
    skipped=
    shift
    printf '\n=== %s\n' "$current"
    "$@"
    if [[ -z $skipped ]]; then finish ok; else finish SKIP; fi
}

# skip REASON: to be called by a step instead of working.
skip() {
    echo "SKIP: $1"
    skipped=$1
}

finish() {
    local seconds=$((SECONDS - current_begun))
    echo "--- $current: $1, $seconds s"
    summary+=("$(printf '%-6s %4s s   %s' "$1" "$seconds" "$current${skipped:+: $skipped}")")
    current=
}

print_summary() {
    local code=$?
    [[ -z $current ]] || finish FAILED
    printf '\n=== Summary\n'
    printf '%s\n' "${summary[@]}"
    if ((code == 0)); then
        echo "All checks passed in $((SECONDS - begun)) s."
    else
        echo "Stopped after $((SECONDS - begun)) s with code $code."
    fi
}
trap print_summary EXIT

as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

# Debian's server where Debian has it; otherwise the one it has.
postgres_package() {
    if apt-cache show postgresql-15 >/dev/null 2>&1; then echo postgresql-15; else echo postgresql; fi
}

install_packages() {
    local missing=() entry wanted
    wanted=(gcc:gcc strace:strace mkfs.xfs:xfsprogs mkfs.ext4:e2fsprogs iptables:iptables ip:iproute2
        ps:procps flock:util-linux)
    # Only the fuzz targets need C++, and only the other PostgreSQL versions are fetched.
    ((quick)) || wanted+=(c++:g++)
    ((quick)) || command -v npm >/dev/null || wanted+=(curl:curl)
    # They read the package and make the hosts that it is tried on.
    ((quick)) || wanted+=(lintian:lintian man:man-db mandoc:mandoc debootstrap:debootstrap)
    compgen -G '/usr/lib/postgresql/*/bin/pgbench' >/dev/null || missing+=(POSTGRESQL)
    # Debian only recommends it to the compiler.
    [[ -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)
    # The tools that docs/moving/ tells how to come from.
    ((quick)) || wanted+=(pgbackrest:pgbackrest barman:barman)
    for entry in "${wanted[@]}"; do
        command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
    done
    if ((${#missing[@]} == 0)); then
        echo 'nothing is missing'
        return
    fi
    if ! command -v apt-get >/dev/null; then
        skip "no apt-get here; please install: ${missing[*]}"
        return
    fi
    as_root apt-get update -q
    # Only a fresh list knows which server there is.
    [[ ${missing[0]} != POSTGRESQL ]] || missing[0]=$(postgres_package)
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        "${missing[@]}"
}

# install_tool NAME SECONDS [OPTION...]: builds a cargo tool if it is absent, but not for ever.
install_tool() {
    if cargo "${1#cargo-}" --version 2>/dev/null; then
        return
    fi
    echo "building $1 (at most $2 s)"
    timeout "$2" cargo install --locked --quiet "${@:3}" "$1" || skip "$1 could not be built within $2 s"
}

check_dependencies() {
    if ! cargo deny --version >/dev/null 2>&1; then
        skip 'cargo-deny is absent'
        return
    fi
    cargo fetch --locked --quiet --target x86_64-unknown-linux-gnu
    cargo deny --offline check --hide-inclusion-graph licenses bans sources
}

document() {
    RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --workspace --no-deps --document-private-items
}

# A part of the toolchain that rustup leaves out of its minimal profile.
with_component() {
    if ! cargo "$1" --version >/dev/null 2>&1; then
        skip "cargo $1 is absent; rustup component add ${1/fmt/rustfmt}"
        return
    fi
    cargo "$@"
}

# As many tests at once as under cargo-nextest, and as there a second run for each that failed.
run_cargo_test() {
    local log names
    log=$(mktemp)
    export RUST_TEST_THREADS=${RUST_TEST_THREADS:-4}
    echo 'cargo-nextest is absent: cargo test runs the tests (cargo install --locked cargo-nextest)'
    if cargo test --locked --workspace --lib --bins --tests --no-fail-fast 2>&1 | tee "$log"; then
        rm "$log"
        return
    fi
    mapfile -t names < <(sed -n 's/^test \([^ ]*\) .*\.\.\. FAILED$/\1/p' "$log" | sort -u)
    rm "$log"
    ((${#names[@]})) || return 1
    printf '\nOnce more: %s\n' "${names[*]}"
    cargo test --locked --workspace --lib --bins --tests --no-fail-fast -- --exact "${names[@]}" || return 1
    echo "FLAKY: ${names[*]}"
}

# Under cargo-nextest what a passed test says is not shown, so a test that skips leaves its line in a file too.
run_tests() {
    local code=0
    WALMGR_SKIPS=$(mktemp)
    export WALMGR_SKIPS
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --workspace --profile "$nextest_profile" || code=$?
    else
        run_cargo_test || code=$?
    fi
    sort -u "$WALMGR_SKIPS"
    ((code)) || [[ ! -s $WALMGR_SKIPS ]] || skipped="$(sort -u "$WALMGR_SKIPS" | wc -l) of the tests, or parts of them"
    rm "$WALMGR_SKIPS"
    return "$code"
}

if ! command -v cargo >/dev/null; then
    echo 'cargo is missing; see https://rustup.rs' >&2
    exit 1
fi

step 'Packages' install_packages
step 'Format' with_component fmt --all --check
step 'Lints' with_component clippy --locked --workspace --all-targets -- -D warnings
if ((quick)); then
    step 'Tests' run_tests
    exit 0
fi
step 'PostgreSQL servers' sh tests/fetch-postgres.sh
step 'Monitoring programs' sh tests/fetch-monitoring.sh
step 'Patroni' sh tests/fetch-patroni.sh
step 'Tests' run_tests
step 'Documentation tests' cargo test --locked --workspace --doc
step 'Documentation' document
# It looks at a few hundred lines: optimising it would take longer than running it.
step 'cargo-deny' install_tool cargo-deny 600 --debug
step 'Dependencies' check_dependencies
step 'Fuzzing' fuzz/run.sh "$fuzz_seconds"
# With the program that the tests had: building another would take minutes.
step 'Demonstration' env WALMGR_PROGRAM=target/debug/walmgr ./demo.sh
# The package of the program that the tests had; ./package.sh makes and checks that of a release.
step 'Package' ./package.sh --profile dev
