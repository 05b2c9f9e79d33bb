//! Metrics and health over real sockets: what is served, to whom, and what is refused.
//! Never trusts the program for what it checks. Invariant: whatever comes to the listener, the receiver archives on.

mod health;
mod textfile;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::documents::page;
use crate::support::{Host, Site, free_port, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// What came back: the head, and what stood behind it.
pub(crate) struct HttpAnswer {
    pub(crate) head: String,
    pub(crate) content: String,
}

/// Sends these bytes, and reads to the end.
fn ask(address: SocketAddr, request: &[u8]) -> std::io::Result<HttpAnswer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(request)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, content) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Ok(HttpAnswer {
        head: head.to_owned(),
        content: content.to_owned(),
    })
}

pub(crate) fn get(address: SocketAddr, path: &str) -> HttpAnswer {
    let request = format!("GET {path} HTTP/1.1\r\nHost: walmgr\r\n\r\n");
    ask(address, request.as_bytes()).unwrap()
}

/// The value of a line that begins with these words; nothing if there is none.
fn value(page: &str, begins: &str) -> Option<f64> {
    let line = page.lines().find(|line| line.starts_with(begins))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

/// An address of loopback that is free.
pub(crate) fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn monitored() -> (Site, SocketAddr) {
    let address = free_address();
    let site = Site::builder()
        .standby_set("metrics_listen", &address.to_string())
        .build();
    (site, address)
}

#[test]
fn the_page_of_the_metrics_has_what_the_table_has() {
    let tables = walmgr::test_support::metrics::reference_tables();
    let text = page("docs/reference/metrics.md").text;
    for table in tables.split("\n\n## ") {
        assert!(
            text.contains(table.trim_end()),
            "docs/reference/metrics.md has to have:\n\n{tables}"
        );
    }
}

#[test]
fn a_receiver_counts_what_it_stores_and_says_it_in_both_formats() {
    let (site, address) = monitored();
    let segments: Vec<String> = (1..=3).map(|number| site.segment_name(number)).collect();
    for (number, name) in segments.iter().enumerate() {
        site.write_segment(number as u64 + 1);
        site.archive(name).succeed();
    }
    let segment_bytes = site.archived(&segments[0]).len() as f64;
    let plain = get(address, "/metrics");
    assert!(plain.head.starts_with("HTTP/1.1 200 OK"), "{}", plain.head);
    assert!(
        plain.head.contains("text/plain; version=0.0.4"),
        "{}",
        plain.head
    );
    let stored = value(&plain.content, "walmgr_archive_segments_total{");
    assert_eq!(stored, Some(3.0), "{}", plain.content);
    let raw = value(
        &plain.content,
        "walmgr_archive_bytes_total{cluster=\"standby\",kind=\"raw\"}",
    );
    assert_eq!(raw, Some(3.0 * segment_bytes), "{}", plain.content);
    let stored_bytes = std::fs::metadata(site.stored_path(&segments[0])).unwrap();
    assert!((stored_bytes.len() as f64) < segment_bytes / 2.0);
    for counted in [
        "archive_duration_seconds_count",
        "fsync_duration_seconds_count",
        "records_checked_total",
    ] {
        let counted = value(&plain.content, &format!("walmgr_{counted}"));
        assert!(counted >= Some(3.0), "{counted:?} in {}", plain.content);
    }
    let open = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n";
    let open = ask(address, open).unwrap();
    assert!(
        open.head.contains("application/openmetrics-text"),
        "{}",
        open.head
    );
    assert!(open.content.ends_with("# EOF\n"), "{}", open.content);
    // No name of a file, no path, no address.
    for page in [&plain.content, &open.content] {
        for forbidden in [&segments[0], "/tmp", "127.0.0.1"] {
            assert!(!page.contains(forbidden), "{forbidden} in {page}");
        }
    }
    wait_for("the first look", PATIENCE, || {
        let page = get(address, "/metrics").content;
        let finding = "walmgr_finding{cluster=\"standby\",code=\"no_backup\",level=\"warning\"}";
        value(&page, "walmgr_disk_free_bytes{")?;
        value(&page, finding).filter(|is_found| *is_found == 1.0)
    });
    let health = get(address, "/healthz");
    assert_eq!(
        (health.head.lines().next(), health.content.as_str()),
        (Some("HTTP/1.1 200 OK"), "ok\n")
    );
}

#[test]
fn the_page_has_wal_as_it_was_written_and_as_it_is_stored() {
    let address = free_address();
    let site = Site::builder()
        .standby_set("metrics_listen", &address.to_string())
        .standby_set("store_compression", "none")
        .build();
    let names: Vec<String> = (1..=3).map(|number| site.segment_name(number)).collect();
    for (number, name) in names.iter().enumerate() {
        site.write_segment(number as u64 + 1);
        site.archive(name).succeed();
    }
    let len = |path: &std::path::Path| std::fs::metadata(path).unwrap().len() as f64;
    let written: f64 = (names.iter())
        .map(|name| len(&site.data().join("pg_wal").join(name)))
        .sum();
    let stored = || -> f64 { names.iter().map(|name| len(&site.stored_path(name))).sum() };
    let told = |stored: f64| {
        wait_for("the look", PATIENCE, || {
            let page = get(address, "/metrics").content;
            let of = |what| value(&page, &format!("walmgr_archived_wal_{what}_bytes{{"));
            (["size", "stored"].map(of) == [Some(written), Some(stored)]).then_some(())
        });
    };
    told(written);
    site.standby_command(&["compress"]).succeed();
    let packed = stored();
    assert!(packed < written / 2.0, "{packed} of {written}");
    told(packed);
    let status = site.standby_command(&["status"]).stdout;
    assert!(status.contains("  wal        3 segments of "), "{status}");
    let status = site.standby_command(&["status", "--json"]).stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let standby = &status["standby"];
    assert_eq!(standby["wal_segments"], 3);
    assert_eq!(standby["wal_size_bytes"].as_f64(), Some(written));
    assert_eq!(standby["wal_stored_bytes"].as_f64(), Some(packed));
}

#[test]
fn fault_177_whatever_comes_to_the_listener_is_bounded_and_answered() {
    let (site, address) = monitored();
    let huge = format!(
        "GET /metrics HTTP/1.1\r\nA: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    for (request, status) in [
        (
            &b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"[..],
            "405",
        ),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", "404"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "400"),
        (huge.as_bytes(), "431"),
    ] {
        let answer = ask(address, request).unwrap();
        let begins = format!("HTTP/1.1 {status} ");
        assert!(
            answer.head.starts_with(&begins),
            "{request:?}: {}",
            answer.head
        );
    }
    let head = ask(address, b"HEAD /metrics HTTP/1.1\r\n\r\n").unwrap();
    assert!(head.head.starts_with("HTTP/1.1 200") && head.content.is_empty());
    // More that say nothing, or half of something, than there is room for.
    let mut silent: Vec<TcpStream> = Vec::new();
    for number in 0..40 {
        let mut stream = TcpStream::connect(address).unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /metrics HTT").unwrap();
        }
        silent.push(stream);
    }
    for _ in 0..5 {
        let answer = get(address, "/healthz");
        assert!(answer.head.starts_with("HTTP/1.1 200"), "{}", answer.head);
    }
    site.write_segment(1);
    site.archive(&site.segment_name(1)).succeed();
    let begun = Instant::now();
    for mut stream in silent {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        // Closed, politely or not.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    assert!(
        begun.elapsed() < Duration::from_secs(50),
        "somebody was not closed"
    );
}

