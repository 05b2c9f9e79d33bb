//! The pages for those who come from another tool, with that tool as Debian has it: both side by side, and the switch.
//! Never tells the other tool more than its page does. Invariant: what PostgreSQL archived while both were there is in
//! both, and neither archive gets a hole by the switch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::documents::{Document, page};
use crate::support::place::walmgr_binary;
use crate::support::{Cluster, Output, Site, have, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// Of the pages' lines.
const WALMGR: &str = "/usr/local/bin/walmgr /var/lib/postgresql/master.ini";

/// A page, and a master that the other tool has been there for.
struct Move {
    page: Document,
    site: Site,
    /// The files of the other tool.
    home: PathBuf,
}

impl Move {
    fn from(page_name: &str, program: &str) -> Result<Move, String> {
        Cluster::available(15)?;
        if !have(program) {
            return Err(format!("{program} is not installed"));
        }
        let cluster = Cluster::builder()
            .conf("archive_mode", "on")
            .conf("wal_level", "replica")
            .start();
        let home = cluster.home().join(program);
        run(cluster.command("/bin/mkdir").arg(&home)).unwrap();
        let bin = cluster.bin().display().to_string();
        let site = Site::builder().cluster(cluster).unbound();
        Ok(Move {
            page: page(&format!("docs/moving/{page_name}.md")),
            site: site.standby_set("slave_bin", &bin).build(),
            home,
        })
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn tool(&self, program: &str, words: &[&str]) -> Command {
        let program = ["/usr/bin", "/usr/local/bin"]
            .map(|folder| Path::new(folder).join(program))
            .into_iter()
            .find(|path| path.exists());
        let mut command = self
            .site
            .cluster()
            .command(program.unwrap().to_str().unwrap());
        command.args(words);
        command
    }

    /// The page's lines of postgresql.conf, with this host's names for those of the page.
    fn archive_commands(&self, theirs: &str, ours: &str) -> Vec<String> {
        let ini = self.site.master_ini().display().to_string();
        let walmgr = walmgr_binary().display().to_string();
        let blocks = self.page.blocks().into_iter();
        let lines: Vec<String> = blocks
            .flat_map(|block| block.text.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|line| line.trim_start().starts_with("archive_command = "))
            .map(|line| line.replace(WALMGR, &format!("{walmgr} {ini}")))
            .map(|line| line.trim_start().replace(theirs, ours))
            .collect();
        assert!(!lines.is_empty() && lines.iter().all(|line| line.contains(&walmgr)));
        lines
    }

    fn archive_by(&mut self, line: &str) {
        let cluster = self.site.cluster_mut();
        cluster.append_conf(line);
        cluster.psql("select pg_reload_conf()");
        let command = line.split('\'').nth(1).unwrap().to_owned();
        wait_for("the reload", PATIENCE, || {
            (cluster.psql("SHOW archive_command") == command).then_some(())
        });
    }

    /// The page's calls of walmgr, in its order, but for those of postgresql.conf.
    fn typed(&self) {
        let lines = self.page.typed_lines().into_iter();
        let lines = lines.filter(|line| !line.words.iter().any(|word| word == "xarchive"));
        let mut count = 0;
        for line in lines {
            let words: Vec<&str> = line.words[2..].iter().map(String::as_str).collect();
            let mut command = match line.words[1].as_str() {
                "master.ini" => self.site.master_walmgr(&words),
                _ => self.site.standby_walmgr(&words),
            };
            Output::of(&mut command).succeed();
            count += 1;
        }
        assert_eq!(count, 3, "setup, backup, drill");
    }

    /// Writes and ends some segments, which have to arrive; their names.
    fn work(&self) -> Vec<String> {
        let cluster = self.site.cluster();
        let ended = (0..3).map(|_| {
            cluster.psql("SELECT pg_logical_emit_message(true, 'moving', repeat('x', 200000))");
            let name = cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
            cluster.switch_wal();
            name
        });
        let ended: Vec<String> = ended.collect();
        // Where two archives have to take a segment, it is archived when both have.
        let sql = "SELECT last_archived_wal FROM pg_stat_archiver";
        wait_for("the segments", PATIENCE, || {
            (cluster.psql(sql) >= *ended.last().unwrap()).then_some(())
        });
        assert!(ended.iter().all(|name| self.site.holds(name)), "{ended:?}");
        ended
    }

    /// Nothing was refused on the way, and the archive here leads to its end.
    fn assert_without_hole(&self) {
        let sql = "SELECT failed_count FROM pg_stat_archiver";
        assert_eq!(
            self.site.cluster().psql(sql),
            "0",
            "{}",
            self.site.cluster().log()
        );
        let verified = self.site.standby_command(&["verify"]);
        assert!(verified.stdout.contains("all is well"), "{verified:?}");
    }
}

/// The names of all files below a folder.
fn names_below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => names.extend(names_below(&path)),
            _ => names.push(entry.file_name().to_string_lossy().into_owned()),
        }
    }
    names
}

