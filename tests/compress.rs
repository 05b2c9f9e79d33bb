//! Packed segments end to end: `compress` killed and raced, flipped bits in what is stored, and what `zstd -d` makes of
//! it. Never unpacks with walmgr what walmgr has packed. Invariant tested: whoever reads a segment gets the master's
//! bytes, or is told.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use zstd::zstd_safe::{CCtx, CParameter};

use crate::load::drain;
use crate::support::dice::Dice;
use crate::support::place::server_user;
use crate::support::{Cluster, Output, Site, have, run, soak, stored};

/// A master with small segments that keeps all of its WAL.
fn site_of(form: &str) -> Site {
    let cluster = Cluster::builder()
        .wal_segment_size_mb(1)
        .conf("archive_mode", "on")
        .conf("wal_level", "replica")
        .conf("wal_keep_size", "4GB")
        .start();
    cluster.psql("CREATE TABLE t (n int, pad text)");
    let site = Site::builder()
        .cluster(cluster)
        .standby_set("store_compression", form)
        .master_set("use_xlog_functions", "1")
        .build();
    site.master_command(&["setup"]).succeed();
    site
}

fn write_some(site: &Site) {
    let rows = "INSERT INTO t SELECT g, md5(random()::text) FROM generate_series(1, 3000) g";
    site.cluster().psql(rows);
    site.cluster().switch_wal();
}

fn in_pg_wal(site: &Site, name: &str) -> Vec<u8> {
    fs::read(site.data().join("pg_wal").join(name)).unwrap()
}

