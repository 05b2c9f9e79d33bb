#!/usr/bin/env bash
# The guide on two clean hosts, as a new user types it: sourced by tests/in-debian.sh, with the package and `steps`, a line for
# each command of the page: its host, a tab, what is typed. A line with SHA256:… is pasted from what was printed before.
set -euo pipefail

# In place of systemd, which does not run here: what enables a unit starts what its ExecStart says, as its User.
if [[ ${WALMGR_TRY_SYSTEMD:-} ]]; then
    mkdir -p "$host1/run/systemd/system"
    cat >"$host1/usr/local/bin/systemctl" <<'SYSTEMCTL'
#!/bin/sh
echo "systemctl $*" >>/root/asked
case "$*" in
    'enable --now walmgr-receiver@standby.service')
        unit=$(sed 's/%i/standby/' /usr/lib/systemd/system/walmgr-receiver@.service)
        user=$(echo "$unit" | sed -n 's/^User=//p')
        exec sudo -u "$user" $(echo "$unit" | sed -n 's/^ExecStart=//p') -d
        ;;
esac
SYSTEMCTL
    chmod +x "$host1/usr/local/bin/systemctl"
fi

printed=$scratch/printed
touch "$printed"
on 2 pg_ctlcluster 15 main start

run() {
    local host=$1 line=$2 begin=$EPOCHREALTIME
    if [[ $line == *…* ]]; then
        local pattern=${line//SHA256:…/SHA256:[A-Za-z0-9+\/]*}
        pattern=${pattern//standby.example.com/[^ ]*}
        line=$(sed 's/^ *//' "$printed" | grep -x -- "$pattern" | tail -n 1) || {
            echo "FAILED: nothing that was printed is: $line" >&2
            exit 1
        }
    fi
    echo "host$host$ $line"
    on "$host" sh -ec "$line" 2>&1 | tee -a "$printed"
    awk -v host="host$host" -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "--- %s: %.1f s\n", host, b - a }'
}

while IFS=$'\t' read -r host line <&3; do
    run "$host" "$line"
done 3<"$host1/root/steps"

on 1 sh -ec 'ls /var/lib/postgresql/walshipping/logs.complete | grep -x "[0-9A-F]\{24\}\.zst"'
told=$(on 2 sudo -u postgres psql -AtXc 'SELECT archived_count > 0 AND failed_count = 0 FROM pg_stat_archiver')
[[ $told == t ]] || {
    echo 'FAILED: PostgreSQL counts a failed archive_command, or none that worked' >&2
    exit 1
}

# All of it belongs to PostgreSQL's user, whoever typed it; typed again it changes nothing and starts nothing.
on 1 sh -ec '[ -z "$(find /etc/walmgr /var/lib/postgresql/walshipping ! -user postgres)" ]'
before=$(on 1 head -n 1 /etc/walmgr/standby.pid)
again=$(on 1 walmgr /etc/walmgr/standby.ini init --start)
[[ $again == *'The receiver runs already.'* && $(on 1 head -n 1 /etc/walmgr/standby.pid) == "$before" ]] || {
    echo "FAILED: a second --start: $again" >&2
    exit 1
}
if [[ ${WALMGR_TRY_SYSTEMD:-} ]]; then
    [[ $(on 1 grep -c '^systemctl enable --now walmgr-receiver@standby.service$' asked) == 1 ]]
    # Who may not start a unit is told the line to type.
    on 1 sudo -u postgres walmgr /etc/walmgr/standby.ini receiver --stop
    again=$(on 1 sudo -u postgres walmgr /etc/walmgr/standby.ini init --start)
    [[ $again == *'    sudo systemctl enable --now walmgr-receiver@standby.service'* ]]
    on 1 systemctl enable --now walmgr-receiver@standby.service
fi
on 1 sudo -u postgres walmgr /etc/walmgr/standby.ini receiver --stop
echo 'a segment is proven'
