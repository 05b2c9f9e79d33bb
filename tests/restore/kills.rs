//! A restore that is killed at each of its system calls that change something, and typed again.
//! Never helps it in between. Invariant: wherever it is killed, PostgreSQL starts from nothing that
//! is not complete, no set is lost, and the same command finishes.

use std::process::Stdio;

use super::*;
use crate::support::soak;
use crate::support::strace::Strace;

/// The calls that change something.
pub const CALLS: [&str; 10] = [
    "/rename.*",
    "fsync",
    "syncfs",
    "mkdir",
    "mkdirat",
    "symlink",
    "/unlink.*",
    "/rmdir.*",
    "ftruncate",
    "/chmod.*",
];

/// A data directory with tablespace that a set is made of without a server: what restore does with
/// its content does not depend on it.
pub struct Wreck {
    pub scene: Scene,
    /// Beside the archive, to begin anew with.
    pub spare: PathBuf,
    pub old: PathBuf,
}

impl Wreck {
    pub fn new() -> Wreck {
        Wreck::of(Scene::new(15))
    }

    pub fn of(mut scene: Scene) -> Wreck {
        let space = scene.site.home().create_dir("space");
        let sql = format!("CREATE TABLESPACE s LOCATION '{}'", space.display());
        scene.site.cluster().psql(&sql);
        let cluster = scene.site.cluster();
        cluster.psql("CREATE TABLE in_space TABLESPACE s AS SELECT generate_series(1, 100) AS n");
        let set = make_set(&scene.site, "data.master");
        scene.site.standby_set("slave_start_cmd", "");
        let wal = scene.data().with_file_name("wal");
        scene
            .site
            .standby_set("slave_pg_xlog", wal.to_str().unwrap());
        let [spare, old] = ["spare", "old"].map(|name| scene.site.home().join(name));
        make_small(&set);
        copy(&set, &spare);
        copy(&set, &old);
        Wreck { scene, spare, old }
    }

    /// One set, an old directory, nothing else.
    pub fn begin(&self) {
        let data = self.scene.data();
        let above = data.parent().unwrap();
        for name in names_in(above) {
            let is_ours = name.starts_with("standby-data") || name.starts_with("wal");
            if is_ours || name == "new-space" {
                fs::remove_dir_all(above.join(name)).unwrap();
            }
        }
        let set = set_path(&self.scene.site, "data.master");
        let _ = fs::remove_dir_all(&set);
        copy(&self.spare, &set);
        copy(&self.old, &data);
        fs::write(data.join("of-the-old"), "").unwrap();
        give_to_server(&data);
        let wal = above.join("wal");
        fs::create_dir(&wal).unwrap();
        fs::write(wal.join("000000010000000000000001"), "of another life").unwrap();
        give_to_server(&wal);
    }

    /// Kills the command at this call; `false` when it has fewer and so has ended by itself.
    pub fn killed_at(&self, words: &[&str], call: &str, count: u32) -> bool {
        let strace = Strace::available().unwrap().unprivileged();
        let strace = strace.inject(&format!("{call}:signal=KILL:when={count}"));
        let command = self.scene.site.standby_walmgr(words);
        let output = strace.wrap(&command).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let killed = !output.status.success();
        assert!(!killed || !text.contains("walmgr: restore"), "{text}");
        killed
    }

    /// PostgreSQL starts from the place only if everything is there.
    pub fn judge(&self, context: &str) {
        let data = self.scene.data();
        let startable = data.join("global/pg_control").exists();
        let is_old = data.join("of-the-old").exists();
        if startable && !is_old {
            self.assert_complete(context);
        }
    }

    pub fn assert_complete(&self, context: &str) {
        let data = self.scene.data();
        assert!(data.join("global/pg_control").exists(), "{context}");
        for name in [
            "backup_label",
            "standby.signal",
            "PG_VERSION",
            "base/1/PG_VERSION",
        ] {
            assert!(data.join(name).exists(), "{context}: {name}");
        }
        assert!(!data.join("tablespace_map").exists(), "{context}");
        let conf = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
        assert!(conf.contains("xrestore %f %p'\n"), "{context}: {conf}");
        let mut wal = names_in(&data.join("pg_wal"));
        wal.retain(|name| name != "archive_status");
        assert_eq!(wal, [""; 0], "{context}: WAL of another life");
        let space = fs::read_dir(data.join("pg_tblspc")).unwrap().next();
        let space = space.unwrap().unwrap().path();
        let files = |path: &Path| -> usize {
            let found = std::process::Command::new("find")
                .arg("-L")
                .arg(path)
                .output();
            found
                .unwrap()
                .stdout
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
        };
        let kept = self.spare.join("tmpspc").join(space.file_name().unwrap());
        assert_eq!(files(&space), files(&kept), "{context}");
        // Its own files, the settings and the signal.
        let without = |path: &Path, name: &str| files(&path.join(name));
        for name in ["base", "pg_xact", "global"] {
            let (found, expected) = (without(&data, name), without(&self.spare, name));
            assert_eq!(found, expected, "{context}: {name}");
        }
    }

