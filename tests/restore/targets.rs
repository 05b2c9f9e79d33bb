//! Recoveries to a time, an LSN, a transaction and a restore point, and targets out of reach.
//! Never asks walmgr where a target lies: the master and `pg_waldump` say so. Invariant: what is
//! refused leaves everything as it was, and shows what can be typed instead.

use walmgr_protocol::names::Lsn;

use super::*;

/// A transaction of the master, as it saw itself.
pub(super) struct Mark {
    number: usize,
    pub xid: String,
    /// Where the master stood before and after it.
    pub before: String,
    pub behind: String,
    /// When it had committed.
    pub time: String,
}

/// A scene with an old and a new set, and marks before, between and behind them.
pub(super) struct Story {
    pub scene: Scene,
    pub marks: Vec<Mark>,
}

impl Story {
    pub fn new(major: u8) -> Story {
        let builder = Cluster::builder().major(major);
        let scene = Scene::of(builder.conf("track_commit_timestamp", "on"));
        let site = &scene.site;
        site.cluster().psql("CREATE TABLE marks (n int)");
        let mut marks = Vec::new();
        let mut mark = |count: usize| {
            for _ in 0..count {
                marks.push(make_mark(site.cluster(), marks.len()));
            }
        };
        mark(2);
        make_set(site, "data.master.0");
        mark(4);
        make_set(site, "data.master");
        mark(4);
        drain(site);
        let mut scene = scene;
        scene.site.standby_set("backup_datadir", "no");
        Story { scene, marks }
    }

    /// The numbers of the marks that a recovery with these words has brought back.
    pub fn recover(&self, words: &[&str]) -> usize {
        let words = [words, &["--target-action", "promote"]].concat();
        self.scene.restore(&words).succeed();
        let standby = &self.scene.standby;
        wait_for("the server to open", PATIENCE, || {
            let answer = standby.try_psql("SELECT pg_is_in_recovery()").ok()?;
            (answer == "f").then_some(())
        });
        standby.psql("SELECT count(*) FROM marks").parse().unwrap()
    }

    /// Where the recovery ended, as the new timeline's history says.
    fn ended_at(&self) -> Lsn {
        let history = self.scene.data().join("pg_wal/00000002.history");
        let text = fs::read_to_string(history).unwrap();
        text.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Where the first record that begins at `lsn` or behind it begins, and the one behind that, as
    /// pg_waldump says; of the records that contain these words.
    fn dumped(&self, lsn: &str, parts: &[&str]) -> (Lsn, Lsn) {
        let cluster = self.scene.site.cluster();
        let mut dump = cluster.command("pg_waldump");
        crate::support::stored::unpack_all(&self.scene.site.completed_wals());
        dump.arg("-p").arg(self.scene.site.completed_wals());
        dump.args(["-s", lsn, "-n", "2000"]);
        // It complains when the archive ends.
        let text = String::from_utf8(dump.output().unwrap().stdout).unwrap();
        let lsn_of = |line: &str| -> Lsn {
            let (_, behind) = line.split_once("lsn: ").unwrap();
            behind.split(',').next().unwrap().parse().unwrap()
        };
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("lsn: ")).collect();
        let is_it = |line: &&str| parts.iter().all(|part| line.contains(part));
        let at = lines.iter().position(is_it).unwrap();
        (lsn_of(lines[at]), lsn_of(lines[at + 1]))
    }

    /// The recovery ended behind that record and not behind the next one's beginning.
    fn assert_ended_behind(&self, lsn: &str, parts: &[&str]) {
        let (record, next) = self.dumped(lsn, parts);
        let ended = self.ended_at();
        assert!(record < ended && ended <= next, "{record} {ended} {next}");
    }
}

fn make_mark(cluster: &Cluster, number: usize) -> Mark {
    let line = |sql: &str| cluster.psql(sql);
    let before = line("SELECT pg_current_wal_insert_lsn()");
    let xid = line(&format!(
        "WITH i AS (INSERT INTO marks VALUES ({number}) RETURNING 1) SELECT txid_current() FROM i"
    ));
    let behind = line("SELECT pg_current_wal_insert_lsn()");
    let time = line(&format!(
        "SELECT to_char(pg_xact_commit_timestamp('{xid}'::text::xid) AT TIME ZONE 'UTC', \
         'YYYY-MM-DD HH24:MI:SS.US')"
    ));
    line(&format!("SELECT pg_create_restore_point('after {number}')"));
    Mark {
        number,
        xid,
        before,
        behind,
        time,
    }
}

