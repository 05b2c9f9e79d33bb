#!/usr/bin/env bash
# Runs a program as the Containerfile's image would: packaging/try-image.sh PROGRAM
# The root it gets has that program, its libraries and nothing else; the user is 999 and has no name. Where images can be built,
# `podman build` does the rest; this does not need it.
set -euo pipefail

program=$1
image=$(mktemp -d /var/tmp/walmgr-image.XXXXXX)
chmod 755 "$image"
cleanup() {
    # Its own number: what started it is a shell.
    [[ ! -s $image/etc/walmgr/standby.pid ]] || kill "$(head -n 1 "$image/etc/walmgr/standby.pid")" 2>/dev/null || true
    rm -rf --one-file-system "$image"
}
trap cleanup EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# What gcr.io/distroless/cc-debian12 has of glibc and gcc.
known='^(linux-vdso\.so\.1|libc\.so\.6|libm\.so\.6|libgcc_s\.so\.1|/lib64/ld-linux-x86-64\.so\.2)$'
others=$(ldd "$program" | awk '{ print $1 }' | grep -Ev "$known" || true)
[[ -z $others ]] || fail "the image lacks libraries of $program: $others"
((EUID == 0)) || {
    echo 'SKIP: running it in a root of its own takes root'
    exit 0
}
mkdir -p "$image/usr/bin" "$image/dev" "$image/proc"
install -d -o 999 -g 999 -m 0700 "$image/etc/walmgr" "$image/var/lib/postgresql"
cp "$program" "$image/usr/bin/walmgr"
ldd "$program" | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }' | while read -r library; do
    install -D "$library" "$image$library"
done
# In a network of its own, so that its port is free; /dev and /proc as an engine gives them.
inside() {
    # shellcheck disable=SC2016
    unshare --mount --net --propagation private sh -ec '
        image=$1; shift
        ip link set lo up
        mount -t proc proc "$image/proc"
        for device in null urandom; do touch "$image/dev/$device"; mount --bind "/dev/$device" "$image/dev/$device"; done
        exec env -i HOME=/var/lib/postgresql "$(command -v chroot)" --userspec=999:999 --groups= "$image" /usr/bin/walmgr "$@"
    ' sh "$image" "$@"
}
inside --version
inside /etc/walmgr/standby.ini init --listen 0.0.0.0:7432
inside /etc/walmgr/standby.ini setup
# The CMD of the image.
inside /etc/walmgr/standby.ini receiver 2>"$image/log" &
started=$!
for ((tries = 0; tries < 600; tries++)); do
    grep -q 'listens on 0.0.0.0:7432' "$image/log" && break
    sleep 0.1
done
grep -q 'listens on 0.0.0.0:7432' "$image/log" || fail "the receiver did not start: $(cat "$image/log")"
inside /etc/walmgr/standby.ini status >"$image/status" || true
grep -q 'bound to no cluster yet' "$image/status" || fail "status: $(cat "$image/status")"
[[ -z $(find "$image/etc/walmgr" "$image/var/lib/postgresql" ! -uid 999) ]] || fail 'files belong to somebody else'
# An engine stops it with SIGTERM.
kill -TERM "$(head -n 1 "$image/etc/walmgr/standby.pid")"
wait "$started" || fail "the receiver ended with $?: $(cat "$image/log")"
echo 'runs as user 999 with nothing beside it'
