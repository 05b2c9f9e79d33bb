#!/usr/bin/env bash
# What a scrape takes, and what scraping takes from archiving.
#
#   benches/metrics.sh
#
#   CLUSTERS=10    how many clusters the receiver serves
#   SCRAPES=1000   how many scrapes are timed, one after the other
#   ARCHIVES=1000  how many segments are archived each way
#
# Scrape: the whole page in OpenMetrics, a connection each.
# Archiving: `xarchive` over TLS, whole process, while the page is scraped every 100 ms, and while it is not, in turns of
# four. Ends with 1 if a bound is broken: p99 of a scrape 5 ms; p99 of archiving while scraped 1.05 x without.
# Needs PostgreSQL's programs and perl. As root it runs all of it as the user postgres.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
clusters=${CLUSTERS:-10} scrapes=${SCRAPES:-1000} archives=${ARCHIVES:-1000}
(($# == 0)) || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }

source benches/place.sh
install -m 644 benches/stopwatch.pl benches/scrape.pl "$place"
# The scraper ends with the folder.
before_clean_up() {
    as_server ./walmgr -q host.ini receiver -s 2>/dev/null || true
}

# --- a host of many clusters, and a master of the first ------------------------------------------
as_server initdb -D "$pgdata" -A trust -N --no-instructions >/dev/null
start_server
receiver_port=$(free_port) metrics_port=$(free_port)
as_server ./walmgr -q host.ini init --host >/dev/null
as_server sed -i "s/^#*listen = .*/listen = 127.0.0.1:$receiver_port/" host.ini
as_server tee -a host.ini >/dev/null <<<"metrics_listen = 127.0.0.1:$metrics_port"
for ((number = 1; number <= clusters; number++)); do
    as_server ./walmgr -q "clusters.d/c$number.ini" init >/dev/null
    as_server ./walmgr -q "clusters.d/c$number.ini" setup
done
as_server ./walmgr -q master.ini init --pgdata "$pgdata" --slave "127.0.0.1:$receiver_port" \
    --slave-fingerprint "$(as_server ./walmgr -q host.ini identity)" >/dev/null
as_server sed -i "s|^#*master_db = .*|master_db = host=$place dbname=postgres|" master.ini
as_server ./walmgr -q clusters.d/c1.ini authorize "$(as_server ./walmgr -q master.ini identity)" bench
as_server ./walmgr host.ini receiver -d 2>>"$place/receiver.log" || fail 'the receiver did not start'
as_server ./walmgr -q master.ini setup --no-check 2>>"$place/commands.log" || fail 'setup'
as_server pgbench -q -i -s 5 -h "$place" postgres >/dev/null 2>&1 || fail 'pgbench -i'
stop_server
segment=$(find "$pgdata/pg_wal" -maxdepth 1 -type f -size 16M -printf '%f\n' | grep -E '^[0-9A-F]{24}$' | sort | sed -n 2p)
[[ -n $segment ]] || fail 'pgbench wrote no segment'
as_server ./walmgr -q master.ini xarchive "$pgdata/pg_wal/$segment" "$segment"
archived=$(find "$place" -path "*logs.complete/$segment*" | head -n 1)
[[ -n $archived ]] || fail "$segment is in no archive"
rm "$archived"

# --- scrapes -------------------------------------------------------------------------------------
# Every look has been had by then, so the page is as long as it gets.
sleep 20
echo "measuring: $scrapes scrapes of $clusters clusters, then archiving on $file_system"
as_server perl scrape.pl "$metrics_port" "$scrapes" >"$place/scrapes"

# --- archiving -----------------------------------------------------------------------------------
as_server perl scrape.pl "$metrics_port" "$place/scraping" 0.1 >"$place/beside" &
scraper=$!
archive() {
    printf '%s\t./walmgr -q master.ini xarchive %s %s\n' "$1" "$pgdata/pg_wal/$segment" "$segment"
    printf -- '-\trm %s\n' "$archived"
}
jobs() {
    local turn way
    for ((turn = 0; turn < archives / 4; turn++)); do
        # Each way is the first as often as it is the last.
        for way in $((turn % 2)) $(((turn + 1) % 2)); do
            if ((way)); then printf -- '-\ttouch %s\n' "$place/scraping"; fi
            for _ in 1 2 3 4; do archive "$(((way)) && echo scraped || echo alone)"; done
            if ((way)); then printf -- '-\trm %s\n' "$place/scraping"; fi
        done
    done
}
jobs | as_server perl stopwatch.pl >"$place/times"
[[ -s $place/beside ]] && kill -0 "$scraper" || fail 'nobody scraped'

# --- the report ----------------------------------------------------------------------------------
sort -t $'\t' -k 1,1 -k 2,2n "$place/scrapes" "$place/times" | awk -F '\t' '
    { ms[$1, ++n[$1]] = $2; if ($1 == "scrape" && $3 > bytes) bytes = $3 }
    function rank(label, part,   at) {
        at = int(n[label] * part + 0.999999)
        return ms[label, at < 1 ? 1 : at]
    }
    function row(text, label) {
        printf "%-44s %5d %10.2f %8.2f", text, n[label], rank(label, 0.5), rank(label, 0.99)
    }
    END {
        printf "\n%-44s %5s %10s %8s %8s\n", "", "n", "median ms", "p99 ms", "ratio"
        row("scrape, " int(bytes / 1024) " KiB", "scrape"); print ""
        row("xarchive", "alone"); print ""
        row("xarchive, scraped every 100 ms", "scraped")
        ratio = rank("scraped", 0.99) / rank("alone", 0.99)
        printf " %8.2f\n", ratio
        if (rank("scrape", 0.99) > 5) { print "a scrape is above 5 ms"; exceeded = 1 }
        if (ratio > 1.05) { print "archiving is above 1.05 x that without scrapes"; exceeded = 1 }
        exit exceeded
    }'
