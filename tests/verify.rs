//! `verify` beside real servers: every flipped bit is named, a second run reads next to nothing, what else runs is no
//! finding, and its windows are the master's commits. Never looks at how a file is read. Invariant tested: the
//! archive is the same before and behind it, but for its own notes.
//!
//! `WALMGR_SOAK=1` flips a thousand bits instead of sixty, and reads a thousand segments instead of forty.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::cluster::Builder;
use crate::support::dice::Dice;
use crate::support::strace::Strace;
use crate::support::{Cluster, Output, Site, soak, wait_for};

/// What a page of a relation has.
const PAGE_BYTES: u64 = 8_192;

/// How long files have to be left alone before `verify` remembers them, and some time more.
const SETTLED: Duration = Duration::from_millis(2_500);

fn site_of(cluster: Builder) -> Site {
    let cluster = cluster.conf("archive_mode", "on").start();
    let site = Site::builder().cluster(cluster).build();
    site.master_command(&["setup"]).succeed();
    site
}

/// Small segments and checked pages.
fn checked() -> Builder {
    Cluster::builder()
        .wal_segment_size_mb(1)
        .initdb_arg("--data-checksums")
}

fn verify(site: &Site, words: &[&str]) -> (Output, Value) {
    let words = [&["verify", "--json"], words].concat();
    let output = site.standby_command(&words);
    let json = serde_json::from_str(&output.stdout);
    let json = json.unwrap_or_else(|_| panic!("{}\n{}", output.stdout, output.stderr));
    (output, json)
}

#[track_caller]
fn well(site: &Site, words: &[&str]) -> Value {
    let (output, json) = verify(site, words);
    assert_eq!(output.code, Some(0), "{}{}", output.stdout, output.stderr);
    assert_eq!(json["state"], "ok");
    json
}

/// Waits until everything that the server has finished is archived.
fn drain(site: &Site) {
    site.cluster().psql("SELECT pg_create_restore_point('x')");
    let last = site
        .cluster()
        .psql("SELECT pg_walfile_name(pg_switch_wal())");
    wait_for("the last segment", Duration::from_secs(120), || {
        site.holds(&last).then_some(())
    });
}

