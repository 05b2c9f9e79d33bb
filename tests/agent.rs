//! `xarchive` beside a syncdaemon: who pushes, what is said, and whom `xarchive` believes.
//! Never trusts an exit code alone: each test also looks at what the archive holds. Invariant tested: code and sentence
//! are those of an `xarchive` that is alone.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::disk::Ballast;
use crate::partial::daemon::Syncdaemon;
use crate::support::loopfs::{FileSystem, LoopFs};
use crate::support::place::{give_to_server, server_user};
use crate::support::{Cluster, Output, Site, StopMode, free_port, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// A user who is neither root nor the server's.
const NOBODY: u32 = 65_534;

/// A site with a syncdaemon that hears `xarchive`, and what monitoring sees of it.
struct Attended {
    site: Site,
    daemon: Syncdaemon,
    port: u16,
}

impl Attended {
    fn start(mut site: Site) -> Attended {
        let port = free_port();
        site.master_set("metrics_listen", &format!("127.0.0.1:{port}"));
        let daemon = Syncdaemon::start(&site);
        let attended = Attended { site, daemon, port };
        attended.wait_until_heard();
        attended
    }

    fn wait_until_heard(&self) {
        let socket = socket(&self.site);
        wait_for("the socket", PATIENCE, || {
            let found = fs::symlink_metadata(&socket).ok()?;
            (found.file_type().is_socket() && found.mode() & 0o777 == 0o600).then_some(())
        });
        wait_for("the metrics", PATIENCE, || {
            TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
    }

    /// What the syncdaemon has counted.
    fn counted(&self, metric: &str) -> u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        let name = format!("walmgr_agent_{metric}{{");
        let line = page.lines().find(|line| line.starts_with(&name));
        let line = line.unwrap_or_else(|| panic!("no {metric} in:\n{page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Asked, answered from what was shipped before, pushed, failed.
    fn counts(&self) -> [u64; 4] {
        [
            "asked_total",
            "answered_total",
            "pushed_total",
            "failures_total",
        ]
        .map(|metric| self.counted(metric))
    }

    /// Fails, through the syncdaemon and alone in the same words, which it hands out.
    #[track_caller]
    fn fails_as_alone(&mut self, code: i32, name: &str) -> String {
        let before = self.counted("failures_total");
        let through = self.site.archive(name).fail(code).to_owned();
        // What was asked while it stood still may count, too, and a moment later where time was up for both.
        wait_for("the failure to count", PATIENCE, || {
            (self.counted("failures_total") > before).then_some(())
        });
        self.daemon.signal(Signal::STOP);
        let alone = self.site.archive(name).fail(code).to_owned();
        self.daemon.signal(Signal::CONT);
        assert_eq!(through, alone);
        through
    }

    fn wait_until_held(&self, name: &str) {
        wait_for(name, PATIENCE, || self.site.holds(name).then_some(()));
    }
}

fn socket(site: &Site) -> PathBuf {
    let mut name = site.master_ini().with_extension("pid").into_os_string();
    name.push(".agent");
    name.into()
}

#[track_caller]
fn archive(site: &Site, number: u64) -> String {
    let name = site.segment_name(number);
    site.write_segment(number);
    site.archive(&name).succeed();
    assert_eq!(site.archived(&name), site.segment(number, "walmgr"));
    name
}

/// Somebody else's program that listens where a syncdaemon would, and says this to whoever comes.
struct Impostor(Child);

impl Impostor {
    fn start(path: &Path, user: u32, says: &str) -> Impostor {
        let script = "use IO::Socket::UNIX; umask 0; my ($path, $says) = @ARGV; \
            my $s = IO::Socket::UNIX->new(Local => $path, Listen => 16) or die $!; \
            while (my $c = $s->accept) { push @kept, $c; if ($says ne '') { \
            sysread $c, my $heard, 65536; syswrite $c, eval qq{\"$says\"}; } }";
        let child = Command::new("perl")
            .args(["-e", script])
            .arg(path)
            .arg(says)
            .stdin(Stdio::null())
            .uid(user)
            .gid(user)
            .spawn();
        let impostor = Impostor(child.unwrap());
        wait_for("the impostor", PATIENCE, || path.exists().then_some(()));
        impostor
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn fault_250_a_syncdaemon_that_is_killed_costs_no_file_and_no_code() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().proxied().build();
    let mut attended = Attended::start(site);
    archive(&attended.site, 2);
    assert_eq!(attended.counts(), [1, 0, 1, 0]);
    // Between two files, and while it pushes one.
    attended.daemon.signal(Signal::KILL);
    attended.daemon.wait();
    assert!(socket(&attended.site).exists(), "nobody removed it");
    archive(&attended.site, 3);
    for number in 4..8 {
        attended.daemon = Syncdaemon::start(&attended.site);
        attended.daemon.wait_for_log("ships to");
        attended.wait_until_heard();
        wait_for("its first answer", PATIENCE, || {
            let site = &attended.site;
            site.write_segment(3);
            site.archive(&site.segment_name(3)).succeed();
            (attended.counted("asked_total") > 0).then_some(())
        });
        let site = &attended.site;
        let name = site.segment_name(number);
        let path = site.write_segment(number);
        site.proxy().set_latency(Duration::from_millis(100));
        let client = (site.xarchive_walmgr(&path, &name))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let client = client.unwrap();
        std::thread::sleep(Duration::from_millis(60 * (number - 3)));
        attended.daemon.signal(Signal::KILL);
        let ended = Output::from(client.wait_with_output().unwrap());
        ended.succeed();
        attended.daemon.wait();
        let site = &attended.site;
        site.proxy().set_latency(Duration::ZERO);
        assert_eq!(site.archived(&name), site.segment(number, "walmgr"));
    }
}

#[test]
fn fault_251_a_syncdaemon_that_stands_still_is_not_waited_for() {
    let _user = skip_unless!(server_user());
    let mut attended = Attended::start(Site::start());
    archive(&attended.site, 2);
    attended.daemon.signal(Signal::STOP);
    let begun = Instant::now();
    for number in 3..6 {
        archive(&attended.site, number);
    }
    assert!(begun.elapsed() < PATIENCE);
    attended.daemon.signal(Signal::CONT);
    wait_for("its answer", PATIENCE, || {
        let before = attended.counted("pushed_total");
        archive(&attended.site, 6);
        (attended.counted("pushed_total") > before).then_some(())
    });
    attended.daemon.signal(Signal::TERM);
    assert_eq!(attended.daemon.wait(), Some(0));
    assert!(!socket(&attended.site).exists());
    archive(&attended.site, 7);
}

#[test]
fn fault_252_a_foreign_file_in_the_sockets_place_stays() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let socket = socket(&site);
    fs::write(&socket, b"mine").unwrap();
    give_to_server(&socket);
    archive(&site, 2);
    let daemon = Syncdaemon::start(&site);
    daemon.wait_for_log("something that is no socket lies there: xarchive pushes by itself");
    archive(&site, 3);
    assert_eq!(fs::read(&socket).unwrap(), b"mine");
}

#[test]
fn fault_253_nobody_else_is_believed_who_listens_there() {
    let user = skip_unless!(server_user());
    let Some((server, _)) = user else {
        skip!("only root can start a program of another user");
    };
    let mut site = Site::start();
    let folder = site.home().create_dir("run");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let pidfile = folder.join("master.pid");
    site.master_set("pidfile", &pidfile.display().to_string());
    let socket = folder.join("master.pid.agent");
    let garbage = "HTTP/1.1 200 OK\\r\\n\\r\\n";
    // The word for stored, with nothing behind it, and one of a later version.
    let (short, later) = (
        "wmag\\x01\\0\\x04\\0\\0\\0\\0\\0",
        "wmag\\x02\\0\\x04\\0\\0\\0\\0\\0",
    );
    // It is taken, and then nothing is said any more.
    let ends = "wmag\\x01\\0\\x03\\0\\x04\\0\\0\\0\\0\\0\\0\\0";
    let mut number = 2;
    for (user, says) in [
        (NOBODY, ""),
        (NOBODY, short),
        (server, ""),
        (server, garbage),
        (server, short),
        (server, later),
        (server, ends),
    ] {
        let _impostor = Impostor::start(&socket, user, says);
        let begun = Instant::now();
        archive(&site, number);
        assert!(begun.elapsed() < PATIENCE, "{says}");
        number += 1;
        fs::remove_file(&socket).unwrap();
    }
    // Of another user's socket the syncdaemon keeps away, too.
    let _impostor = Impostor::start(&socket, NOBODY, "");
    let daemon = Syncdaemon::start(&site);
    daemon.wait_for_log(&format!("user {NOBODY} has a socket there"));
    archive(&site, number);
    assert_eq!(fs::symlink_metadata(&socket).unwrap().uid(), NOBODY);
}

#[test]
fn fault_254_settings_that_the_syncdaemon_has_not_read_are_obeyed_at_once() {
    let _user = skip_unless!(server_user());
    let mut attended = Attended::start(Site::start());
    archive(&attended.site, 2);
    // The old receiver is still there, and has the syncdaemon's connection.
    let nobody = free_port();
    let slave = attended.site.address().to_string();
    attended
        .site
        .master_set("slave", &format!("127.0.0.1:{nobody}"));
    let name = attended.site.segment_name(3);
    attended.site.write_segment(3);
    let refused = attended.site.archive(&name);
    assert!(
        refused.fail(1).contains("Connection refused"),
        "{}",
        refused.stderr
    );
    assert!(!attended.site.holds(&name));
    assert_eq!(attended.counts(), [2, 0, 1, 0]);
    attended.site.master_set("slave", &slave);
    archive(&attended.site, 3);
    assert_eq!(attended.counts(), [3, 0, 2, 0]);
}

#[test]
fn fault_256_other_content_under_a_known_name_is_refused() {
    let _user = skip_unless!(server_user());
    let attended = Attended::start(Site::start());
    let name = archive(&attended.site, 2);
    let site = &attended.site;
    site.archive(&name).succeed();
    assert_eq!(attended.counts(), [2, 1, 1, 0]);
    // As a restored master has it: the same name, and another file.
    let other = site.segment(2, "another history");
    site.write_wal(&name, &other);
    let through = site.archive(&name).fail(3).to_owned();
    assert!(
        through.contains("already holds a different file"),
        "{through}"
    );
    assert_eq!(attended.counts(), [3, 1, 2, 1]);
    fs::remove_file(site.data().join("pg_wal").join(&name)).unwrap();
    site.write_wal(&name, &other);
    assert_eq!(site.archive(&name).fail(3), through);
    let Attended { site, daemon, .. } = attended;
    drop(daemon);
    assert_eq!(site.archive(&name).fail(3), through);
    assert_eq!(site.archived(&name), site.segment(2, "walmgr"));
}

#[test]
fn fault_259_a_failure_has_the_code_and_words_of_one_alone() {
    let _user = skip_unless!(server_user());
    let mut attended = Attended::start(Site::start());
    let name = archive(&attended.site, 2);
    // A damaged segment: sound at its beginning, and no records behind it.
    let damaged = attended.site.segment_name(3);
    let mut content = attended.site.segment(3, "walmgr");
    content[8_192 * 2..8_192 * 3].fill(0xA5);
    attended.site.write_wal(&damaged, &content);
    attended.fails_as_alone(1, &damaged);
    // The key is revoked.
    attended
        .site
        .standby_command(&["revoke", "master"])
        .succeed();
    attended.site.receiver.signal(Signal::HUP);
    attended
        .site
        .receiver
        .wait_for_log("settings and keys reloaded");
    let next = attended.site.segment_name(4);
    attended.site.write_segment(4);
    attended.fails_as_alone(4, &next);
    // The receiver is gone.
    attended.site.receiver.kill9();
    attended.fails_as_alone(1, &next);
    let key = attended.site.master_fingerprint();
    attended
        .site
        .standby_command(&["authorize", &key, "master"])
        .succeed();
    attended.site.start_receiver();
    archive(&attended.site, 4);
    assert!(attended.site.holds(&name));
}

#[test]
fn fault_263_a_full_disk_is_told_as_by_one_alone_and_then_taken_up() {
    let _user = skip_unless!(server_user());
    let disk = skip_unless!(LoopFs::create(FileSystem::Ext4, 32));
    let site = Site::builder()
        .archive(&disk.path().join("archive"))
        .standby_set("store_compression", "none")
        .build();
    let mut attended = Attended::start(site);
    archive(&attended.site, 2);
    let ballast = Ballast::fill(disk.path());
    let name = attended.site.segment_name(3);
    attended.site.write_segment(3);
    for _ in 0..2 {
        let line = attended.fails_as_alone(6, &name);
        assert!(line.contains("no space left"), "{line}");
    }
    assert!(!attended.site.holds(&name));
    ballast.remove();
    archive(&attended.site, 3);
    archive(&attended.site, 4);
}

#[test]
fn fault_266_a_receiver_that_falls_silent_is_waited_for_no_longer() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().master_set("push_timeout", "2s").build();
    let mut attended = Attended::start(site);
    archive(&attended.site, 2);
    for number in 3..5 {
        let name = attended.site.segment_name(number);
        attended.site.write_segment(number);
        attended.site.receiver.signal(Signal::STOP);
        let line = attended.fails_as_alone(1, &name);
        assert!(line.contains("push_timeout"), "{line}");
        attended.site.receiver.signal(Signal::CONT);
        // It may still be at what it was sent before.
        wait_for("the archive", PATIENCE, || {
            (attended.site.archive(&name).code == Some(0)).then_some(())
        });
        assert_eq!(
            attended.site.archived(&name),
            attended.site.segment(number, "walmgr")
        );
    }
}

#[test]
fn status_says_what_the_syncdaemon_did_and_why_it_is_not_asked() {
    let _user = skip_unless!(server_user());
    let mut attended = Attended::start(Site::start());
    archive(&attended.site, 2);
    let status = |site: &Site| site.master_command(&["status"]).stdout;
    let heard = status(&attended.site);
    let expected = "running; xarchive asked for 1 file, 0 shipped before";
    assert!(heard.contains(expected), "{heard}");
    // The file says something else than what the syncdaemon runs with.
    attended.site.master_set("push_timeout", "50s");
    let unheard = status(&attended.site);
    for part in ["xarchive pushes by itself", "syncdaemon -r"] {
        assert!(unheard.contains(part), "{unheard}");
    }
    attended.daemon.signal(Signal::HUP);
    wait_for("the new settings", PATIENCE, || {
        status(&attended.site).contains(expected).then_some(())
    });
    attended.daemon.signal(Signal::KILL);
    attended.daemon.wait();
    assert!(status(&attended.site).contains("the syncdaemon died"));
}

#[test]
fn fault_260_a_receiver_that_was_restarted_takes_the_next_file() {
    let _user = skip_unless!(server_user());
    let mut attended = Attended::start(Site::start());
    for number in 2..5 {
        archive(&attended.site, number);
        attended.site.restart_receiver();
    }
    attended.site.receiver.kill9();
    attended.site.start_receiver();
    archive(&attended.site, 5);
    let [asked, answered, pushed, failures] = attended.counts();
    assert_eq!((asked, answered, failures), (pushed, 0, 0));
}

#[test]
fn fault_261_what_is_ready_is_shipped_in_its_order_and_marked_by_nobody() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().master_set("archive_batch", "3").build();
    let mut attended = Attended::start(site);
    for number in 3..9 {
        attended.site.write_segment(number);
        attended
            .site
            .make_ready(&attended.site.segment_name(number));
    }
    // Nobody has asked yet: another program may be what archives.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(attended.site.archived_names(), Vec::<String>::new());
    archive(&attended.site, 2);
    for number in 3..6 {
        attended.wait_until_held(&attended.site.segment_name(number));
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(!attended.site.holds(&attended.site.segment_name(6)));
    // The proofs outlive the receiver.
    attended.site.receiver.stop();
    for number in 3..6 {
        let name = attended.site.segment_name(number);
        attended.site.archive(&name).succeed();
    }
    assert_eq!(attended.counts(), [4, 3, 1, 0]);
    attended.site.start_receiver();
    for number in 6..9 {
        let name = attended.site.segment_name(number);
        attended.wait_until_held(&name);
        attended.site.archive(&name).succeed();
        assert_eq!(
            attended.site.archived(&name),
            attended.site.segment(number, "walmgr")
        );
    }
    let marks = fs::read_dir(attended.site.data().join("pg_wal/archive_status")).unwrap();
    let mut marks: Vec<String> = marks
        .map(|mark| mark.unwrap().file_name().into_string().unwrap())
        .collect();
    marks.sort();
    let wanted = (3..9).map(|number| format!("{}.ready", attended.site.segment_name(number)));
    assert_eq!(marks, wanted.collect::<Vec<_>>());
}

#[test]
fn fault_262_a_file_changed_since_it_was_shipped_is_pushed_anew() {
    let _user = skip_unless!(server_user());
    let attended = Attended::start(Site::start());
    archive(&attended.site, 2);
    let name = attended.site.segment_name(3);
    attended.site.write_segment(3);
    attended.site.make_ready(&name);
    attended.wait_until_held(&name);
    // The proof comes a moment after the file.
    std::thread::sleep(Duration::from_millis(300));
    let site = &attended.site;
    site.write_wal(&name, site.segment(3, "another history"));
    site.archive(&name).fail(3);
    site.write_segment(3);
    site.archive(&name).succeed();
    let [_, answered, _, _] = attended.counts();
    assert_eq!(answered, 0, "it is another file each time");
}

#[test]
fn fault_264_the_archiver_of_a_server_is_answered_and_loses_no_segment() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let site = Site::builder()
        .cluster(cluster)
        .master_set("use_xlog_functions", "1")
        .master_set("loop_delay", "0.01")
        .build();
    let attended = Attended::start(site);
    let (site, cluster) = (&attended.site, attended.site.cluster());
    site.master_command(&["setup", "--no-check"]).succeed();
    cluster.psql("CREATE TABLE t (n int)");
    let archived = |name: &str| {
        wait_for(name, PATIENCE, || {
            let last = cluster.psql("SELECT last_archived_wal FROM pg_stat_archiver");
            (last.as_str() >= name).then_some(())
        });
    };
    let mut last = String::new();
    for _ in 0..12 {
        cluster.psql("INSERT INTO t SELECT generate_series(1, 20000)");
        last = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
        std::thread::sleep(Duration::from_millis(50));
    }
    archived(&last);
    let [asked, answered, pushed, failures] = attended.counts();
    assert!(
        asked >= 12 && answered + pushed == asked && failures == 0,
        "{asked} {answered} {pushed} {failures}"
    );
    // Each is whole, whoever brought it.
    let mut segment = last.clone();
    for _ in 0..12 {
        assert!(site.holds(&segment), "{segment}");
        let number = u64::from_str_radix(&segment[16..], 16).unwrap();
        segment = site.segment_name(number - 1);
    }
    assert_eq!(
        cluster.psql("SELECT failed_count FROM pg_stat_archiver"),
        "0"
    );
}

/// A server that nobody archives for, with a syncdaemon that ships its records and says what it finishes.
fn unarchived() -> Attended {
    let cluster = Cluster::builder()
        .conf("archive_mode", "on")
        .conf("archive_command", "/bin/false")
        .start();
    let site = Site::builder()
        .cluster(cluster)
        .master_set("use_xlog_functions", "1")
        .master_set("loop_delay", "0.01")
        .build();
    site.cluster().psql("CREATE TABLE t (n int)");
    let mut attended = Attended::start(site);
    attended.start_to_speak();
    attended
}

impl Attended {
    /// Has the syncdaemon say what it finishes.
    fn start_to_speak(&mut self) {
        self.daemon.signal(Signal::KILL);
        self.daemon.wait();
        let mut command = self.site.master_walmgr(&["-v", "-v", "syncdaemon"]);
        self.daemon = Syncdaemon::start_as(&self.site, &mut command);
        self.wait_until_heard();
        self.daemon.wait_for_log("is shipped to");
    }

    /// Writes so many segments, and waits until each is finished although nobody asked.
    fn close_segments(&self, count: usize) -> Vec<String> {
        let cluster = self.site.cluster();
        let write = |_| {
            cluster.psql("INSERT INTO t SELECT generate_series(1, 2000)");
            cluster.psql("SELECT pg_walfile_name(pg_switch_wal())")
        };
        let names: Vec<String> = (0..count).map(write).collect();
        cluster.psql("INSERT INTO t VALUES (1)");
        for name in &names {
            let proven = format!("{name} is durable on");
            self.daemon.wait_for_log(&proven);
        }
        names
    }

    #[track_caller]
    fn assert_archived(&self, name: &str) {
        self.site.archive(name).succeed();
        self.assert_stored(name);
    }

    #[track_caller]
    fn assert_stored(&self, name: &str) {
        let own = self.site.data().join("pg_wal").join(name);
        assert_eq!(self.site.archived(name), fs::read(own).unwrap(), "{name}");
    }
}

#[test]
fn fault_295_what_is_closed_is_proven_before_an_archiver_asks() {
    skip_unless!(Cluster::available(15));
    let mut attended = unarchived();
    let names = attended.close_segments(12);
    // More than `archive_batch`, and each has its proof: nobody is there to give another one.
    attended.site.receiver.kill9();
    for name in &names {
        // On a busy machine a syncdaemon may be late with its first word.
        wait_for("the answer", PATIENCE, || {
            (attended.site.archive(name).code == Some(0)).then_some(())
        });
        attended.assert_stored(name);
    }
    assert!(attended.counted("answered_total") >= 12);
    attended.site.start_receiver();
    // Whoever is killed between finishing a segment and the archiver's question takes its proofs along.
    attended.start_to_speak();
    let names = attended.close_segments(3);
    attended.start_to_speak();
    for name in &names {
        attended.assert_archived(name);
    }
    // The receiver is killed while it finishes them.
    let more: Vec<String> = (0..4)
        .map(|_| {
            let cluster = attended.site.cluster();
            cluster.psql("INSERT INTO t SELECT generate_series(1, 2000)");
            let name = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
            attended.site.receiver.kill9();
            attended.site.start_receiver();
            name
        })
        .collect();
    for name in &more {
        attended.assert_archived(name);
    }
}

#[test]
fn fault_296_a_proof_counts_for_the_content_that_is_asked_for_alone() {
    skip_unless!(Cluster::available(15));
    let mut attended = unarchived();
    let names = attended.close_segments(3);
    let stored = attended.site.archived(&names[1]);
    // As a restored server has it: the name, the size and the first page are the same.
    let path = attended.site.data().join("pg_wal").join(&names[1]);
    let mut other = fs::read(&path).unwrap();
    other[8_192 + 100] ^= 1;
    fs::write(&path, &other).unwrap();
    let refused = attended.site.archive(&names[1]);
    assert_ne!(refused.code, Some(0), "{}", refused.stderr);
    assert_eq!(attended.site.archived(&names[1]), stored);
    assert_eq!(attended.counted("answered_total"), 0);
    // One that is as it was needs none of this, and what was changed back is asked about anew.
    fs::write(&path, &stored).unwrap();
    attended.assert_archived(&names[1]);
    // A syncdaemon that is late has xarchive push by itself: it is asked again.
    wait_for("both answers", PATIENCE, || {
        attended.assert_archived(&names[0]);
        attended.assert_archived(&names[2]);
        (attended.counted("answered_total") >= 2).then_some(())
    });
    attended.daemon.signal(Signal::TERM);
    assert_eq!(attended.daemon.wait(), Some(0));
}

#[test]
fn fault_297_segments_of_two_timelines_are_finished_as_they_are_closed() {
    skip_unless!(Cluster::available(15));
    let mut attended = unarchived();
    let mut names = attended.close_segments(2);
    attended.site.cluster_mut().stop(StopMode::Fast);
    let signal = attended.site.data().join("standby.signal");
    fs::write(&signal, b"").unwrap();
    give_to_server(&signal);
    attended.site.cluster_mut().start();
    assert_eq!(attended.daemon.wait(), Some(0), "it is a standby");
    attended.site.cluster().psql("SELECT pg_promote()");
    let mut command = attended.site.master_walmgr(&["-v", "-v", "syncdaemon"]);
    attended.daemon = Syncdaemon::start_as(&attended.site, &mut command);
    attended.wait_until_heard();
    names.extend(attended.close_segments(2));
    assert!(names[1].starts_with("00000001") && names[3].starts_with("00000002"));
    // All that PostgreSQL has ready, the segment in which the timeline ended and the history with it.
    let marks = attended.site.data().join("pg_wal/archive_status");
    for mark in fs::read_dir(marks).unwrap() {
        let mark = mark.unwrap().file_name().into_string().unwrap();
        if let Some(name) = mark.strip_suffix(".ready") {
            attended.assert_archived(name);
        }
    }
}
