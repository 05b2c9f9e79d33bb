//! What is handed to `xarchive`: other kinds of files, things that are no files, files that
//! change, files of other clusters. Never needs a server.
//! Invariant: what is refused leaves the archive as it was.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use walmgr::test_support::master::push::{self, Blocks};
use walmgr::test_support::transport::connect::ReceiverTarget;
use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::message::{ErrorCode, Offer, WireVerify};
use walmgr_protocol::names::TimelineId;
use walmgr_protocol::session::push::PushOutcome;

use crate::support::imitation::segment_of;
use crate::support::place::{give_to_server, server_user};
use crate::support::{Output, Site, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(10);

fn assert_nothing_stored(site: &Site) {
    assert_eq!(site.archived_names(), Vec::<String>::new());
    wait_for("the temporary's end", PATIENCE, || {
        site.temporaries().is_empty().then_some(())
    });
}

#[test]
fn fault_7_history_and_backup_files_are_stored_once_like_segments() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let segment = site.segment_name(8);
    let history = "1\t0/700000\tno recovery target specified\n";
    let label = format!(
        "START WAL LOCATION: 0/800028 (file {segment})\nSTOP WAL LOCATION: 0/800100 (file \
         {segment})\nCHECKPOINT LOCATION: 0/800060\nBACKUP METHOD: streamed\nLABEL: x\n"
    );
    let files = [
        (
            "00000002.history".to_owned(),
            history.as_bytes().to_vec(),
            history
                .replace("no recovery target", "before x")
                .into_bytes(),
        ),
        (
            format!("{segment}.00000028.backup"),
            label.clone().into_bytes(),
            label.replace("LABEL: x", "LABEL: y").into_bytes(),
        ),
    ];
    for (name, content, other) in &files {
        site.write_wal(name, content);
        site.archive(name).succeed();
        site.archive(name).succeed();
        assert_eq!(&site.archived(name), content);
        site.write_wal(name, other);
        site.archive(name).fail(3);
        assert_eq!(&site.archived(name), content);
    }
    // Each, and the other one beside it.
    assert_eq!(site.archived_names().len(), 2 * files.len());
}

#[test]
fn fault_184_of_different_partial_files_all_are_kept() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let name = format!("{}.partial", site.segment_name(8));
    let mut first = site.segment(8, "partial");
    first[600_000..].fill(0);
    let mut second = first.clone();
    second[600_000..].fill(1);
    for content in [&first, &first, &second, &second] {
        site.write_wal(&name, content);
        site.archive(&name).succeed();
        assert_eq!(&site.archived(&name), content);
    }
    assert_eq!(site.archived(&format!("{name}.displaced")), first);
    assert_eq!(site.archived_names().len(), 2);
}

#[test]
fn fault_7_a_small_file_that_is_large_is_refused() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let length = usize::try_from(SMALL_FILE_BYTES_MAX).unwrap() + 1;
    for name in [
        "00000002.history",
        "000000010000000000000008.00000028.backup",
    ] {
        site.write_wal(name, vec![b'#'; length]);
        let refused = site.archive(name);
        let line = refused.fail(1);
        assert!(line.contains(&length.to_string()), "{line}");
        assert!(line.contains("; "), "no hint: {line}");
    }
    assert_nothing_stored(&site);
}

#[test]
fn fault_7_a_small_file_that_is_not_what_its_name_says_is_refused() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let wrong = [
        ("00000002.history", "5\t0/700000\tlater than itself\n"),
        ("00000003.history", "\0\0\0\0"),
        ("000000010000000000000008.00000028.backup", "nonsense\n"),
        (
            "000000010000000000000008.00000028.backup",
            "START WAL LOCATION: 0/900028 (file 000000010000000000000009)\n",
        ),
    ];
    for (name, content) in wrong {
        site.write_wal(name, content);
        let refused = site.archive(name);
        assert!(matches!(refused.code, Some(1 | 5)), "{name}: {refused:?}");
        assert!(refused.stderr.contains(name), "{refused:?}");
    }
    assert_nothing_stored(&site);
}