fn each_kind_of_target(major: u8, has_dump: bool) {
    let story = Story::new(major);
    for number in [3, 7] {
        // The set that fits is behind an older mark: the older set for 3, the newer one for 7.
        let mark = &story.marks[number];
        let expected = number + 1;
        assert_eq!(mark.number, number);
        assert_eq!(story.recover(&["--target-xid", &mark.xid]), expected);
        if has_dump {
            let commit = ["COMMIT", &format!("tx: {:>10}, lsn", mark.xid)];
            story.assert_ended_behind(&mark.before, &commit);
        }
        let name = format!("after {number}");
        assert_eq!(story.recover(&["--target-name", &name]), expected);
        if has_dump {
            story.assert_ended_behind(&mark.before, &[&name]);
        }
        assert_eq!(story.recover(&["--target-lsn", &mark.behind]), expected);
        if has_dump {
            story.assert_ended_behind(&mark.behind, &[]);
        }
        let time = format!("{}+00", mark.time);
        assert_eq!(story.recover(&["--target-time", &time]), expected);
        if has_dump {
            // It ends before the next one that ended later.
            let (_, behind) = story.dumped(&mark.before, &["COMMIT"]);
            let (next, _) = story.dumped(&behind.to_string(), &["COMMIT"]);
            let ended = story.ended_at();
            assert!(behind <= ended && ended <= next, "{behind} {ended} {next}");
        }
        assert_eq!(
            story.scene.listed(),
            ["data.master", "data.master.0"],
            "a set was moved"
        );
    }
}

#[test]
fn each_kind_of_target_lands_where_the_master_and_pg_waldump_say() {
    skip_unless!(Cluster::available(15));
    each_kind_of_target(15, true);
}

#[test]
fn each_kind_of_target_is_found_in_oldest_and_newest_wal() {
    let majors = Cluster::available_majors();
    for major in [majors.first(), majors.last()].into_iter().flatten() {
        each_kind_of_target(*major, false);
    }
}

#[test]
fn a_target_pauses_unless_it_is_told_otherwise_and_boot_opens_it() {
    skip_unless!(Cluster::available(15));
    let story = Story::new(15);
    let scene = &story.scene;
    let mark = &story.marks[3];
    scene.restore(&["--target-xid", &mark.xid]).succeed();
    wait_for("the pause", PATIENCE, || {
        let answer = scene
            .standby
            .try_psql("SELECT pg_get_wal_replay_pause_state()");
        (answer.ok()? == "paused").then_some(())
    });
    assert_eq!(scene.standby.psql("SELECT count(*) FROM marks"), "4");
    assert!(scene.data().join("recovery.signal").exists());
    assert!(!scene.data().join("standby.signal").exists());
    scene.boot();
    assert_eq!(scene.standby.psql("SELECT count(*) FROM marks"), "4");
    scene.standby.psql("INSERT INTO marks VALUES (100)");
}

#[test]
fn fault_80_target_out_of_reach_is_refused_at_once_with_the_range() {
    skip_unless!(Cluster::available(15));
    let story = Story::new(15);
    let scene = &story.scene;
    scene.restore(&["data.master"]).succeed();
    let before = names_in(&scene.data());
    let (early, late) = (&story.marks[0], &story.marks[9]);
    let time = |mark: &Mark| format!("{}+00", mark.time);
    let stop = "STOP WAL LOCATION";
    let backups: Vec<String> = (scene.site.archived_names().into_iter())
        .filter(|name| name.ends_with(".backup"))
        .collect();
    let text = String::from_utf8(scene.site.archived(&backups[0])).unwrap();
    let stop = text.lines().find(|line| line.starts_with(stop)).unwrap();
    let stop = stop.split(' ').nth(3).unwrap();
    for (words, part) in [
        (["--target-lsn", early.behind.as_str()], stop),
        (["--target-lsn", "1/0"], stop),
        (["--target-time", &time(early)], "+00 to before "),
        (["--target-time", &time(late)], &time(late)),
        (["--target-time", "2100-01-01 00:00:00Z"], &time(late)),
        (["--target-xid", &early.xid], &late.xid),
        (["--target-xid", "4000000000"], &late.xid),
        (["--target-name", "after 0"], "after 9"),
        (["--target-name", "never"], "after 9"),
        (["--target-timeline", "7"], "timeline 7"),
    ] {
        let refused = scene
            .site
            .standby_command(&[&["restore"][..], &words].concat());
        let line = refused.fail(1);
        assert!(line.contains(part), "{part:?}: {line}");
        assert_typed(scene, line);
    }
    // What an older set reaches, a newer one does not.
    let between = story.marks[3].xid.as_str();
    let refused =
        (scene.site).standby_command(&["restore", "data.master", "--target-xid", between]);
    assert!(refused.fail(1).contains("out of reach"));
    assert_typed(scene, refused.fail(1));
    assert!(scene.standby.is_running());
    assert_eq!(names_in(&scene.data()), before);
    assert_eq!(scene.listed(), ["data.master", "data.master.0"]);
}

/// Each command that a refusal shows can be typed as it stands.
#[track_caller]
fn assert_typed(scene: &Scene, line: &str) {
    let Some((_, shown)) = line.split_once("nothing was changed; ") else {
        return;
    };
    let commands: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
    assert!((1..=3).contains(&commands.len()), "{line}");
    for command in commands {
        let ini = scene.site.standby_ini().display().to_string();
        assert!(
            command.starts_with(&format!("walmgr {ini} restore")),
            "{line}"
        );
        let mut shell = scene.standby.command("/bin/sh");
        let folder = crate::support::walmgr_binary().parent().unwrap();
        let rehearsed = command.replacen("walmgr ", "walmgr -n ", 1);
        shell.env("PATH", folder).arg("-c").arg(rehearsed);
        crate::support::Output::of(&mut shell).succeed();
    }
}