/// The segments of the archive, in whichever form.
fn segments(site: &Site) -> Vec<String> {
    let mut names = site.archived_names();
    names.retain(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
    names.dedup();
    names
}

/// Every form that is there of every segment is the master's.
fn assert_is_the_masters(site: &Site) -> usize {
    let names = segments(site);
    for name in &names {
        let ours = in_pg_wal(site, name);
        let forms = [name.clone(), format!("{name}.zst")];
        for path in forms.map(|form| site.completed_wals().join(form)) {
            if path.exists() {
                let is_same = stored::read(&path).is_ok_and(|found| found == ours);
                assert!(is_same, "{} is not the master's", path.display());
            }
        }
    }
    names.len()
}

fn leftovers(site: &Site) -> Vec<String> {
    let names = crate::restore::names_in(&site.completed_wals());
    let is_left = |name: &String| name.starts_with(".packing.") || name.starts_with(".retired.");
    names.into_iter().filter(is_left).collect()
}

#[test]
fn compress_packs_what_was_stored_plain_and_says_how_much() {
    let _user = skip_unless!(server_user());
    let site = Site::builder()
        .standby_set("store_compression", "none")
        .build();
    for number in 2..5 {
        site.write_segment(number);
        site.archive(&site.segment_name(number)).succeed();
    }
    let told = site.standby_command(&["-n", "compress"]);
    assert!(format!("{told:?}").contains("3 segments"), "{told:?}");
    let said = site.standby_command(&["compress"]).succeed();
    assert!(said.starts_with("3 segments packed"), "{said}");
    for number in 2..5 {
        let name = site.segment_name(number);
        assert!(!site.completed_wals().join(&name).exists());
        assert!(site.archived(&name) == in_pg_wal(&site, &name));
        site.archive(&name).succeed();
    }
    let said = site.standby_command(&["compress"]).succeed();
    assert!(said.starts_with("0 segments packed"), "{said}");
}

#[test]
fn zstd_d_of_each_stored_file_is_the_masters_segment() {
    skip_unless!(Cluster::available(15));
    skip_unless!(have("zstd").then_some(()).ok_or("zstd is not installed"));
    let mut site = site_of("none");
    write_some(&site);
    drain(&site);
    site.standby_command(&["compress"]).succeed();
    site.standby_set("store_compression", "zstd");
    site.restart_receiver();
    for round in 0..6 {
        write_some(&site);
        if round % 2 == 1 {
            site.master_command(&["sync"]).succeed();
        }
        // Blocks that came packed are stored as they came.
        site.master_set("compression", if round < 3 { "0" } else { "7" });
    }
    drain(&site);
    let names = segments(&site);
    assert!(names.len() > 5, "{names:?}");
    let unpacked = site.home().join("unpacked");
    for name in names {
        let path = site.stored_path(&name);
        assert!(path.extension().is_some_and(|end| end == "zst"), "{name}");
        let _ = fs::remove_file(&unpacked);
        let mut zstd = Command::new("zstd");
        run(zstd.args(["-q", "-d"]).arg(&path).arg("-o").arg(&unpacked)).unwrap();
        assert!(
            fs::read(&unpacked).unwrap() == in_pg_wal(&site, &name),
            "{name}"
        );
        run(Command::new("zstd").args(["-q", "-t"]).arg(&path)).unwrap();
    }
}

/// Flips one bit of a file in place.
fn flip(path: &Path, bit: u64) {
    let mut content = fs::read(path).unwrap();
    content[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
    fs::write(path, content).unwrap();
}

#[test]
fn fault_222_a_flipped_bit_of_a_packed_segment_reaches_nobody() {
    skip_unless!(Cluster::available(15));
    let mut dice = Dice::thrown("packed flips");
    let site = site_of("zstd");
    for _ in 0..6 {
        write_some(&site);
    }
    drain(&site);
    let names = segments(&site);
    let target = site.home().join("restored");
    let flips = if soak() { 1_000 } else { 40 };
    for turn in 0..flips {
        let name = dice.choose(&names);
        let path = site.stored_path(name);
        let sound = fs::read(&path).unwrap();
        let bits = sound.len() as u64 * 8;
        // Checks and seek table are the file's last few hundred bytes.
        let bit = match turn % 3 {
            0 => bits - 1 - dice.below(bits.min(8 * 200)),
            _ => dice.below(bits),
        };
        flip(&path, bit);
        let words = ["xrestore", name, &target.display().to_string()];
        let what = format!("{name}, bit {bit}");
        for side in ["standby", "master"] {
            let _ = fs::remove_file(&target);
            let output = match side {
                "standby" => site.standby_command(&words),
                _ => site.master_command(&words),
            };
            assert_eq!(output.code, Some(254), "{side}: {what}: {output:?}");
            assert!(!target.exists(), "{side}: {what}");
        }
        if turn % 8 == 0 {
            let output = site.standby_command(&["verify", "--all"]);
            let said = format!("{}{}", output.stdout, output.stderr);
            let is_told = output.code != Some(0) && said.contains(name.as_str());
            assert!(is_told, "{what}: {said}");
        }
        fs::write(&path, sound).unwrap();
    }
    for name in &names {
        let words = ["xrestore", name, &target.display().to_string()];
        site.standby_command(&words).succeed();
        assert!(fs::read(&target).unwrap() == in_pg_wal(&site, name));
    }
}

/// `compress`, killed after this long.
fn killed_after(site: &Site, moment: Duration) -> bool {
    let mut compress = site.standby_walmgr(&["compress"]);
    compress.stdout(Stdio::null()).stderr(Stdio::null());
    let mut compress = compress.spawn().unwrap();
    sleep(moment);
    let is_cut = compress.try_wait().unwrap().is_none();
    let _ = compress.kill();
    compress.wait().unwrap();
    is_cut
}

#[test]
fn fault_221_compress_killed_beside_archiving_and_expiry_loses_nothing() {
    skip_unless!(Cluster::available(15));
    let mut dice = Dice::thrown("compress");
    let mut site = site_of("none");
    site.standby_set("keep_backups", "1");
    site.standby_set("keep_minimum_age", "0");
    site.restart_receiver();
    let kills = if soak() { 200 } else { 24 };
    let (mut cut, mut seen) = (0, BTreeSet::new());
    for turn in 0..kills {
        if turn % 6 == 0 {
            // Both forms arrive.
            let form = if turn % 12 == 0 { "none" } else { "zstd" };
            site.standby_set("store_compression", form);
            site.standby_command(&["receiver", "--reload"]).succeed();
        }
        let is_over = AtomicBool::new(false);
        let moment = Duration::from_micros(2_000 + dice.below(120_000));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Shipped record by record, and finished in place by the archiver.
                while !is_over.load(Ordering::Relaxed) {
                    write_some(&site);
                    let shipped: Output = site.master_command(&["sync"]);
                    assert!(matches!(shipped.code, Some(0 | 1)), "{shipped:?}");
                }
            });
            if turn % 8 == 7 {
                scope.spawn(|| {
                    site.master_command(&["backup"]).succeed();
                    site.standby_command(&["expire"]).succeed();
                });
            }
            cut += u32::from(killed_after(&site, moment));
            is_over.store(true, Ordering::Relaxed);
        });
        seen.extend(segments(&site));
        assert_is_the_masters(&site);
    }
    drain(&site);
    site.standby_command(&["compress"]).succeed();
    assert_eq!(leftovers(&site), [""; 0]);
    let count = assert_is_the_masters(&site);
    let plain = |name: &String| site.completed_wals().join(name).exists();
    assert!(!segments(&site).iter().any(plain));
    // One that was packed just when it expired goes with the next expiry.
    site.standby_command(&["xpurgewals"]).succeed();
    let (first, seen) = (segments(&site).remove(0), seen.into_iter());
    let lost: Vec<String> = seen
        .filter(|name| *name >= first && !site.holds(name))
        .collect();
    assert_eq!(lost, [""; 0], "from {first} on");
    site.standby_command(&["verify", "--all"]).succeed();
    println!(
        "compress killed {cut} of {kills} times while it ran; {count} segments, all the master's"
    );
    assert!(cut > kills / 3);
}