#[test]
fn fault_8_what_is_no_wal_file_is_refused_at_once() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let name = site.segment_name(1);
    let whole = site.write_segment(1);
    let folder = site.home().create_dir("wrong");
    let at = |name: &str| folder.join(name);
    fs::create_dir(at("directory")).unwrap();
    run(std::process::Command::new("mkfifo").arg(at("fifo"))).unwrap();
    std::os::unix::fs::symlink(&whole, at("symlink")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    let content = site.segment(1, "walmgr");
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("short"), &content[..content.len() - 1]).unwrap();
    fs::write(at("long"), [&content[..], b"x"].concat()).unwrap();
    fs::write(at("unreadable"), &content).unwrap();
    give_to_server(&folder);
    fs::set_permissions(at("unreadable"), PermissionsExt::from_mode(0o000)).unwrap();
    for (what, code) in [
        ("missing", 1),
        ("directory", 2),
        ("fifo", 2),
        ("symlink", 2),
        ("dangling", 2),
        ("empty", 1),
        ("short", 1),
        ("long", 1),
        ("unreadable", 1),
    ] {
        let refused = site.xarchive(at(what), &name);
        let line = refused.fail(code);
        assert!(line.contains(&at(what).display().to_string()), "{line}");
        assert!(line.contains("; "), "no hint for {what}: {line}");
    }
    for name in [
        "x",
        "../000000010000000000000001",
        "",
        "0000000100000000000000G1",
    ] {
        let refused = site.xarchive(&whole, name);
        refused.fail(2);
    }
    assert_nothing_stored(&site);
}

/// Bytes that this process has read, whatever from.
fn bytes_read(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[test]
fn fault_9_a_file_that_changes_after_it_was_offered_is_not_stored() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().proxied().build();
    let name = site.segment_name(4);
    let path = site.write_segment(4);
    let size = fs::metadata(&path).unwrap().len();
    let original = fs::read(&path).unwrap();
    // A file that has just been written is read twice, since a change may not show in its times.
    for is_settled in [true, false] {
        site.proxy().stall();
        fs::write(&path, &original).unwrap();
        if is_settled {
            std::thread::sleep(Duration::from_millis(100));
        }
        let client = begun(&mut site.xarchive_walmgr(&path, &name));
        // It is opened and looked at before the greeting, which waits here.
        wait_for("the greeting", PATIENCE, || {
            (has_open(client.id(), "socket:") && has_open(client.id(), &name)).then_some(())
        });
        std::thread::sleep(Duration::from_millis(50));
        if !is_settled {
            // At most that long does the checksum take; the busier the machine, the more often is this the first case again.
            let deadline = Instant::now() + Duration::from_secs(1);
            while bytes_read(client.id()) < size && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        fs::write(&path, site.segment(4, "recycled")).unwrap();
        site.proxy().resume();
        let ended = Output::from(client.wait_with_output().unwrap());
        let line = ended.fail(1);
        assert!(line.contains("changed while it was read"), "{line}");
        assert_nothing_stored(&site);
    }
    site.archive(&name).succeed();
}

/// A command that goes on beside the test.
fn begun(command: &mut Command) -> Child {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

/// Whether this process has a file open whose name or kind has this in it.
fn has_open(pid: u32, part: &str) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    open.flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|leads_to| leads_to.to_string_lossy().contains(part))
}

#[test]
fn fault_9_a_file_that_is_recycled_while_it_is_sent_is_not_stored() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().segment_size_mb(64).proxied().build();
    let name = site.segment_name(4);
    let path = site.write_segment(4);
    let client = begun(&mut site.xarchive_walmgr(&path, &name));
    wait_for("a piece of the file", PATIENCE, || {
        let sent = site.proxy().recordings().pop()?.to_server.len();
        (sent > 1 << 20).then_some(())
    });
    site.proxy().stall();
    // PostgreSQL renames a recycled segment and then overwrites it from its beginning.
    let next = path.with_file_name(site.segment_name(5));
    fs::rename(&path, &next).unwrap();
    let recycled = site.segment(5, "recycled");
    let file = fs::File::options().write(true).open(&next).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &recycled, 0).unwrap();
    site.proxy().resume();
    let ended = Output::from(client.wait_with_output().unwrap());
    ended.fail(1);
    assert_nothing_stored(&site);
}

/// How a file stops being what was offered, with the length that it had and its time of change put back.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    InPlace,
    CutAndRegrown,
    ReplacedByRename,
}

/// Writes `content` where `original` is. Whoever has the file open sees it change, but for a rename.
fn change(path: &Path, content: &[u8], how: Change) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let target = match how {
        Change::ReplacedByRename => path.with_extension("new"),
        Change::InPlace | Change::CutAndRegrown => path.to_owned(),
    };
    let mut options = fs::File::options();
    options.write(true).create(true);
    options.truncate(how != Change::InPlace);
    let mut file = options.open(&target).unwrap();
    std::io::Write::write_all(&mut file, content).unwrap();
    file.set_modified(modified).unwrap();
    fs::rename(&target, path).unwrap();
}

