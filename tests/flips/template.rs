//! One standby with everything that it can keep, made once by a real master, and copies of it.
//! Never changed after it was made: a copy shares its files until one of them gets a flipped bit.
//! Invariant: what the template holds is known by content, and all of it was acknowledged.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use walmgr::test_support::config::{self, StandbyConfig};
use walmgr::test_support::store::survey::survey;
use walmgr::test_support::store::{ArchiveFolders, Disk, PartialWals, RealDisk};
use walmgr::test_support::wal::scan::{ScanStep, Scanner};
use walmgr_protocol::message::Overview;
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName, WalSegmentSize};

use crate::load::drain;
use crate::support::place::{TempDir, give_to_server};
use crate::support::stored;
use crate::support::{Cluster, Site, StopMode, free_port, run, wait_for, walmgr};

pub const SEGMENT_BYTES: u64 = 1 << 20;

/// What a file of the standby is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Segment,
    History,
    BackupHistory,
    /// A small file that walmgr keeps beside others: checksums, ends, markers.
    Own,
    Partial,
    Frozen,
    /// What a set is known by: label, map, manifest, control file, settings.
    SetWord,
    /// Data of a set.
    SetData,
    Config,
}

/// A file that can have a flipped bit.
#[derive(Debug, Clone)]
pub struct Target {
    pub kind: Kind,
    /// Below the folder of the archive.
    pub path: PathBuf,
    /// Where something begins that means more than its neighbours.
    pub structure: Vec<u64>,
    pub len: u64,
}

pub struct Template {
    /// The folder that labs share files with.
    pub archive: PathBuf,
    pub targets: BTreeMap<Kind, Vec<Target>>,
    /// Rows that were committed and acknowledged.
    pub rows: u64,
    pub overview: Overview,
    /// The set in its form before the first start, ready to replay.
    pub site: Site,
    _home: TempDir,
}

const ROWS: &str = "INSERT INTO t SELECT g, (SELECT string_agg(md5(random()::text), '') \
     FROM generate_series(1, 60) WHERE g > 0) FROM generate_series(1, 300) g";

fn shipping_master(memory: &TempDir) -> Site {
    let hba = memory.write("pg_hba.conf", "local all all trust\n");
    let cluster = Cluster::builder()
        .conf("archive_mode", "on")
        .conf("hba_file", &hba.display().to_string())
        .start();
    let archive = memory.create_dir("archive");
    let kept = archive.join("config");
    let mut site = Site::builder()
        .cluster(cluster)
        .archive(&archive)
        .standby_set("config_backup", &kept.display().to_string())
        .build();
    site.master_set("use_xlog_functions", "1");
    site.master_command(&["setup"]).succeed();
    let space = memory.create_dir("space");
    for sql in [
        &format!("CREATE TABLESPACE far LOCATION '{}'", space.display()),
        "CREATE TABLE t (n int, pad text)",
        "CREATE TABLE in_space TABLESPACE far AS SELECT generate_series(1, 999) AS n",
    ] {
        site.cluster().psql(sql);
    }
    site.master_command(&["backup"]).succeed();
    site
}

impl Template {
    pub fn make() -> Template {
        let home = TempDir::in_memory();
        let mut site = shipping_master(&home);
        let mut rows = 0;
        let mut work = |site: &Site| {
            site.cluster().psql(ROWS);
            rows += 300;
        };
        for _ in 0..4 {
            work(&site);
            drain(&site);
        }
        switch_timeline(&mut site);
        work(&site);
        drain(&site);
        site.cluster()
            .psql("ALTER SYSTEM SET archive_command = '/bin/false'");
        site.cluster().reload();
        for _ in 0..5 {
            work(&site);
            site.master_command(&["sync"]).succeed();
        }
        site.cluster_mut().stop(StopMode::Immediate);
        site.receiver.stop();
        // Else the WAL that makes the tablespace would be held back, flipped or not.
        let space = home.join("space");
        fs::remove_dir_all(&space).unwrap();
        fs::create_dir(&space).unwrap();
        give_to_server(&space);
        let archive = site.archive_folder().to_path_buf();
        let overview = overview_of(&standby_config(site.standby_ini())).unwrap();
        let mut template = Template {
            archive,
            targets: BTreeMap::new(),
            rows,
            overview,
            site,
            _home: home,
        };
        template.freeze_beside();
        template.collect();
        template
    }