fn holds(folder: &Path, segment: &str) -> bool {
    let names = names_below(folder);
    names.iter().any(|name| name.starts_with(segment))
}

#[test]
fn fault_247_pgbackrest_and_walmgr_run_side_by_side_until_the_switch() {
    let mut moved = skip_unless!(Move::from("from-pgbackrest", "pgbackrest"));
    let (cluster, home) = (moved.site.cluster(), moved.home.display().to_string());
    let conf = format!(
        "[global]\nrepo1-path={home}/repo\nlog-path={home}\nlock-path={home}/lock\nspool-path={home}/spool\n\
         archive-timeout=60\n\n[main]\npg1-path={}\npg1-port={}\npg1-socket-path={}\npg1-user=postgres\n",
        cluster.data().display(),
        cluster.port(),
        cluster.home().display()
    );
    let conf = moved.write("pgbackrest.conf", &conf);
    let theirs = "pgbackrest --stanza=main";
    let ours = format!(
        "/usr/bin/pgbackrest --config={} --stanza=main",
        conf.display()
    );
    let option = format!("--config={}", conf.display());
    let pgbackrest = |moved: &Move, words: &[&str]| {
        let words = [&[option.as_str(), "--stanza=main"], words].concat();
        run(&mut moved.tool("pgbackrest", &words)).unwrap()
    };
    pgbackrest(&moved, &["stanza-create"]);
    moved.archive_by(&format!("archive_command = '{ours} archive-push %p'"));
    pgbackrest(&moved, &["check"]);
    pgbackrest(&moved, &["backup", "--start-fast"]);

    let [both, walmgr] = <[String; 2]>::try_from(moved.archive_commands(theirs, &ours)).unwrap();
    assert!(both.contains(&ours) && !walmgr.contains(&ours));
    moved.archive_by(&both);
    moved.typed();
    let command = both.split('\'').nth(1).unwrap();
    let kept = moved.site.cluster().psql("SHOW archive_command");
    assert_eq!(kept, command, "`setup` replaced the command of both");
    pgbackrest(&moved, &["check"]);
    let repository = moved.home.join("repo/archive/main");
    for name in moved.work() {
        assert!(holds(&repository, &name), "{name}");
    }

    moved.archive_by(&walmgr);
    moved.site.master_command(&["setup"]).succeed();
    for name in moved.work() {
        assert!(!holds(&repository, &name), "{name}");
    }
    moved.assert_without_hole();
    // Its backup stays good, up to the switch.
    let info = pgbackrest(&moved, &["info"]);
    assert!(
        info.contains("status: ok") && info.contains("full backup"),
        "{info}"
    );
    // And back the same way.
    moved.archive_by(&both);
    pgbackrest(&moved, &["check"]);
    moved.assert_without_hole();
}