#[test]
fn fault_219_what_stands_in_the_way_of_compress_is_left_alone() {
    let _user = skip_unless!(server_user());
    let site = Site::builder()
        .standby_set("store_compression", "none")
        .build();
    let names = [2, 3, 4].map(|number| {
        site.write_segment(number);
        let name = site.segment_name(number);
        site.archive(&name).succeed();
        name
    });
    let at = |name: &str| -> PathBuf { site.completed_wals().join(name) };
    // A directory, and a link to somebody's file.
    fs::create_dir(at(&format!("{}.zst", names[0]))).unwrap();
    let foreign = site.home().write("foreign", "mine");
    std::os::unix::fs::symlink(&foreign, at(&format!("{}.zst", names[1]))).unwrap();
    let output = site.standby_command(&["compress"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    for name in &names[..2] {
        assert!(
            output.stderr.contains(&format!("{name} stays as it is")),
            "{output:?}"
        );
        assert!(fs::read(at(name)).unwrap() == in_pg_wal(&site, name));
    }
    assert_eq!(fs::read(&foreign).unwrap(), b"mine");
    assert!(!at(&names[2]).exists() && site.archived(&names[2]) == in_pg_wal(&site, &names[2]));
}

/// The first bytes of a stored segment are a block of it, packed at this level; at level 1 from matches of five bytes.
fn begins_packed(site: &Site, name: &str, level: i32) -> bool {
    let raw = &in_pg_wal(site, name)[..256 << 10];
    let mut context = CCtx::create();
    let match_bytes = if level == 1 { 5 } else { 0 };
    let set = [
        CParameter::CompressionLevel(level),
        CParameter::MinMatch(match_bytes),
    ];
    for parameter in set {
        context.set_parameter(parameter).unwrap();
    }
    let mut block = Vec::with_capacity(raw.len());
    context.compress2(&mut block, raw).unwrap();
    fs::read(site.completed_wals().join(format!("{name}.zst"))).unwrap()[..block.len()] == block
}

#[test]
fn fault_239_a_segment_travels_as_the_standby_stores_it() {
    let mut site = Site::builder().proxied().build();
    site.master_unset("compression");
    let sent = |site: &Site, name: &str| {
        site.archive(name).succeed();
        let stored = stored::read(&site.stored_path(name)).unwrap();
        assert_eq!(stored, in_pg_wal(site, name));
        site.proxy().recordings().pop().unwrap().to_server.len()
    };
    let names: Vec<String> = (1..7).map(|number| site.segment_name(number)).collect();
    for number in 1..7 {
        site.write_segment(number);
    }
    let whole = in_pg_wal(&site, &names[0]).len();
    for (name, form, level) in [(&names[0], "zstd", 1), (&names[1], "zstd:9", 9)] {
        site.standby_set("store_compression", form);
        site.receiver.stop();
        site.start_receiver();
        let bytes = sent(&site, name);
        assert!(bytes < whole / 2, "{form}: {bytes} of {whole} bytes");
        assert!(begins_packed(&site, name, level), "{form}");
    }
    // A standby that stores plain files gets plain blocks.
    site.standby_set("store_compression", "none");
    site.receiver.stop();
    site.start_receiver();
    assert!(sent(&site, &names[2]) > whole);
    assert_eq!(
        fs::read(site.completed_wals().join(&names[2]))
            .unwrap()
            .len(),
        whole
    );
    // The master's file decides for itself.
    site.standby_set("store_compression", "zstd:9");
    site.receiver.stop();
    site.start_receiver();
    site.master_set("compression", "0");
    assert!(sent(&site, &names[4]) > whole);
    assert!(begins_packed(&site, &names[4], 9));
    site.master_set("compression", "3");
    assert!(sent(&site, &names[3]) < whole / 2);
    assert!(begins_packed(&site, &names[3], 3));
    // At the default level the standby packs as the master does.
    site.standby_set("store_compression", "zstd");
    site.receiver.stop();
    site.start_receiver();
    site.master_set("compression", "0");
    assert!(sent(&site, &names[5]) > whole);
    assert!(begins_packed(&site, &names[5], 1));
}