/// Every file below a directory.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            files.extend(files_below(&path));
        } else if kind.is_file() {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn flip(path: &Path, bit: u64) {
    let file = fs::File::options().read(true).write(true).open(path);
    let (file, mut byte) = (file.unwrap(), [0]);
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

/// A file that was flipped, as a finding names it, and where.
struct Flipped {
    path: PathBuf,
    set: Option<String>,
    file: String,
    bit: u64,
}

/// Chooses files of the archive and of its sets, no file twice, and flips a bit in each.
fn throw(site: &Site, files: &[PathBuf], dice: &mut Dice, count: u64) -> Vec<Flipped> {
    let mut flipped: BTreeMap<PathBuf, Flipped> = BTreeMap::new();
    while (flipped.len() as u64) < count {
        let path = dice.choose(files);
        let below = path.strip_prefix(site.archive_folder()).unwrap();
        let (first, rest) = below.to_str().unwrap().split_once('/').unwrap();
        let set = first.starts_with("data.master").then(|| first.to_owned());
        let bit = dice.below(fs::metadata(path).unwrap().len() * 8);
        let thrown = Flipped {
            path: path.clone(),
            set,
            file: rest.to_owned(),
            bit,
        };
        flipped.entry(path.clone()).or_insert(thrown);
    }
    let flipped: Vec<Flipped> = flipped.into_values().collect();
    for it in &flipped {
        flip(&it.path, it.bit);
    }
    flipped
}

/// What is wrong with what is told of a flip, if anything is; and whether its place was told.
fn told(found: &[Value], flipped: &Flipped) -> Result<bool, String> {
    let Flipped { set, file, bit, .. } = flipped;
    let own = found
        .iter()
        .find(|finding| finding["file"] == **file && finding["set"].as_str() == set.as_deref());
    let own = own.ok_or_else(|| format!("{set:?} {file}, bit {bit} is not told"))?;
    let Some(offset) = own["offset_bytes"].as_u64() else {
        return Ok(false);
    };
    let byte = bit / 8;
    let is_there = match set {
        // The page that holds it.
        Some(_) => offset == byte - byte % PAGE_BYTES,
        // The record, or the page, that begins before it.
        None => offset <= byte,
    };
    match is_there {
        true => Ok(true),
        false => Err(format!("{set:?} {file}: byte {byte}, told {offset}: {own}")),
    }
}

#[test]
fn fault_155_every_flipped_bit_is_named_by_its_file_and_place() {
    skip_unless!(Cluster::available(15));
    let site = site_of(checked());
    site.cluster().pgbench(&["-i", "-q", "-s", "2"]);
    site.cluster().psql("CHECKPOINT");
    site.master_command(&["backup"]).succeed();
    site.cluster()
        .psql("DELETE FROM pgbench_accounts WHERE aid % 2 = 0");
    drain(&site);
    well(&site, &[]);
    let is_empty = |path: &PathBuf| fs::metadata(path).unwrap().len() == 0;
    let mut files = files_below(&site.archive_folder().join("data.master"));
    // Without these no place is known in any other file of the set.
    let whole = ["backup_manifest", "backup_label"];
    files.retain(|path| !is_empty(path) && !whole.iter().any(|name| path.ends_with(name)));
    let segments: Vec<PathBuf> = site
        .archived_names()
        .into_iter()
        .filter(|name| name.len() == 24)
        .map(|name| site.unpacked_path(name))
        .collect();
    // As many of the one kind as of the other.
    while files.len() < 2 * segments.len() {
        files.extend(segments.clone());
    }
    let flips_a_round = 20.min(segments.len() as u64 / 2);
    let rounds = if soak() { 1_000 / flips_a_round + 1 } else { 3 };
    let (mut dice, mut wrong) = (Dice::thrown("verify"), Vec::new());
    let (mut placed, mut thrown) = (0, 0);
    for _ in 0..rounds {
        let flipped = throw(&site, &files, &mut dice, flips_a_round);
        let (output, json) = verify(&site, &[]);
        assert_eq!(output.code, Some(2), "{}", output.stderr);
        let found = json["findings"].as_array().unwrap();
        for it in &flipped {
            thrown += 1;
            match told(found, it) {
                Ok(is_placed) => placed += u64::from(is_placed),
                Err(why) => wrong.push(why),
            }
            flip(&it.path, it.bit);
        }
    }
    println!("{thrown} flips, {placed} with their place");
    assert!(
        wrong.is_empty(),
        "{} of {thrown}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        placed * 2 > thrown,
        "only {placed} of {thrown} with a place"
    );
    for name in whole {
        let path = site.archive_folder().join("data.master").join(name);
        flip(&path, 8);
        let (output, json) = verify(&site, &[]);
        assert_eq!(output.code, Some(2));
        let found = json["findings"].as_array().unwrap();
        assert!(found.iter().any(|it| it["file"] == name), "{json}");
        flip(&path, 8);
    }
    well(&site, &[]);
    let listed = site.standby_command(&["listbackups", "--json"]).succeed();
    assert!(!listed.contains("error"), "{listed}");
}

#[test]
fn fault_155_a_removed_segment_is_a_gap_and_ends_the_window() {
    skip_unless!(Cluster::available(15));
    let site = site_of(checked());
    site.master_command(&["backup"]).succeed();
    for number in 0..4 {
        site.cluster()
            .psql(&format!("CREATE TABLE t{number} (n int)"));
        drain(&site);
    }
    let json = well(&site, &[]);
    let end = json["sets"][0]["end_lsn"].clone();
    let names = site.archived_names();
    let segments: Vec<&String> = names.iter().filter(|name| name.len() == 24).collect();
    let victim = segments[segments.len() - 2];
    let path = site.unpacked_path(victim);
    let away = site.home().join("away");
    fs::rename(&path, &away).unwrap();
    let (output, json) = verify(&site, &[]);
    assert_eq!(output.code, Some(2), "{}", output.stdout);
    let finding = &json["findings"][0];
    assert_eq!(
        (&finding["code"], &finding["file"]),
        (&"gap".into(), &victim.as_str().into())
    );
    assert_ne!(json["sets"][0]["end_lsn"], end);
    let said = site.standby_command(&["verify", "data.master"]).stdout;
    assert!(
        said.starts_with(&format!("critical: {victim} at ")),
        "{said}"
    );
    assert!(
        said.contains("data.master cannot be recovered beyond it; archive it"),
        "{said}"
    );
    fs::rename(&away, &path).unwrap();
    well(&site, &[]);
}

#[test]
fn a_window_ends_with_the_masters_last_commit() {
    skip_unless!(Cluster::available(15));
    let site = site_of(checked().conf("track_commit_timestamp", "on"));
    site.master_command(&["backup"]).succeed();
    // Written as a row of its own transaction: when that committed.
    let commit = |table: &str| {
        let xid = site.cluster().psql(&format!(
            "CREATE TABLE {table} (n int); SELECT xmin::text FROM pg_class WHERE relname = '{table}'"
        ));
        let xid = xid.lines().last().unwrap().to_owned();
        site.cluster().psql(&format!(
            "SELECT to_char(pg_xact_commit_timestamp('{xid}') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')"
        ))
    };
    let first = commit("first");
    drain(&site);
    commit("between");
    drain(&site);
    let last = commit("last");
    drain(&site);
    let json = well(&site, &["data.master"]);
    let set = &json["sets"][0];
    let time = |commit: &Value| {
        let text = commit["time"]
            .as_str()
            .unwrap()
            .trim_end_matches('Z')
            .to_owned();
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        format!("{whole}.{fraction:0<6}")
    };
    assert_eq!(time(&set["first_commit"]), first);
    assert_eq!(time(&set["last_commit"]), last);
    assert_eq!(set["is_recoverable"], true);
    // Remembered, they are the same.
    std::thread::sleep(SETTLED);
    well(&site, &[]);
    let again = well(&site, &[]);
    assert_eq!(again["sets"][0], *set);
    assert!(again["files_skipped"].as_u64().unwrap() > 100);
}

/// What the system calls of a traced run read.
fn bytes_read(strace: &Strace) -> u64 {
    let results = strace.log().into_iter().filter_map(|line| {
        let (_, result) = line.rsplit_once(" = ")?;
        result.parse::<u64>().ok()
    });
    results.sum()
}

#[test]
fn fault_156_a_second_run_over_a_large_archive_reads_next_to_nothing() {
    skip_unless!(Cluster::available(15));
    let strace = skip_unless!(Strace::available());
    let site = site_of(checked());
    let segments = if soak() { 1_000 } else { 40 };
    site.cluster().pgbench(&["-i", "-q", "-s", "3"]);
    for _ in 0..3 {
        site.master_command(&["backup"]).succeed();
    }
    for _ in 0..segments {
        site.cluster()
            .psql("SELECT pg_logical_emit_message(true, 'x', 'y')");
        site.cluster().psql("SELECT pg_switch_wal()");
    }
    drain(&site);
    std::thread::sleep(SETTLED);
    let first = well(&site, &[]);
    let count = |json: &Value, member: &str| json[member].as_u64().unwrap();
    assert!(count(&first, "segments") >= segments);
    assert_eq!(first["sets"].as_array().unwrap().len(), 3);
    let traced = strace.trace("read,pread64,readv,preadv").unprivileged();
    let output = Output::of(&mut traced.wrap(&site.standby_walmgr(&["verify", "--json"])));
    assert_eq!(output.code, Some(0), "{}{}", output.stdout, output.stderr);
    let second: Value = serde_json::from_str(&output.stdout).unwrap();
    let (before, own) = (count(&first, "bytes_read"), count(&second, "bytes_read"));
    let by_system = bytes_read(&traced);
    println!("{before} bytes, then {own}; {by_system} by its system calls");
    let share = if soak() { 100 } else { 20 };
    assert!(own * share < before, "{own} of {before}");
    assert!(by_system * share < before, "{by_system} of {before}");
    assert!(own <= by_system, "{own} told, {by_system} read");
    assert_eq!(count(&second, "bytes_skipped") + own, before);
    // What is new is read.
    drain(&site);
    let third = well(&site, &[]);
    let more = count(&third, "bytes_read") - own;
    assert!((1..8 << 20).contains(&more), "{more}");
    assert!(count(&third, "segments") > count(&second, "segments"));
}

#[test]
fn fault_157_what_runs_beside_verify_is_no_finding() {
    skip_unless!(Cluster::available(15));
    let mut site = site_of(checked());
    site.standby_set("keep_backups", "2");
    site.standby_set("keep_minimum_age", "0");
    site.restart_receiver();
    site.cluster().pgbench(&["-i", "-q"]);
    site.master_command(&["backup"]).succeed();
    let (site, ends) = (&site, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            for _ in 0..if soak() { 20 } else { 4 } {
                site.cluster().pgbench(&["-n", "-t", "200"]);
                site.cluster().psql("SELECT pg_switch_wal()");
                site.master_command(&["backup"]).succeed();
                site.standby_command(&["xpurgewals"]).succeed();
            }
            ends.store(true, Ordering::SeqCst);
        });
        while !ends.load(Ordering::SeqCst) && !beside.is_finished() {
            let output = site.standby_command(&["verify", "--all"]);
            assert_eq!(output.code, Some(0), "{}{}", output.stdout, output.stderr);
            assert!(!output.stderr.contains("ALARM"), "{}", output.stderr);
        }
        beside.join().unwrap();
    });
    well(site, &[]);
}