    /// The same, and nothing of the command's own is left beside it.
    pub fn assert_ended(&self, context: &str) {
        self.assert_complete(context);
        let beside = self.scene.data().with_extension("restoring");
        assert!(!beside.exists(), "{context}");
    }

    /// The same command finishes what it was killed in.
    pub fn finish(&self, words: &[&str], context: &str) {
        let again = self.scene.site.standby_command(words);
        let is_done = self.scene.data().join("global/pg_control").exists();
        // All was in place already when the run was killed: the set is gone, or the tablespace's
        // directory taken.
        let refusals = ["there is no backup set", "new-space is not empty"];
        let done_already = refusals.iter().any(|part| again.stderr.contains(part));
        assert!(
            again.code == Some(0) || (done_already && is_done),
            "{context}: {}",
            again.stderr
        );
        self.assert_ended(context);
    }

    /// Kills the command once at each count of each call, and finishes it each time.
    fn kill_everywhere(&self, words: &[&str]) -> Vec<String> {
        let mut kills = Vec::new();
        let step = if soak() { 1 } else { 4 };
        for call in CALLS {
            let mut count = 1;
            loop {
                self.begin();
                let context = format!("{words:?} {call} {count}");
                if !self.killed_at(words, call, count) {
                    self.assert_ended(&context);
                    break;
                }
                self.judge(&context);
                self.finish(words, &context);
                let old = self.scene.data().with_extension("1");
                assert!(
                    old.join("of-the-old").exists(),
                    "{context}: the old one is gone"
                );
                count += if count < 6 { 1 } else { step };
                assert!(count < 2_000, "{context}: no end");
            }
            kills.push(format!("{call} {}", count - 1));
        }
        kills
    }
}

/// What a restore does with a file does not depend on its size.
pub fn make_small(set: &Path) {
    for database in fs::read_dir(set.join("base")).unwrap().flatten() {
        for file in fs::read_dir(database.path()).unwrap().flatten() {
            if file.metadata().unwrap().len() > 0 && file.file_name() != "PG_VERSION" {
                fs::remove_file(file.path()).unwrap();
            }
        }
    }
}

pub fn copy(from: &Path, to: &Path) {
    let mut cp = std::process::Command::new("cp");
    crate::support::run(cp.arg("-a").arg(from).arg(to)).unwrap();
}

#[test]
fn fault_81_a_move_killed_at_any_step_is_finished_by_the_next() {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    let wreck = Wreck::new();
    let kills = wreck.kill_everywhere(&["restore"]);
    println!("killed at: {}", kills.join(", "));
}

#[test]
fn fault_81_a_copy_killed_at_any_step_is_made_again() {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    let wreck = Wreck::new();
    let kills = wreck.kill_everywhere(&["restore", "data.master"]);
    println!("killed at: {}", kills.join(", "));
    assert_eq!(wreck.scene.listed(), ["data.master"]);
}

#[test]
fn fault_81_a_move_with_the_tablespace_elsewhere_is_finished_too() {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    kill_with_mapping(&["restore"]);
}

#[test]
fn fault_81_a_copy_with_the_tablespace_elsewhere_is_made_again_too() {
    skip_unless!(Strace::available());
    skip_unless!(Cluster::available(15));
    kill_with_mapping(&["restore", "data.master"]);
}

fn kill_with_mapping(words: &[&str]) {
    let wreck = Wreck::new();
    let [space, new] = ["space", "new-space"].map(|name| wreck.scene.site.home().join(name));
    let mapping = format!("--tablespace-mapping={}={}", space.display(), new.display());
    let kills = wreck.kill_everywhere(&[words, &[&mapping]].concat());
    println!("killed at: {}", kills.join(", "));
}
