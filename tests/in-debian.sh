#!/usr/bin/env bash
# Runs a script beside clean Debian hosts, which are gone afterwards with everything that they ran.
#
#   tests/in-debian.sh HOSTS SCRIPT [FILE...]    as root
#
# The script gets each host's directory in $host1, $host2 …; on HOST COMMAND... runs there, as root in /root, where the
# files lie. Hosts share a network of their own, in which only the loopback device is, and the names host1, host2.
# Ends with 77 and a SKIP line where such hosts cannot be had.
set -euo pipefail

if [[ ${1:-} != --inside ]]; then
    here=$(dirname "$(readlink -f "$0")")
    root=$("$here/fetch-debian.sh") || {
        echo "$root"
        exit 77
    }
    scratch=$(mktemp -d /var/tmp/walmgr-hosts.XXXXXX)
    trap 'rm -rf --one-file-system "$scratch"' EXIT
    unshare --net --mount --pid true 2>/dev/null || {
        echo 'SKIP: no namespaces here (unshare)'
        exit 77
    }
    # Whatever is started inside ends with the namespace of processes.
    code=0
    unshare --net --mount --pid --fork --kill-child --propagation private "$0" --inside "$root" "$scratch" "$@" || code=$?
    exit "$code"
fi

root=$2 scratch=$3 hosts=$4 script=$(readlink -f "$5")
shift 5
ip link set lo up

on() {
    local host=$1
    shift
    local directory="host$host"
    env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb LC_ALL=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive chroot "${!directory}" sh -c 'cd /root && exec "$@"' sh "$@"
}

for ((number = 1; number <= hosts; number++)); do
    merged=$scratch/$number/merged
    mkdir -p "$scratch/$number"/{upper,work,merged}
    mount -t overlay overlay -o "lowerdir=$root,upperdir=$scratch/$number/upper,workdir=$scratch/$number/work" "$merged" ||
        {
            echo 'SKIP: no overlay file system here'
            exit 77
        }
    mount -t proc proc "$merged/proc"
    mount --rbind /dev "$merged/dev"
    mount -t tmpfs tmpfs "$merged/dev/shm"
    printf '127.0.0.1 localhost host1 host2 %s\n' "$(uname -n)" >"$merged/etc/hosts"
    cp "$@" "$merged/root/"
    printf -v "host$number" %s "$merged"
done
# shellcheck disable=SC1090
source "$script"