/// Everything in the archive but `verify`'s notes: names, lengths and times.
fn state_of(site: &Site) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let files = files_below(site.archive_folder()).into_iter();
    let own = files.filter(|path| {
        !path
            .components()
            .any(|part| part.as_os_str() == ".verified")
    });
    own.map(|path| {
        let stat = fs::metadata(&path).unwrap();
        (path, stat.len(), stat.modified().unwrap())
    })
    .collect()
}

#[test]
fn fault_157_a_killed_verify_leaves_nothing_and_the_next_one_works() {
    skip_unless!(Cluster::available(15));
    let mut site = site_of(checked());
    site.cluster().pgbench(&["-i", "-q"]);
    site.master_command(&["backup"]).succeed();
    drain(&site);
    site.receiver.stop();
    std::thread::sleep(SETTLED);
    let before = state_of(&site);
    let mut dice = Dice::thrown("killed verify");
    for _ in 0..if soak() { 60 } else { 8 } {
        let mut child = site
            .standby_walmgr(&["verify", "-q", "--all"])
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(dice.below(400)));
        let _ = child.kill();
        child.wait().unwrap();
    }
    let json = well(&site, &[]);
    assert_eq!(json["findings"].as_array().unwrap().len(), 0);
    let notes = site.completed_wals().join(".verified");
    let left = files_below(&notes);
    let is_temporary = |path: &PathBuf| path.to_str().unwrap().contains(".in.");
    assert!(!left.iter().any(is_temporary), "{left:?}");
    assert_eq!(state_of(&site), before, "the archive is unchanged");
    // A foreign or torn note is none.
    fs::write(notes.join("wal"), "verified 1 wal\ncheck 00000000\n").unwrap();
    let again = well(&site, &[]);
    let count = |member: &str| again[member].as_u64().unwrap();
    assert!(
        count("segments") > 3 && count("files_read") >= count("segments"),
        "{again}"
    );
}

