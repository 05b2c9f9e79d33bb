//! What must hold of a standby whatever bit of it is flipped, asked file by file in this process.
//! Never changes a lab beyond the flip. Invariant: what is handed on is what was acknowledged, or an
//! error; an end does not move without a word.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use walmgr::test_support::options::Options;
use walmgr::test_support::standby::xrestore;
use walmgr::test_support::store::sets::{BackupSets, Copying};
use walmgr::test_support::store::{
    ArchiveReader, ConfigCopies, Disk, Freeze, LIST_NAME, PartialEnd, PartialWals, RealDisk,
};
use walmgr_protocol::message::Overview;
use walmgr_protocol::names::WalFileName;

use super::template::{Kind, Lab, SERVER, Target, Template, held_end, overview_of};

/// What a healthy standby answers; every lab is compared with it.
pub struct Expected {
    overview: Overview,
    labels: Vec<String>,
    ends: Vec<PartialEnd>,
    freeze: Freeze,
    files: Vec<WalFileName>,
}

impl Expected {
    pub fn of(template: &Template, lab: &Lab) -> Expected {
        let wals = PartialWals::open(&lab.config.partial_wals, Arc::new(RealDisk)).unwrap();
        let names = fs::read_dir(lab.archive.join("logs.complete")).unwrap();
        let names = names.flatten().filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.parse().ok()
        });
        Expected {
            overview: template.overview.clone(),
            labels: labels(lab).unwrap(),
            ends: wals.ends().unwrap(),
            freeze: frozen_wals(lab).frozen().unwrap().unwrap(),
            files: names.collect(),
        }
    }
}

/// Everything that is wrong with what a lab with this flip answers.
pub fn broken(lab: &Lab, expected: &Expected, target: &Target) -> Result<(), String> {
    let asked = catch_unwind(AssertUnwindSafe(|| ask(lab, expected, target)));
    asked.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        Err(format!("panicked: {}", words.unwrap_or_default()))
    })
}

fn ask(lab: &Lab, expected: &Expected, target: &Target) -> Result<(), String> {
    match target.kind {
        Kind::Segment | Kind::History | Kind::BackupHistory => {
            restored(lab, name_of(&target.path))?;
        }
        Kind::Own => own(lab, expected, target)?,
        Kind::Partial => partial(lab, expected)?,
        Kind::Frozen => frozen(lab, expected)?,
        Kind::SetWord | Kind::SetData => copied(lab, &target.path)?,
        Kind::Config => configured(lab, target)?,
    }
    if matches!(
        target.kind,
        Kind::Segment | Kind::History | Kind::Own | Kind::Partial
    ) {
        surveyed(lab, expected)?;
    }
    if target.kind == Kind::SetWord {
        listed(lab, expected)?;
    }
    Ok(())
}

