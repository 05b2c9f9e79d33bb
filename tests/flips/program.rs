//! The same questions put to the program: a receiver that is started, status, lists, a restore, a boot.
//! Never reuses a lab. Invariant: an exit code of 0 stands for what was acknowledged, all of it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::template::{Kind, Lab, Target, Template, held_end};
use crate::support::place::{TempDir, give_to_server};
use crate::support::receiver::Receiver;
use crate::support::{Cluster, Output, walmgr_binary};

/// The least that is free on a machine that runs tests.
const SPACE: [&str; 2] = ["--warning-free=0", "--critical-free=0"];

/// Starts a receiver on a lab with this flip, and asks what it and the commands say.
pub fn ask(template: &Template, target: &Target, bit: u64) -> Result<(), String> {
    let lab = Lab::of(template);
    lab.flip(&target.path, bit);
    let told = |why: String| format!("{}, bit {bit}: {why}", target.path.display());
    let mut receiver = Receiver::new(lab.home.join("receiver.log"));
    let started = receiver.start(&mut lab.walmgr(&["receiver"]));
    sane(&receiver.log()).map_err(told)?;
    let is_refused = started.is_err();
    let status = [&["--json", "status"], &SPACE[..]].concat();
    let status = Output::of(&mut lab.walmgr(&status));
    let lists = Output::of(&mut lab.walmgr(&["--json", "listbackups"]));
    for output in [&status, &lists] {
        sane(&output.stderr).map_err(told)?;
    }
    let told_of = is_refused || is_told(&status);
    let end = held_text(&status);
    if !told_of && end != held_end(&template.overview).to_string() {
        return Err(told(format!("status says {end} and nothing else")));
    }
    kept(&lab, target, told_of).map_err(told)?;
    if matches!(target.kind, Kind::SetWord) {
        moved(&lab, target).map_err(told)?;
    }
    Ok(())
}

/// No panic, and no exit by a signal.
fn sane(said: &str) -> Result<(), String> {
    match said.contains("panic") {
        true => Err(said.to_owned()),
        false => Ok(()),
    }
}

fn is_told(status: &Output) -> bool {
    let parsed: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
    let findings = parsed["findings"].as_array().cloned().unwrap_or_default();
    // It has no server, and nobody made a second backup: that is not about the flip.
    let own = [
        "no_receiver",
        "standby_server",
        "backup_age",
        "clock",
        "lag",
    ];
    findings
        .iter()
        .any(|found| !own.contains(&found["code"].as_str().unwrap_or_default()))
}

fn held_text(status: &Output) -> String {
    let parsed: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
    parsed["archive"]["held_lsn"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// What was acknowledged is still there after a start, under its name or set aside beside it.
fn kept(lab: &Lab, target: &Target, is_told: bool) -> Result<(), String> {
    if !matches!(target.kind, Kind::Partial | Kind::Segment) {
        return Ok(());
    }
    let path = lab.archive.join(&target.path);
    let before = lab.before(&target.path);
    let differs = |path: &Path| {
        let content = fs::read(path).unwrap_or_default();
        let pairs = content.iter().zip(&before);
        let other = pairs.filter(|(one, other)| one != other).count();
        other + before.len().saturating_sub(content.len())
    };
    let name = path.file_name().unwrap().to_str().unwrap();
    let beside = fs::read_dir(path.parent().unwrap()).unwrap().flatten();
    let copies = beside.filter(|entry| entry.file_name().to_string_lossy().starts_with(name));
    let best = copies.map(|entry| differs(&entry.path())).min();
    match best {
        Some(0 | 1) => Ok(()),
        other => Err(format!("bytes that are lost: {other:?}, told: {is_told}")),
    }
}

/// A restore that moves the set brings it as it was, or refuses.
fn moved(lab: &Lab, target: &Target) -> Result<(), String> {
    let restore = Output::of(&mut lab.walmgr(&["restore"]));
    sane(&restore.stderr)?;
    if restore.code != Some(0) {
        return Ok(());
    }
    let within: std::path::PathBuf = target.path.components().skip(1).collect();
    let (found, before) = (
        fs::read(lab.slave_data.join(&within)),
        lab.before(&target.path),
    );
    // The restore adds its own settings to these, and takes away what orders something.
    let is_changed = ["postgresql.auto.conf", "postgresql.conf"];
    if is_changed.contains(&within.to_str().unwrap()) {
        return Err(format!(
            "{} is restored although it is not what was sealed",
            within.display()
        ));
    }
    match found.is_ok_and(|found| found == before) {
        true => Ok(()),
        false => Err(format!("{} is restored as it is not", within.display())),
    }
}

/// Restores the set, lets it replay, and boots: all rows, or no success.
pub fn boot(template: &Template, target: &Target, bit: u64) -> Result<(), String> {
    let lab = Lab::of(template);
    let told = |why: String| format!("{}, bit {bit}, booted: {why}", target.path.display());
    lab.flip(&target.path, bit);
    let copied = Output::of(&mut lab.walmgr(&["restore", "data.master"]));
    if copied.code != Some(0) {
        return sane(&copied.stderr).map_err(told);
    }
    let server = replaying(&lab)?;
    let Some(mut server) = server else {
        return Ok(());
    };
    let boot = Output::of(&mut lab.walmgr(&["boot"]));
    sane(&boot.stderr).map_err(told)?;
    let rows = server.try_psql("SELECT count(*) FROM t");
    server.stop(crate::support::StopMode::Immediate);
    match (boot.code, rows) {
        (Some(0), Ok(rows)) if rows == template.rows.to_string() => Ok(()),
        (Some(0), rows) => Err(told(format!("0 with {rows:?} rows: {}", boot.stdout))),
        (Some(_), _) => Ok(()),
        (None, _) => Err(told("boot ended by a signal".to_owned())),
    }
}

/// The restored server, as far as it starts.
fn replaying(lab: &Lab) -> Result<Option<Cluster>, String> {
    let mut conf = fs::read_to_string(lab.slave_data.join("postgresql.conf")).unwrap_or_default();
    let (walmgr, ini) = (walmgr_binary().display(), lab.ini.display());
    let home: &TempDir = &lab.home;
    let hba = home.write("pg_hba.conf", "local all all trust\n");
    conf.push_str(&format!(
        "\nhba_file = '{}'\nfsync = off\nhot_standby = on\nrestore_command = '{walmgr} {ini} xrestore %f %p %r'\n",
        hba.display()
    ));
    let path = lab.slave_data.join("postgresql.conf");
    fs::write(&path, conf).map_err(|error| error.to_string())?;
    give_to_server(&path);
    let mut server = Cluster::on_directory(15, &lab.slave_data);
    match server.try_start() {
        Ok(()) => {}
        Err(_) => return Ok(None),
    }
    // The end of the archive may be near or far, or behind what is damaged.
    std::thread::sleep(Duration::from_millis(300));
    Ok(Some(server))
}
