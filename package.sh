#!/usr/bin/env bash
# Makes the Debian package, and checks it as far as this machine can.
#
#   ./package.sh                  builds a release, makes target/debian/walmgr_VERSION_amd64.deb and its -dbgsym, checks both
#   ./package.sh --profile dev    the same with what cargo has in target/debug: what ./test.sh calls, seconds
#   ./package.sh --only-deb       makes the package and checks nothing
#   ./package.sh --rpm            also makes the rpm (cargo-generate-rpm)
#
# The package is installed, configured, started from and purged in a Debian of its own: tests/fetch-debian.sh makes it with
# debootstrap, once. A check whose tool cannot be had says SKIP and why. Stops at the first check that fails.
set -euo pipefail
cd "$(dirname "$0")"

profile=release
only_deb=0
with_rpm=0
while (($#)); do
    case $1 in
        --profile)
            profile=${2:?--profile takes a name}
            shift
            ;;
        --only-deb) only_deb=1 ;;
        --rpm) with_rpm=1 ;;
        *)
            sed -n '2,10s/^# \{0,1\}//p' "$0"
            [[ $1 == --help || $1 == -h ]] && exit 0
            exit 2
            ;;
    esac
    shift
done

export PATH="$PATH:$HOME/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin"
folder=$profile
[[ $profile != dev ]] || folder=debug
program=target/$folder/walmgr
made=target/package
maintainer=$(sed -n 's/^maintainer = "\(.*\)"$/\1/p' Cargo.toml)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

step() {
    local current=$1 begun=$SECONDS
    shift
    printf '\n=== %s\n' "$current"
    "$@"
    echo "--- $current: $((SECONDS - begun)) s"
}

install_cargo_deb() {
    cargo deb --version 2>/dev/null && return
    echo 'building cargo-deb (at most 600 s)'
    timeout 600 cargo install --locked --quiet --debug cargo-deb ||
        {
            echo 'SKIP: cargo-deb could not be built within 600 s'
            exit 0
        }
}

generate() {
    rm -rf "$made"
    local kind
    for kind in man bash zsh fish examples; do
        "$program" --generate "$kind" "$made/$kind" >/dev/null
    done
    python3 packaging/copyright.py >"$made/copyright"
    python3 packaging/changelog.py "$maintainer" >"$made/changelog"
    ls "$made"
}

make_deb() {
    rm -f target/debian/walmgr*.deb target/debian/walmgr*.ddeb
    # Compressing what a debug build says of itself takes a minute, and nobody installs it.
    local symbols=(--dbgsym)
    [[ $profile == release ]] || symbols=(--no-dbgsym --fast)
    cargo deb --no-build --locked --quiet --profile "$profile" "${symbols[@]}" --output target/debian/
    deb=$(echo target/debian/walmgr_*_amd64.deb)
    [[ -f $deb ]] || fail "cargo deb made no package: $deb"
    ls -l target/debian
}

# dpkg takes 4.0.0~alpha.1 for older than 4.0.0, and 4.0.0-alpha.1 for newer.
check_version() {
    local version release
    version=$(dpkg-deb -f "$deb" Version)
    release=$(sed -n 's/^version = "\([0-9.]*\).*"$/\1/p' Cargo.toml | head -n 1)
    echo "$version"
    dpkg --validate-version "$version"
    [[ $("$program" --version) == "walmgr $release"* ]] || fail "$program is another version"
    case $(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1) in
        *-*) dpkg --compare-versions "$version" lt "$release" || fail "$version sorts behind $release" ;;
    esac
    dpkg --compare-versions "$version" gt "${release%.*.*}.0.0~~" || fail "$version sorts too low"
}