#[test]
fn fault_247_barman_streams_beside_walmgr_until_its_stream_and_slot_end() {
    let mut moved = skip_unless!(Move::from("from-barman", "barman"));
    // PostgreSQL's own end of a backup waits for this command; Barman does not.
    moved.archive_by("archive_command = '/bin/true'");
    let cluster = moved.site.cluster();
    let user = run(cluster.command("/usr/bin/id").arg("-un")).unwrap();
    let of_process = format!(
        "[barman]\nbarman_user = {}\nbarman_home = {home}/catalogue\nlog_file = {home}/barman.log\n\
         configuration_files_directory = {home}/barman.d\nbarman_lock_directory = {home}\n\n[main]\n\
         description = moving\nconninfo = {conninfo}\nstreaming_conninfo = {conninfo}\n\
         backup_method = postgres\npath_prefix = {bin}\n",
        user.trim(),
        home = moved.home.display(),
        conninfo = cluster.conninfo(),
        bin = cluster.bin().display(),
    );
    let conf = moved.home.join("barman.conf").display().to_string();
    let configure = |lines: &str| drop(moved.write("barman.conf", &format!("{of_process}{lines}")));
    let barman =
        |words: &[&str]| run(&mut moved.tool("barman", &[&["-c", &conf], words].concat())).unwrap();
    configure("streaming_archiver = on\nslot_name = barman\ncreate_slot = auto\n");
    run(cluster
        .command("/bin/mkdir")
        .arg(moved.home.join("catalogue")))
    .unwrap();
    barman(&["cron"]);
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE active";
    wait_for("the stream of Barman", PATIENCE, || {
        (cluster.psql(slots) == "1").then_some(())
    });
    let _stream = Stream(&moved, &conf);
    // It wants a streamed segment in its catalogue first.
    wait_for("Barman's first backup", PATIENCE, || {
        cluster.switch_wal();
        barman(&["cron"]);
        std::thread::sleep(Duration::from_secs(1));
        let words = ["-c", &conf, "backup", "main"];
        let made = run(&mut moved.tool("barman", &words));
        made.inspect_err(|error| println!("not yet: {error}")).ok()
    });

    // It does not use archive_command, so nothing changes for it.
    moved.typed();
    let streamed = moved.home.join("catalogue/main");
    for name in moved.work() {
        wait_for("Barman's copy", PATIENCE, || {
            holds(&streamed, &name).then_some(())
        });
    }

    let blocks = moved.page.blocks();
    let of = |part: &str| {
        blocks
            .iter()
            .find(|block| block.text.contains(part))
            .unwrap()
    };
    configure(&of("streaming_archiver = off").text.replace("  ", ""));
    let typed = of("receive-wal --stop").text.clone();
    let lines: Vec<&str> = typed.lines().map(str::trim).collect();
    assert_eq!(lines[0], "barman receive-wal --stop main");
    barman(&["receive-wal", "--stop", "main"]);
    let sql = lines[1].split('"').nth(1).unwrap();
    wait_for("the slot to be free", PATIENCE, || {
        cluster.try_psql(sql).ok()
    });
    barman(&["cron"]);
    moved.site.master_command(&["setup"]).succeed();
    for name in moved.work() {
        assert!(!holds(&streamed, &name), "{name}");
    }
    assert_eq!(
        cluster.psql("SELECT count(*) FROM pg_replication_slots"),
        "0"
    );
    moved.assert_without_hole();
    let listed = barman(&["list-backups", "main"]);
    assert_eq!(listed.lines().count(), 1, "{listed}");
    let out = moved.home.join("recovered").display().to_string();
    barman(&["recover", "main", "latest", &out]);
    assert!(Path::new(&out).join("global/pg_control").exists());
}

/// Barman's process that streams, which ends with the test.
struct Stream<'a>(&'a Move, &'a str);

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        let Stream(moved, conf) = self;
        let _ = run(&mut moved.tool("barman", &["-c", conf, "receive-wal", "--stop", "main"]));
    }
}
