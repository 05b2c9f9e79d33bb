//! Which sets count, stay and are believed: made up, young, damaged on the master, flipped bits.
//! Never looks at exit codes alone. Invariant: a good set that was there before stays restorable.

use std::fs;
use std::path::Path;

use walmgr::test_support::pg::backup_label::BackupLabel;

use super::{archiving, beside, newest, site, site_of};
use crate::load::drain;
use crate::support::hostile::{ForgedSet, Key};
use crate::support::{Cluster, Site, StopMode, TempDir, wait_for};

fn flip(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Everything a set has to have, taken from a real one, so that it passes for one.
fn look_alike(site: &Site, set: &Path) -> ForgedSet {
    let label = fs::read(set.join("backup_label")).unwrap();
    let facts = BackupLabel::parse(&label).unwrap();
    let names = [
        "PG_VERSION",
        "base/1/PG_VERSION",
        "base/1/pg_filenode.map",
        "global/pg_filenode.map",
        "global/pg_control",
    ];
    let files = names.map(|name| (name.to_owned(), fs::read(set.join(name)).unwrap()));
    let mut forged = ForgedSet::at(site, facts.first_segment, files.to_vec());
    forged.label = label;
    forged.start = facts.start;
    forged.stop = walmgr_protocol::names::Lsn(facts.checkpoint.0 + 0x80);
    forged
}

#[test]
fn fault_111_made_up_sets_are_refused_or_make_nothing_go() {
    skip_unless!(Cluster::available(15));
    let elsewhere = TempDir::new();
    let kept = elsewhere.create_dir("kept");
    fs::write(kept.join("postgresql.conf"), "port = 1\n").unwrap();
    crate::support::place::give_to_server(&kept.join("postgresql.conf"));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let builder = Site::builder()
        .cluster(cluster)
        .standby_set("keep_backups", "1");
    let site = archiving(builder.standby_set("config_backup", &kept.display().to_string()));
    site.master_command(&["backup"]).succeed();
    let (set, key) = (newest(&site), Key::stolen(&site));
    let good = fs::read(set.join("backup_label")).unwrap();
    let whole = look_alike(&site, &set);
    let refused = |forged: &ForgedSet, why: &str| {
        let words = forged.send(&site, &key).unwrap_err().words();
        assert!(words.contains(why), "{why}: {words}");
        wait_for(
            "the end of what was refused",
            std::time::Duration::from_secs(20),
            || (beside(&site) == ["data.master"]).then_some(()),
        );
        assert_eq!(fs::read(set.join("backup_label")).unwrap(), good);
        let conf = fs::read_to_string(kept.join("postgresql.conf")).unwrap();
        assert_eq!(conf, "port = 1\n", "config_backup of a refused backup");
    };
    let evil = ("postgresql.conf".to_owned(), b"port = 2\n".to_vec());
    // One file, and configuration files with it.
    let mut one_file = whole.clone();
    one_file.files.truncate(1);
    one_file.configs = vec![evil.clone()];
    refused(&one_file, "is no backup of a cluster");
    // Of another cluster.
    let mut foreign = whole.clone();
    let control = &mut foreign.files.last_mut().unwrap().1;
    control[0] ^= 1;
    let crc = crc32c::crc32c(&control[..288]);
    control[288..292].copy_from_slice(&crc.to_le_bytes());
    foreign.configs = vec![evil];
    refused(&foreign, "of the cluster");
    // Files of another life of a server, and what works outside PostgreSQL.
    let mut signal = whole.clone();
    signal
        .files
        .insert(0, ("standby.signal".to_owned(), Vec::new()));
    refused(&signal, "is in no backup");
    let mut environment = whole.clone();
    environment.configs = vec![("environment".to_owned(), b"LD_PRELOAD=/x".to_vec())];
    refused(&environment, "is not the name of a configuration file");
    // Nobody can tell these from a backup; none makes the good one go, nor its WAL.
    let first = site.archived_names()[0].clone();
    for _ in 0..3 {
        whole.send(&site, &key).unwrap();
    }
    assert_eq!(beside(&site).len(), 4);
    assert_eq!(site.archived_names()[0], first);
    let oldest = site.archive_folder().join("data.master.2");
    super::verify(&site, &oldest);
}

#[test]
fn fault_121_sets_with_damaged_pages_make_no_good_set_go() {
    skip_unless!(Cluster::available(15));
    use std::os::unix::fs::FileExt;
    let cluster = Cluster::builder().initdb_arg("--data-checksums");
    let cluster = cluster.conf("archive_mode", "on").start();
    let builder = Site::builder().cluster(cluster);
    let builder = builder.standby_set("keep_backups", "1");
    let mut site = archiving(builder.standby_set("keep_minimum_age", "0"));
    site.cluster()
        .psql("CREATE TABLE rotten AS SELECT generate_series(1, 9999) AS n");
    site.master_command(&["backup"]).succeed();
    let good = fs::read(newest(&site).join("backup_label")).unwrap();
    let file = site.cluster().psql("SELECT pg_relation_filepath('rotten')");
    site.cluster_mut().stop(StopMode::Fast);
    let damaged = fs::File::options()
        .write(true)
        .open(site.data().join(&file));
    damaged.unwrap().write_all_at(b"rot", 8192 + 4000).unwrap();
    site.cluster_mut().start();
    // The second one would be incremental, and not read the page, if the first had not found it.
    for arguments in [&["backup", "--full"][..], &["backup"]] {
        let output = site.master_command(arguments);
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        assert!(
            output.stderr.contains("1 damaged pages"),
            "{}",
            output.stderr
        );
    }
    let sets = beside(&site);
    assert_eq!(sets.first().map(String::as_str), Some("data.master"));
    let oldest = site.archive_folder().join(sets.last().unwrap());
    assert_eq!(fs::read(oldest.join("backup_label")).unwrap(), good);
    super::verify(&site, &oldest);
    let listed = site.standby_command(&["listbackups"]).succeed();
    assert!(listed.contains("(damaged pages)"), "{listed}");
    let status = site.standby_command(&["status"]);
    assert_ne!(status.code, Some(0), "{}", status.stdout);
    assert!(status.stdout.contains("damaged pages"), "{}", status.stdout);
    // A newer good one ends that.
    site.cluster().psql("DROP TABLE rotten");
    site.master_command(&["backup"]).succeed();
    let status = site.standby_command(&["status"]);
    assert!(
        !status.stdout.contains("damaged pages"),
        "{}",
        status.stdout
    );
    assert_eq!(beside(&site), ["data.master"]);
}

#[test]
fn fault_107_a_flipped_bit_anywhere_in_a_set_is_named() {
    skip_unless!(Cluster::available(15));
    let mut site = site();
    let data = site.home().join("standby-data");
    site.standby_set("slave_data", &data.display().to_string());
    site.cluster().psql("ALTER SYSTEM SET work_mem = '5MB'");
    site.master_command(&["backup"]).succeed();
    let set = newest(&site);
    for name in [
        "backup_label",
        "backup_manifest",
        "global/pg_control",
        "postgresql.auto.conf",
        "PG_VERSION",
    ] {
        flip(&set.join(name));
        let json = site.standby_command(&["listbackups", "--json"]).succeed();
        assert!(json.contains("\"error\""), "{name}: {json}");
        let status = site.standby_command(&["status"]);
        assert_ne!(status.code, Some(0), "{name}: {}", status.stdout);
        for words in [&["restore"][..], &["restore", "data.master"]] {
            let output = site.standby_command(words);
            assert_ne!(output.code, Some(0), "{name}: {}", output.stderr);
        }
        let before = site.archived_names();
        assert_eq!(
            site.standby_command(&["xpurgewals"]).code,
            Some(1),
            "{name}"
        );
        assert_eq!(site.archived_names(), before);
        flip(&set.join(name));
        assert!(
            set.join("backup_label").exists() && !data.exists(),
            "{name}"
        );
    }
    // One that only reading all of the set shows, and that moves.
    let relation = set.join("base/1/1259");
    flip(&relation);
    let json = site.standby_command(&["listbackups", "--json"]).succeed();
    assert!(!json.contains("\"error\""), "{json}");
    let output = site.standby_command(&["restore"]);
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("base/1/1259"), "{}", output.stderr);
    assert_eq!(beside(&site), ["data.master"]);
    assert!(!data.exists() && !data.with_extension("restoring").exists());
    flip(&relation);
    site.standby_command(&["restore"]).succeed();
    assert!(data.join("standby.signal").exists());
}

