//! Recoveries from archives that are not what they should be: the database opens with everything
//! that was archived, or not at all. Ten each time, a hundred with `WALMGR_SOAK=1`.
//! Invariant tested: no read-write server without the data.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::support::strace::Strace;

const SEED: u64 = 0x5EED_0073;

/// A small generator, so that a round can be repeated from its printed number.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from((self.0 >> 33) % u64::try_from(limit).unwrap()).unwrap()
    }
}

/// What is wrong in a round.
#[derive(Debug, Clone, Copy)]
enum Fault {
    FlippedBit,
    Zeroed,
    Short,
    Stale,
    Missing,
    SetAside,
    Settings,
    Unreadable,
}

const FAULTS: [Fault; 8] = [
    Fault::FlippedBit,
    Fault::Zeroed,
    Fault::Short,
    Fault::Stale,
    Fault::Missing,
    Fault::SetAside,
    Fault::Settings,
    Fault::Unreadable,
];

/// An archive with everything a master wrote since `base` was copied.
struct Recovery {
    site: Site,
    base: Cluster,
    segments: Vec<String>,
    content: String,
}

impl Recovery {
    fn prepare() -> Recovery {
        let mut site = master(15);
        let base = copy_of_master(&mut site, "base", &["hot_standby = off"]);
        signal_file(&base, "recovery.signal");
        let before = newest_segment(&site);
        pgbench(&site, "3");
        finish(&site);
        let content = site.cluster().psql(CONTENT);
        let mut segments = site.archived_names();
        segments.retain(|name| name.len() == 24 && *name > before);
        assert!(segments.len() >= 3, "{segments:?}");
        Recovery {
            site,
            base,
            segments,
            content,
        }
    }

    /// Recovers a copy of the base as far as it goes; `None` when it did not open.
    fn recover(&self) -> (Option<String>, String) {
        let data = self.site.home().join("recovering");
        let _ = fs::remove_dir_all(&data);
        copy_directory(self.base.data(), &data);
        let mut server = Cluster::on_directory(15, &data);
        let opened = match server.try_start() {
            Err(_) => None,
            Ok(()) => wait_for("the end of recovery", PATIENCE, || {
                let answer = server.try_psql(CONTENT);
                (answer.is_ok() || !server.is_running()).then_some(answer.ok())
            }),
        };
        (opened, server.log())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.site.unpacked_path(name)
    }

    /// Recovers with this fault and mends it again.
    fn recover_with(&self, fault: Fault, random: &mut Random) -> (Option<String>, String) {
        let index = random.below(self.segments.len());
        let path = self.path(&self.segments[index]);
        let good = fs::read(&path).unwrap();
        let ini = fs::read(self.site.standby_ini()).unwrap();
        let folder = self.site.completed_wals();
        let aside = path.with_extension("damaged");
        match fault {
            Fault::FlippedBit => {
                let mut bytes = good.clone();
                bytes[random.below(good.len())] ^= 1 << random.below(8);
                fs::write(&path, bytes).unwrap();
            }
            Fault::Zeroed => fs::write(&path, vec![0; good.len()]).unwrap(),
            Fault::Short => fs::write(&path, &good[..random.below(good.len())]).unwrap(),
            Fault::Stale => {
                let other = &self.segments[(index + 1) % self.segments.len()];
                fs::copy(self.path(other), &path).map(drop).unwrap();
            }
            // A last segment that never came cannot be told from one that never was.
            Fault::Missing if index + 1 == self.segments.len() => {}
            Fault::Missing => fs::remove_file(&path).unwrap(),
            Fault::SetAside => fs::rename(&path, &aside).unwrap(),
            Fault::Settings => fs::write(self.site.standby_ini(), "[walmgr]\nx = 1\n").unwrap(),
            Fault::Unreadable => {
                fs::set_permissions(&folder, PermissionsExt::from_mode(0o000)).unwrap();
            }
        }
        let ended = self.recover();
        fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).unwrap();
        let _ = fs::remove_file(&aside);
        fs::write(&path, good).unwrap();
        give_to_server(&path);
        fs::write(self.site.standby_ini(), ini).unwrap();
        ended
    }
}