# Every command's page, and nothing that is not meant: packaging/contents has the rest.
check_contents() {
    local expected=$scratch/expected found=$scratch/found
    {
        cat packaging/contents
        basename -a "$made"/man/*.1 | sed 's|^|/usr/share/man/man1/|; s|$|.gz|'
    } | sort >"$expected"
    dpkg-deb -c "$deb" | awk '$1 !~ /^d/ { sub(/^\.\/?/, "/", $6); print $6 }' | sort >"$found"
    diff -u "$expected" "$found" || fail 'the package holds other files than packaging/contents says'
    dpkg-deb -c "$deb" | awk '$2 !~ /^(root\/root|0\/0)$/ || $1 ~ /^-.{4}w|^-.{7}w/ { print; bad = 1 } END { exit bad }' ||
        fail 'these files have another owner than root, or others may write them'
    dpkg-deb -x "$deb" "$scratch/root"
    if readelf -S "$scratch/root/usr/bin/walmgr" | grep -q '\.debug_info'; then
        fail 'the program is not stripped'
    fi
    ls -l "$scratch/root/usr/bin/walmgr"
    local ini
    for ini in "$scratch"/root/usr/share/doc/walmgr/examples/*.ini; do
        "$scratch/root/usr/bin/walmgr" -n "$ini" identity >/dev/null || fail "$ini does not load"
    done
}

# The debugger finds them by the number of the build, below the folder where it looks.
check_symbols() {
    [[ $profile == release ]] || { echo 'SKIP: only a release has its symbols packed'; return; }
    local build symbols
    build=$(readelf -n "$scratch/root/usr/bin/walmgr" | sed -n 's/ *Build ID: //p')
    dpkg-deb -x target/debian/walmgr-dbgsym_*.ddeb "$scratch/dbgsym"
    symbols=$scratch/dbgsym/usr/lib/debug/.build-id/${build:0:2}/${build:2}.debug
    [[ -n $build && -f $symbols ]] || fail "walmgr-dbgsym has no symbols of build $build: $(find "$scratch/dbgsym" -type f)"
    readelf -SW "$symbols" 2>/dev/null | grep -q '\.debug_info' || fail "$symbols has no .debug_info"
    ls -l "$symbols" | sed "s|$scratch/dbgsym||"
}

check_lintian() {
    command -v lintian >/dev/null || { echo 'SKIP: lintian is absent (apt-get install lintian)'; return; }
    # Lintian should not run as root, and then needs to read the package.
    lintian --allow-root --fail-on error,warning --display-info --tag-display-limit 0 "$deb"
}

check_manual() {
    local page
    for page in "$scratch"/root/usr/share/man/man[15]/*.gz; do
        if command -v man >/dev/null; then
            LC_ALL=C.UTF-8 man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>"$scratch/said" >/dev/null
            [[ ! -s $scratch/said ]] || fail "$page: $(cat "$scratch/said")"
        fi
        if command -v mandoc >/dev/null; then
            zcat "$page" | mandoc -T lint -W warning >"$scratch/said" || true
            [[ ! -s $scratch/said ]] || fail "$page: $(cat "$scratch/said")"
        fi
    done
    command -v man >/dev/null || echo 'SKIP: man is absent'
    command -v mandoc >/dev/null || echo 'SKIP: mandoc is absent'
}

check_units() {
    command -v systemd-analyze >/dev/null || { echo 'SKIP: systemd-analyze is absent'; return; }
    local unit said level
    for unit in "$scratch"/root/usr/lib/systemd/system/*.service; do
        level=$(systemd-analyze security --offline=yes --no-pager "$unit" | sed -n 's/.*exposure level.*: \([0-9.]*\) .*/\1/p')
        echo "${unit##*/}: $level"
        case $unit in
            *receiver@* | *syncdaemon@*) awk -v level="$level" 'BEGIN { exit !(level != "" && level <= 1.5) }' ||
                fail "$unit has the exposure level $level, which should be 1.5 at most" ;;
        esac
    done
    # What this root lacks is the rest of a system; every other word is about the units.
    for unit in "$scratch"/root/usr/lib/systemd/system/*; do
        unit=${unit##*/}
        said=$(systemd-analyze verify --man=no --root="$scratch/root" "${unit/@/@x}" 2>&1 |
            grep -v 'sysinit.target not found') || true
        [[ -z $said ]] || fail "$unit: $said"
    done
}

# rpm sorts 4.0.0~alpha.1 before 4.0.0 as dpkg does, and takes no dash.
check_rpm() {
    cargo generate-rpm --version >/dev/null 2>&1 ||
        { echo 'SKIP: cargo-generate-rpm is absent (cargo install --locked cargo-generate-rpm)'; return; }
    local version rpm
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
    version=${version/-/\~}
    rpm=$scratch/walmgr-$version-1.x86_64.rpm
    # It does not strip what it packs.
    strip --strip-unneeded -o "$made/walmgr" "$program"
    cargo generate-rpm --profile "$folder" --output "$rpm" --payload-compress gzip --set-metadata "version = \"$version\""
    cp "$rpm" target/debian/
    command -v rpm >/dev/null || { echo 'SKIP: rpm is absent, so the package was made and not read (apt-get install rpm)'; return; }
    rpm -qp --qf '%{NAME} %{VERSION}-%{RELEASE} %{ARCH} %{LICENSE}, %{SIZE} bytes installed\n' "$rpm"
    rpm -qp --requires "$rpm" | grep -v 'GLIBC_\|GCC_\|rpmlib'
    # The same files as the Debian package, each where Red Hat has its like.
    {
        grep -v '/usr/share/lintian\|changelog.Debian' packaging/contents
        basename -a "$made"/man/*.1 | sed 's|^|/usr/share/man/man1/|'
        echo /usr/share/licenses/walmgr/LICENSE
    } | sed 's|^/usr/share/doc/walmgr/copyright$|/usr/share/licenses/walmgr/copyright|; s|/vendor-completions/|/site-functions/|; s|\.gz$||' |
        sort >"$scratch/expected.rpm"
    rpm -qpl "$rpm" | sort >"$scratch/found.rpm"
    diff -u "$scratch/expected.rpm" "$scratch/found.rpm" || fail 'the rpm holds other files than the Debian package'
    echo "$(wc -l <"$scratch/found.rpm") files"
    (mkdir "$scratch/rpm" && cd "$scratch/rpm" && rpm2archive "$rpm" && tar xzf "$rpm.tgz") &&
        [[ $("$scratch/rpm/usr/bin/walmgr" --version) == "$("$program" --version)" ]] || fail 'the program in the rpm does not run'
    # The scripts run in another shell than ours.
    rpm -qp --scripts "$rpm" | sed '/scriptlet (using/d' | sh -n || fail 'a script of the rpm is no shell script'
}

step 'cargo-deb' install_cargo_deb
[[ $profile == dev && -x $program ]] || step 'Build' cargo build --locked --profile "$profile"
step 'Generate' generate
step 'Package' make_deb
((only_deb)) && exit 0
step 'Version' check_version
step 'Contents' check_contents
step 'Symbols' check_symbols
step 'Lintian' check_lintian
step 'Manual pages' check_manual
step 'Units' check_units
((with_rpm)) && step 'rpm' check_rpm
step 'Image' packaging/try-image.sh "$program"
step 'Installation' packaging/try.sh "$deb"
printf '\n%s is good.\n' "$deb"