#[test]
fn metrics_are_served_nowhere_unless_they_are_asked_for() {
    let site = Site::start();
    assert!(
        !site.receiver.log().contains("metrics"),
        "{}",
        site.receiver.log()
    );
}

#[test]
fn a_taken_port_ends_a_start_and_leaves_a_reload_as_it_was() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken_address = taken.local_addr().unwrap();
    let mut site = Site::builder()
        .standby_set("metrics_listen", &taken_address.to_string())
        .stopped()
        .build();
    let refused = site.receiver_walmgr().output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("listen for metrics on"), "{said}");
    assert!(said.contains("check `metrics_listen`"), "{said}");

    let first = free_address();
    site.standby_set("metrics_listen", &first.to_string());
    site.start_receiver();
    site.bind();
    let reload = |site: &mut Site, to: &str, log: &str| {
        site.standby_set("metrics_listen", to);
        site.receiver.signal(Signal::HUP);
        site.receiver.wait_for_log(log);
    };
    reload(
        &mut site,
        &taken_address.to_string(),
        "the metrics stay where they are served",
    );
    assert!(get(first, "/healthz").head.starts_with("HTTP/1.1 200"));
    // The same port on all addresses: the old listener has to go first.
    let everywhere = format!("0.0.0.0:{}", first.port());
    reload(
        &mut site,
        &everywhere,
        &format!("http://{everywhere}/metrics"),
    );
    assert!(get(first, "/healthz").head.starts_with("HTTP/1.1 200"));
    reload(&mut site, "", "settings and keys reloaded");
    wait_for("the listener's end", PATIENCE, || {
        TcpStream::connect(first).err()
    });
    site.write_segment(1);
    site.archive(&site.segment_name(1)).succeed();
}

