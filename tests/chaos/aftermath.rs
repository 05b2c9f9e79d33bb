//! What is left when the chaos is over: the booted server as the master, and every set that is listed.
//! Never goes by what walmgr says of a set. Invariant tested: each of them restores and replays to the end
//! of the archive, across the boot, without a file or a segment missing.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::World;
use crate::replay::timelines::{ini_of, second_master, switched};
use crate::support::{Cluster, wait_for};

/// How long one set may take to replay everything.
const REPLAY_PATIENCE: Duration = Duration::from_secs(300);

impl World {
    /// Both masters' rows come out of each set, and the next backup is as good.
    pub(super) fn judge_what_is_left(&mut self) {
        if !self.site.receiver.is_running() {
            self.site.start_receiver();
        }
        let ini = ini_of(&self.site, &self.standby);
        // A restore leaves archiving off; what `setup` turns on counts after a restart.
        second_master(&ini, &["setup"]).succeed();
        self.standby.restart();
        second_master(&ini, &["setup"]).succeed();
        let rows = self.one_more_row();
        let sets = self.sets();
        assert!(!sets.is_empty(), "no set is listed");
        for set in sets {
            self.replays(&set, &rows);
        }
        second_master(&ini, &["backup"]).succeed();
        let newest = self.sets().remove(0);
        let rows = self.one_more_row();
        self.replays(&newest, &rows);
    }

    /// Writes behind the boot; how many rows there are, all of them in the archive.
    fn one_more_row(&self) -> String {
        self.standby
            .psql("INSERT INTO t VALUES (-1, 'behind the boot')");
        let rows = self.standby.psql("SELECT count(*) FROM t");
        let last = switched(&self.standby, &self.site);
        assert!(last.starts_with("00000002"), "{last}");
        rows
    }

    /// The sets that are listed, newest first; none of them is called damaged.
    fn sets(&self) -> Vec<String> {
        let listed = self.site.standby_command(&["--json", "listbackups"]);
        let listed: Vec<Value> = serde_json::from_str(&listed.succeed()).unwrap();
        let name = |set: &Value| {
            assert!(set.get("error").is_none_or(Value::is_null), "{set}");
            set["set"].as_str().unwrap().to_owned()
        };
        listed.iter().map(name).collect()
    }

    /// A copy of the set, whose files are compared with their checksums on the way, gets to all rows.
    fn replays(&self, set: &str, rows: &str) {
        let data = self.site.home().join("again");
        let words = ["restore", set, data.to_str().unwrap()];
        self.site.standby_command(&words).succeed();
        let mut server = Cluster::on_directory(self.standby.major(), &data);
        if let Err(log) = server.try_start() {
            panic!("{set} does not start:\n{log}");
        }
        let what = format!("{rows} rows out of {set}");
        let begun = std::time::Instant::now();
        while server.try_psql("SELECT count(*) FROM t").as_deref() != Ok(rows) {
            assert!(
                server.is_running() && begun.elapsed() < REPLAY_PATIENCE,
                "{what} did not come:\n{}",
                server.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("{what} after {:?}", begun.elapsed());
        drop(server);
        wait_for("the directory to go", REPLAY_PATIENCE, || {
            fs::remove_dir_all(&data).ok()
        });
    }
}
