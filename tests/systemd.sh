#!/usr/bin/env bash
# The units of the package under a systemd of their own, both sides on one host: sourced by tests/in-debian.sh, with the package.
# Nothing here reaches the machine's own systemd, if it has one. Ends with 77 and a SKIP line where systemd cannot run.
set -euo pipefail

skip() {
    echo "SKIP: $*"
    exit 77
}

[[ -x $host1/lib/systemd/systemd ]] || skip 'the Debian that is tried has no systemd'
# Of a machine with the first version of control groups; with the second a namespace of its own suffices.
tree=/sys/fs/cgroup/systemd/walmgr-test.$$
if [[ -d /sys/fs/cgroup/systemd ]]; then
    mkdir "$tree" 2>/dev/null || skip 'no control group can be made'
    leave() {
        kill -KILL "$started" 2>/dev/null || true
        wait "$started" 2>/dev/null || true
        for ((tries = 0; tries < 100; tries++)); do
            find "$tree" -depth -type d -exec rmdir {} + 2>/dev/null && return
            sleep 0.1
        done
    }
    trap leave EXIT
elif [[ ! -e /sys/fs/cgroup/cgroup.controllers ]]; then
    skip 'no control groups here'
fi
# That of the processes that this script sees.
mount -t proc proc /proc

# As an engine of containers makes a root: its own devices and processes, and no way back to the machine.
# shellcheck disable=SC2016
unshare --mount --pid --uts --ipc --cgroup --fork --kill-child --propagation private bash -ec '
    root=$1 tree=$2
    umount -l "$root/dev" "$root/proc"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero full random urandom tty; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/shm" "$root/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    if [[ -d $tree ]]; then
        mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
        mkdir "$root/sys/fs/cgroup/systemd"
        mount --bind "$tree" "$root/sys/fs/cgroup/systemd"
    else
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    fi
    cd "$root"
    pivot_root . mnt
    exec env -i container=walmgr PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . \
        sh -c "umount -l /mnt && exec /lib/systemd/systemd --system --log-target=journal"
' sh "$host1" "$tree" </dev/null >"$scratch/systemd" 2>&1 &
started=$!

there() {
    timeout -k 5 120 nsenter --target "$init" --mount --pid --uts --ipc --root --wd env -i HOME=/root LC_ALL=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c "cd /root && $1"
}

check() {
    echo "# $1"
    there "$1" || {
        echo "FAILED: $1" >&2
        there 'journalctl --no-pager -n 60; systemctl --no-pager status "walmgr-*"' >&2 || true
        exit 1
    }
}

state=
for ((tries = 0; tries < 600; tries++)); do
    kill -0 "$started" 2>/dev/null || break
    read -r init _ <"/proc/$started/task/$started/children" || true
    # Before its root is that of the host, this asks nobody.
    [[ ! $init ]] || state=$(there 'systemctl is-system-running' 2>/dev/null) || true
    [[ $state != running && $state != degraded ]] || break
    sleep 0.1
done
[[ $state == running || $state == degraded ]] || skip "systemd does not run here ($state): $(tail -n 1 "$scratch/systemd")"
there 'systemctl --failed --no-legend --no-pager' >"$scratch/failed"

standby='sudo -u postgres walmgr /etc/walmgr/standby.ini'
master='sudo -u postgres walmgr /etc/walmgr/master.ini'
# The scripts of the package say what they do to PostgreSQL, and nothing else.
check 'dpkg -i walmgr_*.deb >said 2>&1; cat said; ! grep -i "syntax\|usage\|error" said'
check 'systemctl start postgresql@15-main'
check 'walmgr /etc/walmgr/standby.ini init --start >printed'
check 'systemctl is-enabled walmgr-receiver@standby && systemctl is-active walmgr-receiver@standby'
check "line=\$(grep -o 'SHA256:.*' printed); $master init --slave 127.0.0.1:7432 --slave-fingerprint \$line >printed"
check 'line=$(grep "standby.ini authorize" printed); sh -ec "$line"'
# PostgreSQL's own user is told who may restart it, and what to type.
check "$master setup --restart >printed; cat printed"
check 'line=$(grep "^ *sudo walmgr /etc/walmgr/master.ini setup --restart" printed); sh -ec "$line" >printed; cat printed'
check '[ "$(systemctl is-active postgresql@15-main)" = active ] && [ "$(systemctl show -P NRestarts postgresql@15-main)" = 0 ]'
check '[ -z "$(find /etc/walmgr /var/lib/postgresql ! -user postgres)" ]'
# What setup prints is what enables the syncdaemon.
check 'line=$(grep "systemctl enable --now walmgr-syncdaemon@master" printed); sh -ec "$line"'
check 'systemctl is-active walmgr-syncdaemon@master'
# Each job once, as its timer starts it; `start` waits for its end.
check 'systemctl start walmgr-backup@master'
check "$standby listbackups | grep data.master"
check 'systemctl start walmgr-verify@standby'
check 'systemctl start walmgr-drill@standby'
check 'systemctl enable --now walmgr-backup@master.timer walmgr-verify@standby.timer walmgr-drill@standby.timer'
check '[ "$(systemctl list-timers --no-legend --no-pager "walmgr-*" | wc -l)" = 3 ]'

pid='systemctl show -P MainPID walmgr-receiver@standby'
check 'systemctl reload walmgr-receiver@standby walmgr-syncdaemon@master'
check 'for try in $(seq 100); do journalctl --no-pager -u walmgr-receiver@standby | grep -q "settings and keys reloaded" && exit; sleep 0.1; done; exit 1'
# Killed, and replaced by an upgrade: systemd starts it again, and segments go on arriving.
check "before=\$($pid); kill -KILL \$before
    for try in \$(seq 100); do [ \"\$($pid)\" != \$before ] && systemctl is-active walmgr-receiver@standby && exit; sleep 0.1; done; exit 1"
check "before=\$($pid); dpkg -i walmgr_*.deb >/dev/null 2>said; ! grep -i 'syntax\|usage\|error' said
    [ \"\$($pid)\" != \$before ] && systemctl is-active walmgr-receiver@standby walmgr-syncdaemon@master"
check 'sudo -u postgres psql -AtXc "SELECT pg_create_restore_point(chr(97)), pg_switch_wal()" >/dev/null'
check "for try in \$(seq 100); do $master status && exit; sleep 0.1; done; exit 1"
there 'systemctl --failed --no-legend --no-pager' | diff "$scratch/failed" - || {
    echo 'FAILED: these units failed' >&2
    exit 1
}
check 'dpkg -r walmgr >said 2>&1; cat said; ! grep -i "syntax\|usage\|error" said
    [ -z "$(systemctl list-units --no-legend --no-pager --state=active "walmgr-*@*" | grep -v slice)" ]'
check 'systemctl stop postgresql@15-main'
echo 'the units work'