#[test]
fn metrics_never_share_the_port_of_the_masters() {
    let mut site = Site::builder().stopped().build();
    let address = site.address().to_string();
    site.standby_set("metrics_listen", &address);
    let refused = site.standby_command(&["status"]);
    let said = refused.fail(2);
    assert!(said.contains("expected an address of its own"), "{said}");
}

#[test]
fn fault_178_status_writes_a_textfile_in_one_step() {
    let site = Site::start();
    let file = site.home().path().join("walmgr.prom");
    let path = file.to_str().unwrap();
    site.standby_command(&["status", "--metrics", path]);
    let page = std::fs::read_to_string(&file).unwrap();
    assert!(value(&page, "walmgr_backups{") == Some(0.0), "{page}");
    assert!(
        value(&page, "walmgr_refresh_timestamp_seconds{").is_some(),
        "{page}"
    );
    assert!(!page.contains("EOF"), "{page}");
    let ini = site.standby_ini().to_str().unwrap().to_owned();
    let before = std::fs::read(&ini).unwrap();
    site.standby_command(&["status", "--metrics", &ini]).fail(2);
    assert_eq!(std::fs::read(&ini).unwrap(), before);
    let link = site.home().path().join("link.prom");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for foreign in [link.as_path(), site.home().path()] {
        let foreign = foreign.to_str().unwrap();
        site.standby_command(&["status", "--metrics", foreign])
            .fail(2);
    }
    assert!(link.is_symlink());
}

#[test]
fn fault_232_a_hosted_cluster_has_one_label_on_both_pages() {
    let _user = skip_unless!(crate::support::place::server_user());
    let address = free_address();
    let mut host = Host::builder()
        .set("metrics_listen", &address.to_string())
        .build();
    host.start();
    let site = host.add("db1", Site::builder().standby_set("job_name", "sales"));
    let file = site.home().join("walmgr.prom");
    let labels = |page: &str| {
        let labels = page.split("cluster=\"").skip(1);
        let labels: std::collections::BTreeSet<String> = labels
            .map(|rest| rest.split('"').next().unwrap().to_owned())
            .collect();
        labels
    };
    let write = || {
        let _ = std::fs::remove_file(&file);
        site.standby_command(&["status", "--metrics", file.to_str().unwrap()]);
        labels(&std::fs::read_to_string(&file).unwrap())
    };
    wait_for("the look", PATIENCE, || {
        let page = get(address, "/metrics").content;
        let backups = page.contains("walmgr_backups{");
        backups.then(|| assert_eq!(labels(&page), ["db1".to_owned()].into()))
    });
    assert_eq!(write(), ["db1".to_owned()].into());
    // Also while nobody serves it, and what `init` writes is called so by itself.
    host.receiver.stop();
    assert_eq!(write(), ["db1".to_owned()].into());
    let fresh = host.cluster_ini("db2");
    let mut init = crate::support::place::walmgr();
    crate::support::Output::of(init.arg(&fresh).arg("init")).succeed();
    let fresh = std::fs::read_to_string(&fresh).unwrap();
    assert!(!fresh.contains("\njob_name"), "{fresh}");
}
