//! `xpartialsync`: records of a segment in progress from standard input, with the receiver stopped.
//! Never looks at exit codes alone. Invariant: what is held is the master's WAL, and what was held once stays.

use std::fs::File;
use std::process::Command;

use walmgr_protocol::names::Lsn;

use super::*;
use crate::restore::Scene;
use crate::support::loopfs::TmpFs;
use crate::support::place::give_to_server;

/// The master's segment in progress up to what is flushed.
struct Written {
    name: String,
    bytes: Vec<u8>,
}

fn written(site: &Site) -> Written {
    let lsn = site.cluster().psql("SELECT pg_current_wal_flush_lsn()");
    let lsn: Lsn = lsn.parse().unwrap();
    let size = site.facts().cluster.segment_size.bytes();
    let name = site.segment_name(lsn.0 / size);
    let mut bytes = fs::read(site.data().join("pg_wal").join(&name)).unwrap();
    bytes.truncate(usize::try_from(lsn.0 % size).unwrap());
    Written { name, bytes }
}

fn shipping(site: &Site, name: &str, offset: usize, bytes: usize, content: &[u8]) -> Command {
    let path = site.home().join("stdin");
    fs::write(&path, content).unwrap();
    let (offset, bytes) = (offset.to_string(), bytes.to_string());
    let mut command = site.standby_walmgr(&["xpartialsync", name, &offset, &bytes]);
    command.stdin(File::open(&path).unwrap());
    command
}

fn ship(site: &Site, name: &str, offset: usize, content: &[u8]) -> Output {
    shipping(site, name, offset, content.len(), content)
        .output()
        .unwrap()
        .into()
}

#[track_caller]
fn assert_held(site: &Site, name: &str, bytes: &[u8]) {
    let held = fs::read(site.partial_wals().join(name)).unwrap();
    assert_eq!(held.len() as u64, site.facts().cluster.segment_size.bytes());
    assert!(
        held.starts_with(bytes),
        "{} bytes are not held",
        bytes.len()
    );
    assert!(held[bytes.len()..].iter().all(|byte| *byte == 0));
}

/// A master that archives nothing, in a segment that is in progress.
fn quiet() -> Site {
    let cluster = Cluster::builder().conf("autovacuum", "off").start();
    let mut site = Site::builder().cluster(cluster).build();
    site.receiver.stop();
    site.cluster().psql("CREATE TABLE t (n int)");
    site
}

fn write_more(site: &Site) {
    site.cluster()
        .psql("INSERT INTO t SELECT generate_series(1, 100)");
}

#[test]
fn fault_166_typed_records_are_held_and_the_stream_goes_on_behind_them() {
    skip_unless!(Cluster::available(15));
    let mut site = quiet();
    let first = written(&site);
    let name = first.name.as_str();
    let told = ship(&site, name, 0, &first.bytes);
    says(&told, 0, &["durable up to"]);
    assert_held(&site, name, &first.bytes);
    write_more(&site);
    let more = written(&site);
    assert_eq!(more.name, name);
    let at = first.bytes.len();
    ship(&site, name, at, &more.bytes[at..]).succeed();
    assert_held(&site, name, &more.bytes);
    // From 0 again, from the middle of what is held, and with padding behind.
    write_more(&site);
    let last = written(&site);
    says(&ship(&site, name, 0, &more.bytes), 0, &["was held"]);
    let padded = [&last.bytes[at..], &[0; 4096]].concat();
    ship(&site, name, at, &padded).succeed();
    assert_held(&site, name, &last.bytes);
    // The receiver and the stream take over.
    let running = ["stop the receiver"];
    site.start_receiver();
    says(&ship(&site, name, 0, &last.bytes), 1, &running);
    write_more(&site);
    site.master_command(&["sync"]).succeed();
    let now = written(&site);
    let held = fs::read(site.partial_wals().join(name)).unwrap();
    assert!(now.bytes.starts_with(&last.bytes) && held.starts_with(&last.bytes));
    site.cluster().switch_wal();
    site.archive(name).succeed();
    let archived = fs::read(site.data().join("pg_wal").join(name)).unwrap();
    assert_eq!(site.archived(name), archived);
    site.receiver.stop();
    says(&ship(&site, name, 0, &last.bytes), 1, &["archived"]);
    assert_eq!(site.archived(name), archived);
}