#[test]
fn fault_73_no_damaged_archive_ever_opens_a_database_with_data_missing() {
    skip_unless!(Cluster::available(15));
    let recovery = Recovery::prepare();
    let (opened, log) = recovery.recover();
    assert_eq!(
        opened.as_ref(),
        Some(&recovery.content),
        "without a fault:\n{log}"
    );
    let rounds = if soak() { 100 } else { 10 };
    let mut random = Random(SEED);
    let mut refused = 0;
    for round in 0..rounds {
        let fault = FAULTS[round % FAULTS.len()];
        let (opened, log) = recovery.recover_with(fault, &mut random);
        match opened {
            // A bit between two records, or a segment that was last: nothing is missing.
            Some(content) => {
                assert_eq!(
                    content, recovery.content,
                    "round {round}, {fault:?}:\n{log}"
                );
                assert!(
                    matches!(fault, Fault::FlippedBit | Fault::Missing),
                    "{fault:?}\n{log}"
                );
            }
            None => {
                refused += 1;
                assert!(
                    log.contains("exit code 254") || log.contains("walmgr: "),
                    "{log}"
                );
                assert!(
                    !log.contains("archive recovery complete"),
                    "{fault:?}:\n{log}"
                );
            }
        }
    }
    println!("{refused} of {rounds} recoveries were refused, the others lacked nothing");
    let (opened, log) = recovery.recover();
    assert_eq!(opened, Some(recovery.content), "mended:\n{log}");
}

/// Two segments with a record across their boundary, by their place in the list.
fn crossed_boundary(recovery: &Recovery) -> usize {
    let crosses = |name: &String| {
        let second = fs::read(recovery.path(name)).unwrap();
        // XLP_FIRST_IS_CONTRECORD, and more of it than is flipped.
        second[2] & 1 == 1 && u32::from_le_bytes(second[16..20].try_into().unwrap()) > 8
    };
    let found = recovery.segments.iter().skip(1).position(crosses);
    found.expect("a record that crosses a boundary")
}

/// `xrestore`'s exit code for a segment.
fn restores(recovery: &Recovery, name: &str) -> Option<i32> {
    let folder = recovery.site.home().join("by-hand");
    fs::create_dir_all(&folder).unwrap();
    give_to_server(&folder);
    let to = folder.join("RECOVERYXLOG");
    let to = to.to_str().unwrap();
    recovery.site.standby_command(&["xrestore", name, to]).code
}

#[test]
fn fault_100_a_flip_in_a_record_across_a_boundary_never_opens_a_database() {
    skip_unless!(Cluster::available(15));
    let recovery = Recovery::prepare();
    let first = crossed_boundary(&recovery);
    let pair = [&recovery.segments[first], &recovery.segments[first + 1]];
    for with_checksums in [true, false] {
        if !with_checksums {
            fs::remove_dir_all(recovery.path(".checksums")).unwrap();
        }
        for (half, name) in pair.into_iter().enumerate() {
            let path = recovery.path(name);
            let good = fs::read(&path).unwrap();
            let mut flipped = good.clone();
            let at = if half == 0 { good.len() - 5 } else { 43 };
            flipped[at] ^= 0x10;
            fs::write(&path, &flipped).unwrap();
            let codes = pair.map(|name| restores(&recovery, name));
            let (opened, log) = recovery.recover();
            fs::write(&path, good).unwrap();
            let what = format!("half {half}, checksums {with_checksums}");
            assert!(codes.contains(&Some(254)), "{what}: {codes:?}");
            assert!(
                codes.iter().all(|code| matches!(code, Some(0 | 254))),
                "{codes:?}"
            );
            assert_eq!(opened, None, "{what}:\n{log}");
            assert!(!log.contains("archive recovery complete"), "{what}:\n{log}");
        }
    }
    let (opened, log) = recovery.recover();
    assert_eq!(opened, Some(recovery.content), "mended:\n{log}");
}

#[test]
fn fault_75_kill_at_the_rename_ends_recovery_and_the_next_start_resumes() {
    skip_unless!(Cluster::available(15));
    let _strace = skip_unless!(Strace::available());
    let mut site = master(15);
    let mut standby = copy_of_master(&mut site, "killed", &["hot_standby = off"]);
    signal_file(&standby, "recovery.signal");
    pgbench(&site, "1");
    finish(&site);
    let content = site.cluster().psql(CONTENT);
    let conf = standby.data().join("postgresql.conf");
    let good = fs::read_to_string(&conf).unwrap();
    let killing = format!(
        "strace -f -qq -o /dev/null -e trace=/rename.* -e inject=/rename.*:signal=KILL:when=1 {}",
        restore_command(&site)
    );
    fs::write(&conf, format!("{good}restore_command = '{killing}'\n")).unwrap();
    if let Ok(()) = standby.try_start() {
        wait_for("its end", PATIENCE, || {
            (!standby.is_running()).then_some(())
        });
        standby.stop(StopMode::Fast);
    }
    assert!(
        !standby.log().contains("archive recovery complete"),
        "{}",
        standby.log()
    );
    assert!(
        standby.log().contains("could not restore file"),
        "{}",
        standby.log()
    );
    fs::write(&conf, good).unwrap();
    standby.start();
    let recovered = wait_for("the data", PATIENCE, || standby.try_psql(CONTENT).ok());
    assert_eq!(recovered, content);
}