fn name_of(path: &Path) -> WalFileName {
    path.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// `xrestore` hands over what was acknowledged, or nothing. Whether it did.
fn restored(lab: &Lab, name: WalFileName) -> Result<bool, String> {
    let to = lab.home.join("restored");
    let _ = fs::remove_file(&to);
    let options = Options::default();
    if xrestore::run(&lab.config, &options, name, &to).is_err() {
        return match to.exists() {
            true => Err(format!("xrestore {name} failed and left a file")),
            false => Ok(false),
        };
    }
    let before = lab.before(&Path::new("logs.complete").join(name.to_string()));
    match fs::read(&to).is_ok_and(|content| content == before) {
        true => Ok(true),
        false => Err(format!(
            "xrestore {name} handed on what was never acknowledged"
        )),
    }
}

/// A mark of walmgr's own that cannot be read hides nothing and invents nothing.
fn own(lab: &Lab, expected: &Expected, target: &Target) -> Result<(), String> {
    let beside = target.path.file_name().unwrap().to_str().unwrap();
    let of = expected
        .files
        .iter()
        .find(|name| beside.starts_with(&name.to_string()));
    match of {
        // Something kept beside a finished file: not known, and not damage.
        Some(name) if target.path.starts_with("logs.complete") => {
            if !restored(lab, *name)? {
                let again = xrestore::run(
                    &lab.config,
                    &Options::default(),
                    *name,
                    &lab.home.join("restored"),
                );
                return Err(format!(
                    "{beside} has a flipped bit, and {name} is refused for it: {again:?}"
                ));
            }
        }
        _ => {
            restored(lab, expected.files[0])?;
        }
    }
    partial(lab, expected)
}

/// Where shipped records end is where they ended, or an error.
fn partial(lab: &Lab, expected: &Expected) -> Result<(), String> {
    let Ok(wals) = PartialWals::open(&lab.config.partial_wals, Arc::new(RealDisk)) else {
        return Ok(());
    };
    if let Ok(ends) = wals.ends() {
        at_least(&ends, &expected.ends, "the ends that boot looks at")?;
    }
    let (timeline, _) = expected.overview.held.unwrap();
    let archive = ArchiveReader::open(&lab.config.completed_wals, Arc::new(RealDisk));
    let before = |segment| match &archive {
        Ok(archive) => archive.scanner_before(segment),
        Err(_) => Ok(None),
    };
    let freeze = wals.freeze(timeline, SERVER, false, |_| Ok(true), &before);
    let thawed = wals.thaw();
    if let Ok(freeze) = freeze {
        for wanted in expected.freeze.segments.iter().flatten() {
            let same = freeze
                .segments
                .iter()
                .flatten()
                .find(|copy| copy.segment == wanted.segment);
            if same.is_none_or(|copy| copy.end < wanted.end) {
                return Err(format!(
                    "{} was frozen to {same:?}, not {wanted:?}",
                    wanted.segment
                ));
            }
        }
    }
    thawed.map(|_| ()).map_err(|error| format!("thaw: {error}"))
}

fn at_least(found: &[PartialEnd], wanted: &[PartialEnd], what: &str) -> Result<(), String> {
    for end in wanted {
        let same = found.iter().find(|found| found.segment == end.segment);
        if same.is_none_or(|found| found.end < end.end && found.damage.is_none()) {
            return Err(format!(
                "{what}: {} ends at {same:?}, not {}",
                end.segment, end.end
            ));
        }
    }
    Ok(())
}

fn frozen_wals(lab: &Lab) -> PartialWals {
    PartialWals::open(&lab.archive.join("logs.frozen"), Arc::new(RealDisk)).unwrap()
}

/// What is frozen is what was frozen, and so are the copies that are replayed.
fn frozen(lab: &Lab, expected: &Expected) -> Result<(), String> {
    let path = lab.archive.join("logs.frozen");
    let Ok(wals) = PartialWals::open(&path, Arc::new(RealDisk)) else {
        return Ok(());
    };
    let freeze = match wals.frozen() {
        Err(_) => return Ok(()),
        Ok(None) => return Err("the standby forgot that it was booted".to_owned()),
        Ok(Some(freeze)) => freeze,
    };
    if freeze != expected.freeze {
        return Err(format!("FROZEN says {freeze:?}, not {:?}", expected.freeze));
    }
    for copy in freeze.segments.iter().flatten() {
        let mut content = Vec::new();
        let read = wals.read_copy(copy, |piece| {
            content.extend_from_slice(piece);
            true
        });
        let name = Path::new("logs.frozen").join(format!("{}.frozen", copy.segment));
        let before = lab.before(&name);
        if read.is_ok() && !content.starts_with(&before) {
            return Err(format!("{} is handed on as it is not", name.display()));
        }
    }
    Ok(())
}

/// What `status` looks at: the end stays, or something is said.
fn surveyed(lab: &Lab, expected: &Expected) -> Result<(), String> {
    let Ok(overview) = overview_of(&lab.config) else {
        return Ok(());
    };
    let is_told = overview.cluster.is_none()
        || overview.damaged_count > expected.overview.damaged_count
        || overview.missing != expected.overview.missing
        || !overview.trouble.is_empty();
    let (found, before) = (held_end(&overview), held_end(&expected.overview));
    let same = overview.held.map(|held| held.0) == expected.overview.held.map(|held| held.0);
    match is_told || (same && found >= before) {
        true => Ok(()),
        false => Err(format!(
            "status: held {:?}, not {:?}",
            overview.held, expected.overview.held
        )),
    }
}

fn labels(lab: &Lab) -> Result<Vec<String>, String> {
    let sets = BackupSets::open(
        lab.config.full_backup.as_deref().unwrap(),
        &lab.config.completed_wals,
        &(Arc::new(RealDisk) as Arc<dyn Disk>),
    );
    let list = sets
        .and_then(|sets| sets.list())
        .map_err(|error| error.to_string())?;
    let told = list.into_iter().map(|set| {
        let name = set.name.clone();
        match set.readable_label(&[], None) {
            Ok(label) => format!("{name} {label:?}"),
            Err(why) => format!("{name} {why}"),
        }
    });
    Ok(told.collect())
}

/// A set is listed as it was, or as one that cannot be read.
fn listed(lab: &Lab, expected: &Expected) -> Result<(), String> {
    let Ok(found) = labels(lab) else {
        return Ok(());
    };
    let broken = found
        .iter()
        .zip(&expected.labels)
        .find(|(found, before)| found != before && found.contains("BackupLabel {"));
    match broken {
        _ if found.len() != expected.labels.len() => Err(format!("listed are {found:?}")),
        Some((found, before)) => Err(format!("listed as {found}, not {before}")),
        None => Ok(()),
    }
}

/// A copy of a configuration file is what its backup brought, or `restore` and `status` hear of it.
fn configured(lab: &Lab, target: &Target) -> Result<(), String> {
    let folder = lab.archive.join("config");
    let is_list = target.path.ends_with(LIST_NAME);
    match ConfigCopies::read(&folder).damage() {
        None if !is_list => Err("config_backup is handed on as it is not".to_owned()),
        Some(why) if is_list => Err(format!("a list that says nothing says {why}")),
        _ => Ok(()),
    }
}

/// A copy of a set is the set, or an error.
fn copied(lab: &Lab, path: &Path) -> Result<(), String> {
    let to = lab.home.join("copied");
    let _ = fs::remove_dir_all(&to);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let full_backup = lab.config.full_backup.as_deref().unwrap();
    let sets = BackupSets::open(full_backup, &lab.config.completed_wals, &disk).unwrap();
    let Ok(set) = sets.hold(sets.newest()) else {
        return Ok(());
    };
    let copied = set.copy(Copying {
        to: &to,
        control_name: "global/pg_control",
        tablespaces: &std::collections::BTreeMap::new(),
        shares: false,
        taken: None,
        progress: &mut |_| true,
    });
    if copied.is_err() {
        return Ok(());
    }
    let within: std::path::PathBuf = path.components().skip(1).collect();
    let content = fs::read(to.join(&within));
    match content.is_ok_and(|content| content == lab.before(path)) {
        true => Ok(()),
        false => Err(format!("{} is copied as it is not", within.display())),
    }
}