#[test]
fn fault_166_typed_bytes_that_do_not_fit_change_nothing() {
    skip_unless!(Cluster::available(15));
    let site = quiet();
    let first = written(&site);
    let (name, at) = (first.name.as_str(), first.bytes.len());
    ship(&site, name, 0, &first.bytes).succeed();
    write_more(&site);
    let more = written(&site).bytes;
    let size = usize::try_from(site.facts().cluster.segment_size.bytes()).unwrap();
    let refused = |output: &Output, code: i32, part: &str| {
        says(output, code, &[part]);
        assert_held(&site, name, &first.bytes);
    };
    refused(
        &ship(&site, name, at + 8, &more[at + 8..]),
        1,
        "is held up to byte",
    );
    let mut other = more.clone();
    other[at - 40] ^= 1;
    refused(
        &ship(&site, name, 0, &other),
        1,
        "differs from what is held",
    );
    let mut damaged = more.clone();
    damaged[at + 40] ^= 1;
    refused(&ship(&site, name, at, &damaged[at..]), 1, "end at byte");
    refused(
        &ship(&site, name, at, &more[at..more.len() - 9]),
        1,
        "end at byte",
    );
    refused(
        &ship(&site, name, 0, &vec![7; 8192]),
        1,
        "differs from what is held",
    );
    let short: Output = shipping(&site, name, at, more.len() - at, &more[at..more.len() - 8])
        .output()
        .unwrap()
        .into();
    refused(&short, 1, "standard input ended early");
    for (name_typed, offset, bytes) in [
        ("nonsense", "0", "8"),
        (name, "-1", "8"),
        (name, "0", "0"),
        (name, "0", "x"),
        (name, "0", &(size + 1).to_string()),
        (name, "18446744073709551615", "18446744073709551615"),
        ("0000000100000000FFFFFFFF", "0", "8"),
    ] {
        let output = site.standby_command(&["xpartialsync", name_typed, offset, bytes]);
        refused(&output, 2, "");
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    }
    // A timeline that nobody has heard of, and another cluster's WAL.
    let other_line = format!("00000009{}", &name[8..]);
    refused(&ship(&site, &other_line, 0, &more), 1, "");
    assert!(!site.partial_wals().join(&other_line).exists());
    let next = format!(
        "{}{:08X}",
        &name[..16],
        u32::from_str_radix(&name[16..], 16).unwrap() + 1
    );
    refused(&ship(&site, &next, 0, &more), 1, "");
    assert!(!site.partial_wals().join(&next).exists());
    ship(&site, name, at, &more[at..]).succeed();
    assert_held(&site, name, &more);
}

#[test]
fn fault_166_a_killed_xpartialsync_loses_nothing_that_was_held() {
    skip_unless!(Cluster::available(15));
    let strace = skip_unless!(Strace::available()).unprivileged();
    let site = quiet();
    let first = written(&site);
    let name = first.name.as_str();
    write_more(&site);
    let more = written(&site);
    let kept = site.partial_wals().join(name);
    for call in [
        "/p?write.*",
        "fsync",
        "fdatasync",
        "ftruncate",
        "fallocate",
        "flock",
    ] {
        for count in 1..CALLS_MAX {
            let _ = fs::remove_file(&kept);
            let _ = fs::remove_file(site.partial_wals().join(format!("{name}.acknowledged")));
            ship(&site, name, 0, &first.bytes).succeed();
            let injected = Strace::available().unwrap().unprivileged();
            let injected = injected.inject(&format!("{call}:signal=KILL:when={count}"));
            let command = shipping(&site, name, 0, more.bytes.len(), &more.bytes);
            let stdin = File::open(site.home().join("stdin")).unwrap();
            let killed = !injected
                .wrap(&command)
                .stdin(stdin)
                .output()
                .unwrap()
                .status
                .success();
            let held = fs::read(&kept).unwrap();
            assert!(held.starts_with(&first.bytes), "{call} {count}");
            ship(&site, name, 0, &more.bytes).succeed();
            assert_held(&site, name, &more.bytes);
            if !killed {
                break;
            }
        }
    }
    drop(strace);
}

#[test]
fn fault_166_on_a_full_disk_typed_records_wait() {
    skip_unless!(Cluster::available(15));
    let disk = skip_unless!(TmpFs::create(160 << 10, 1_000));
    let archive = disk.path().join("archive");
    fs::create_dir(&archive).unwrap();
    give_to_server(&archive);
    let cluster = Cluster::builder().conf("autovacuum", "off").start();
    let mut site = Site::builder().cluster(cluster).archive(&archive).build();
    site.receiver.stop();
    site.cluster().psql("CREATE TABLE t (n int)");
    let first = written(&site);
    let filler = disk.path().join("filler");
    let _ = fs::write(&filler, vec![1_u8; 200 << 20]);
    let refused = ship(&site, &first.name, 0, &first.bytes);
    says(&refused, 1, &["space"]);
    fs::remove_file(&filler).unwrap();
    ship(&site, &first.name, 0, &first.bytes).succeed();
    assert_held(&site, &first.name, &first.bytes);
}

#[test]
fn fault_166_a_booted_standby_takes_no_typed_records_of_its_past() {
    skip_unless!(Cluster::available(15));
    let mut scene = Scene::new(15);
    crate::support::backup_set::make_set(&scene.site, "data.master");
    scene.restore(&[]).succeed();
    let now = scene.content();
    scene.wait_until_standby_has(&now);
    scene.boot();
    scene.site.receiver.stop();
    scene.work("1");
    let at = written(&scene.site);
    says(&ship(&scene.site, &at.name, 0, &at.bytes), 1, &["frozen"]);
}