#[test]
fn fault_107_a_round_finds_a_flipped_bit_in_a_relation_of_a_sealed_set() {
    skip_unless!(Cluster::available(15));
    let mut site = site();
    site.master_command(&["backup"]).succeed();
    let relation = newest(&site).join("base/1/1259");
    let good = fs::read(&relation).unwrap();
    flip(&relation);
    let told = |site: &Site| {
        let json = site.standby_command(&["listbackups", "--json"]).succeed();
        json.contains("its base/1/1259: its CRC-32C is not the manifest's")
    };
    assert!(!told(&site), "nobody has read it");
    site.standby_set("recheck_rate", "1024MB");
    site.restart_receiver();
    wait_for("the round", std::time::Duration::from_secs(60), || {
        told(&site).then_some(())
    });
    site.receiver
        .wait_for_log("ALARM: a file of a backup set is damaged");
    for status in [
        site.standby_command(&["status"]),
        site.master_command(&["status"]),
    ] {
        assert_ne!(status.code, Some(0), "{}", status.stdout);
        assert!(status.stdout.contains("base/1/1259"), "{}", status.stdout);
    }
    // Which WAL it needs is known all the same, and whoever puts the file back has the set back.
    site.standby_command(&["xpurgewals"]).succeed();
    fs::remove_file(&relation).unwrap();
    fs::write(&relation, good).unwrap();
    assert!(!told(&site));
}

#[test]
fn fault_112_a_fetched_sets_settings_run_nothing_on_the_master() {
    skip_unless!(Cluster::available(15));
    let site = site_of(Cluster::builder());
    let (marker, again) = (site.home().join("marker"), site.home().join("again"));
    let order = format!(
        "ALTER SYSTEM SET recovery_end_command = 'touch {}'",
        marker.display()
    );
    site.cluster().psql(&order);
    site.master_command(&["backup"]).succeed();
    let again_text = again.display().to_string();
    let output = site.master_command(&["restore", "data.master", &again_text]);
    output.succeed();
    let said = &output.stderr;
    assert!(
        said.contains("recovery_end_command") && said.contains("switched off"),
        "{said}"
    );
    drain(&site);
    let mut server = Cluster::on_directory(site.cluster().major(), &again);
    server.start();
    wait_for("the promotion", std::time::Duration::from_secs(60), || {
        let promoted = server.try_psql("SELECT pg_promote()").ok()?;
        (promoted == "t").then_some(())
    });
    assert!(!marker.exists());
}