#[test]
fn fault_9_no_mixture_is_stored_of_a_file_whose_time_was_put_back() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().segment_size_mb(64).proxied().build();
    let ways = [
        Change::InPlace,
        Change::CutAndRegrown,
        Change::ReplacedByRename,
    ];
    for (number, how) in (4..).zip(ways) {
        let name = site.segment_name(number);
        let path = site.write_segment(number);
        let (first, second) = (fs::read(&path).unwrap(), site.segment(number, "recycled"));
        // Long enough for a change to show.
        std::thread::sleep(Duration::from_millis(100));
        let before = site.proxy().recordings().len();
        // Through the proxy it travels raw, so that no socket holds all of it; records are not checked, so that none betrays a mixture.
        let mut command = site.xarchive_walmgr(&path, &name);
        let client = begun(command.args(["--set", "verify_wal=headers"]));
        wait_for("a piece of the file", PATIENCE, || {
            let recordings = site.proxy().recordings();
            let sent = recordings.get(before..)?.last()?.to_server.len();
            (sent > 1 << 20).then_some(())
        });
        site.proxy().stall();
        change(&path, &second, how);
        site.proxy().resume();
        let ended = Output::from(client.wait_with_output().unwrap());
        match ended.code {
            // All of it was read before.
            Some(0) => assert!(site.archived(&name) == first, "{how:?}: a mixture"),
            _ => {
                let line = ended.fail(1);
                assert!(line.contains("changed while it was read"), "{line}");
                assert!(!site.holds(&name), "{how:?}");
                site.archive(&name).succeed();
                assert!(site.archived(&name) == second, "{how:?}");
            }
        }
    }
}

/// The long page header (`src/include/access/xlog_internal.h`).
const HEADER_FIELDS: [(&str, usize, usize); 5] = [
    ("version", 0, 2),
    ("timeline", 4, 4),
    ("segment number", 8, 8),
    ("system identifier", 24, 8),
    ("segment size", 32, 4),
];

/// The segment with one field of its first header replaced.
fn crafted(site: &Site, field: &str, at: usize, length: usize) -> Vec<u8> {
    let mut segment = site.segment(4, "walmgr");
    let value: u64 = match field {
        "version" => 0xD10D,
        "timeline" => 2,
        "segment number" => 5 << 20,
        "system identifier" => 42,
        _ => 16 << 20,
    };
    segment[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
    segment
}

#[test]
fn fault_10_a_header_of_another_place_is_refused_by_the_client() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let name = site.segment_name(4);
    for (field, at, length) in HEADER_FIELDS {
        site.write_wal(&name, crafted(&site, field, at, length));
        let refused = site.archive(&name);
        let line = refused.fail(5);
        assert!(line.contains("nothing was sent"), "{field}: {line}");
    }
    assert_nothing_stored(&site);
    // It does not even need the receiver for that.
    site.receiver.stop();
    site.archive(&name).fail(5);
}

#[test]
fn fault_10_a_header_of_another_place_is_refused_by_the_receiver() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().plain().build();
    for (field, at, length) in HEADER_FIELDS {
        for verify in [WireVerify::Records, WireVerify::Headers, WireVerify::Off] {
            let path = site
                .home()
                .write("crafted", crafted(&site, field, at, length));
            let outcome = push_unchecked(&site, &path, &site.segment_name(4), verify);
            let PushOutcome::Refused(error) = outcome else {
                panic!("{field}: {outcome:?}");
            };
            assert_eq!(error.code, ErrorCode::ForeignFile, "{field}: {error:?}");
        }
    }
    assert_nothing_stored(&site);
}

/// A push without the client's own look at the file.
fn push_unchecked(site: &Site, path: &Path, name: &str, verify: WireVerify) -> PushOutcome {
    let (config, facts) = (site.master_config(), site.facts());
    let file = fs::File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let offer = Offer {
        name: name.parse().unwrap(),
        size,
        crc32: Some(push::digest(&file, size).unwrap()),
        verify,
    };
    let blocks = Blocks {
        block_bytes: config.block_size,
        compression: 0,
    };
    walmgr::test_support::master::runtime()
        .unwrap()
        .block_on(async {
            let target = ReceiverTarget::from_config(&config).unwrap();
            let connecting = target.connect(facts.cluster, facts.timeline);
            let mut connection = connecting.await.unwrap();
            push::push(&mut connection.wire, Arc::new(file), offer, blocks)
                .await
                .unwrap()
        })
}

#[test]
fn the_first_segment_after_a_promotion_may_begin_on_the_timeline_before() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().timeline(3).build();
    let facts = site.facts();
    let older = segment_of(&facts.cluster, TimelineId::new(2).unwrap(), 4, "walmgr");
    let name = site.segment_name(4);
    assert!(name.starts_with("00000003"));
    site.write_wal(&name, older);
    site.archive(&name).succeed();
}