    /// FROZEN and the copies of a boot lie in a folder of their own, so that both are there: a
    /// standby that takes records, and one that does not.
    fn freeze_beside(&self) {
        let (from, to) = (self.site.partial_wals(), self.archive.join("logs.frozen"));
        run(Command::new("cp").arg("-a").arg(&from).arg(&to)).unwrap();
        let wals = PartialWals::open(&to, Arc::new(RealDisk)).unwrap();
        let (timeline, _) = self.overview.held.unwrap();
        wals.freeze(timeline, SERVER, false, |_| Ok(true), &|_| Ok(None))
            .unwrap();
        give_to_server(&to);
    }

    fn collect(&mut self) {
        // The places in a segment where a flip is worth most are those of its records and pages.
        stored::unpack_all(&self.archive.join("logs.complete"));
        let mut pending = vec![self.archive.clone()];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(&folder).unwrap().flatten() {
                let path = entry.path();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    pending.push(path);
                } else if kind.is_file() && entry.metadata().unwrap().len() > 0 {
                    self.add(&path);
                }
            }
        }
        for kind in [Kind::Segment, Kind::History, Kind::Partial, Kind::SetWord] {
            assert!(self.targets.contains_key(&kind), "{kind:?} is missing");
        }
    }

    fn add(&mut self, path: &Path) {
        let below = path.strip_prefix(&self.archive).unwrap().to_path_buf();
        let Some(kind) = kind_of(&below) else { return };
        let content = fs::read(path).unwrap();
        let structure = match kind {
            Kind::Segment | Kind::Partial => structure_of(path, &content),
            Kind::Frozen if content.len() as u64 == SEGMENT_BYTES => structure_of(path, &content),
            _ => Vec::new(),
        };
        self.targets.entry(kind).or_default().push(Target {
            kind,
            path: below,
            structure,
            len: content.len() as u64,
        });
    }
}

/// Who was booted, as FROZEN names it.
pub const SERVER: &str = "4711 100";

fn switch_timeline(site: &mut Site) {
    site.cluster_mut().stop(StopMode::Fast);
    let signal = site.data().join("recovery.signal");
    fs::write(&signal, "").unwrap();
    give_to_server(&signal);
    site.cluster_mut()
        .append_conf("restore_command = '/bin/false'");
    site.cluster_mut().start();
    wait_for("timeline 2", std::time::Duration::from_secs(30), || {
        let answer = site.cluster().psql("SELECT pg_is_in_recovery()");
        (answer == "f").then_some(())
    });
    drain(site);
    assert!(site.holds("00000002.history"));
}

fn kind_of(below: &Path) -> Option<Kind> {
    let name = below.file_name()?.to_str()?;
    let first = below.components().next()?.as_os_str().to_str()?;
    let is_segment = name.len() == 24 && name.parse::<SegmentName>().is_ok();
    // Those of walmgr's own folders have the names of what they are kept for.
    let is_finished = first == "logs.complete" && below.components().count() == 2;
    let is_wal = is_finished && name.parse::<WalFileName>().is_ok();
    Some(match first {
        "logs.complete" if matches!(name, ".walmgr-lock" | "BACKUPLOCK") => return None,
        "logs.complete" if is_wal && name.ends_with(".history") => Kind::History,
        "logs.complete" if is_wal && name.ends_with(".backup") => Kind::BackupHistory,
        "logs.complete" if is_wal => Kind::Segment,
        "logs.complete" => Kind::Own,
        "logs.partial" if is_segment => Kind::Partial,
        "logs.partial" => Kind::Own,
        "logs.frozen" => Kind::Frozen,
        "config" => Kind::Config,
        _ if !first.starts_with("data.master") => return None,
        _ => match name {
            "backup_label"
            | "tablespace_map"
            | "backup_manifest"
            | "pg_control"
            | "postgresql.auto.conf"
            | "postgresql.conf"
            | "PG_VERSION" => Kind::SetWord,
            _ => Kind::SetData,
        },
    })
}