#[test]
fn verify_says_what_it_would_do_and_refuses_what_is_not_there() {
    skip_unless!(Cluster::available(15));
    let site = site_of(checked());
    site.master_command(&["backup"]).succeed();
    let notes = site.completed_wals().join(".verified");
    let would = site.standby_command(&["verify", "-n"]).succeed();
    assert!(
        would.starts_with("would read ") && would.contains("1 backup sets"),
        "{would}"
    );
    for (set, says) in [
        ("data.master.7", "there is no backup set data.master.7"),
        ("no/set", "no/set"),
    ] {
        let refused = site.standby_command(&["verify", set]);
        let line = refused.fail(2);
        assert!(
            line.contains(says) && line.contains("listbackups"),
            "{line}"
        );
    }
    assert!(!notes.exists(), "nothing was made");
    let quiet = site.standby_command(&["verify", "-q"]);
    assert_eq!((quiet.code, quiet.stdout.as_str()), (Some(0), ""));
    let said = site.standby_command(&["verify"]).succeed();
    assert!(said.ends_with("all is well"), "{said}");
    fs::write(site.archive_folder().join("data.master/base/note"), "x").unwrap();
    let added = site.standby_command(&["verify"]);
    assert_eq!(added.code, Some(1), "{}", added.stdout);
    assert!(
        added.stdout.starts_with("warning: data.master/base/note: "),
        "{}",
        added.stdout
    );
}