/// Where records and pages begin, and what lies around the boundaries of the segment.
fn structure_of(path: &Path, content: &[u8]) -> Vec<u64> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let Ok(segment) = name[..24].parse::<SegmentName>() else {
        return Vec::new();
    };
    let size = WalSegmentSize::new(u32::try_from(SEGMENT_BYTES).unwrap()).unwrap();
    let start = segment.start(size).unwrap();
    let mut scanner = Scanner::new(start, size);
    let (mut rest, mut found) = (content, Vec::new());
    while let ScanStep::Record(record) = scanner.advance(&mut rest) {
        if record.lsn >= start {
            found.push(record.lsn.0 - start.0);
        }
    }
    found.extend((0..content.len() as u64).step_by(8192));
    found.extend([0, 8, 16, 24, 32].map(|back| (content.len() as u64).saturating_sub(back + 8)));
    let end = scanner.valid_end().max(start);
    found.extend([end.0 - start.0, end.0 - start.0 - (end.0 - start.0).min(8)]);
    found
}

pub fn standby_config(ini: &Path) -> StandbyConfig {
    let loaded = config::load(ini, &[]).unwrap();
    loaded.into_standby("the test").unwrap()
}

pub fn overview_of(config: &StandbyConfig) -> Result<Overview, String> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let full_backup = config.full_backup.as_deref();
    survey(&ArchiveFolders::of(config), full_backup, &disk, None).map_err(|error| error.to_string())
}

/// A copy of the template that may be spoilt.
pub struct Lab {
    pub home: TempDir,
    pub archive: PathBuf,
    pub ini: PathBuf,
    pub config: StandbyConfig,
    pub slave_data: PathBuf,
    original: PathBuf,
}

impl Lab {
    pub fn of(template: &Template) -> Lab {
        // Beside the template, as only there files can be shared.
        let home = TempDir::in_memory();
        let archive = home.join("archive");
        run(Command::new("cp")
            .arg("-al")
            .arg(&template.archive)
            .arg(&archive))
        .unwrap();
        for folder in ["logs.partial", "logs.frozen"] {
            let copy = archive.join(folder);
            fs::remove_dir_all(&copy).unwrap();
            run(Command::new("cp")
                .arg("-a")
                .arg(template.archive.join(folder))
                .arg(&copy))
            .unwrap();
        }
        let slave_data = home.join("server");
        let ini = home.join("standby.ini");
        let at = |name: &str| archive.join(name).display().to_string();
        let text = format!(
            "[walmgr]\nwalmgr_data = {}\ncompleted_wals = {}\npartial_wals = {}\nfull_backup = {}\n\
             config_backup = {}\nslave_data = {}\nlisten = 127.0.0.1:{}\ntls = off\nrestore_wait = 1ms\n",
            archive.display(),
            at("logs.complete"),
            at("logs.partial"),
            at("data.master"),
            at("config"),
            slave_data.display(),
            free_port(),
        );
        fs::write(&ini, text).unwrap();
        give_to_server(&ini);
        Lab {
            config: standby_config(&ini),
            original: template.archive.clone(),
            home,
            archive,
            ini,
            slave_data,
        }
    }

    /// walmgr with the lab's settings.
    pub fn walmgr(&self, words: &[&str]) -> Command {
        let mut command = walmgr();
        command.arg(&self.ini).args(words);
        command
    }

    /// The content of a file before any flip.
    pub fn before(&self, below: &Path) -> Vec<u8> {
        fs::read(self.original.join(below)).unwrap()
    }

    /// Flips a bit of a file, which is shared with nobody from then on.
    pub fn flip(&self, below: &Path, bit: u64) {
        let mut content = self.before(below);
        content[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
        self.put(below, &content);
    }

    /// Takes the flip back.
    pub fn mend(&self, below: &Path) {
        self.put(below, &self.before(below));
    }

    fn put(&self, below: &Path, content: &[u8]) {
        let (path, original) = (self.archive.join(below), self.original.join(below));
        let like = fs::metadata(original).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(like.mode())).unwrap();
        chown(&path, Some(like.uid()), Some(like.gid())).unwrap();
    }
}

/// The end of what is held.
pub fn held_end(overview: &Overview) -> Lsn {
    overview.held.map_or(Lsn(0), |(_, end)| end)
}
