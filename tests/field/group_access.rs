//! Clusters made by `initdb -g`, whose files a group may read.
//! Never goes by the umask of a test. Invariant: set and restored directory have the modes that the master's
//! has, and a key stays its owner's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::restore::Scene;
use crate::support::Cluster;
use crate::support::backup_set::set_path;
use crate::support::place::give_to_server;

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[track_caller]
fn assert_modes(data: &Path) {
    let expected = [
        ("", 0o750),
        ("base", 0o750),
        ("base/1", 0o750),
        ("base/1/PG_VERSION", 0o640),
        ("pg_wal", 0o750),
        ("PG_VERSION", 0o640),
        ("server.key", 0o600),
    ];
    for (name, expected) in expected {
        let found = mode(&data.join(name));
        assert_eq!(found, expected, "{name} of {}: {found:o}", data.display());
    }
}

#[test]
fn fault_136_group_access_is_kept_in_the_set_and_by_both_restores() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let builder = Cluster::builder()
            .major(major)
            .initdb_arg("--allow-group-access");
        let scene = Scene::of(builder);
        let key = scene.site.data().join("server.key");
        fs::write(&key, "a key").unwrap();
        fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        give_to_server(&key);
        let space = scene.site.home().create_dir("space");
        let sql = format!("CREATE TABLESPACE s LOCATION '{}'", space.display());
        scene.site.cluster().psql(&sql);
        assert_modes(scene.site.data());
        scene.site.master_command(&["backup"]).succeed();
        let set = set_path(&scene.site, "data.master");
        assert_modes(&set);
        let spaces = fs::read_dir(set.join("tmpspc")).unwrap();
        for space in spaces {
            assert_eq!(mode(&space.unwrap().path()), 0o750);
        }
        for words in [&["data.master"][..], &[]] {
            scene.restore(words).succeed();
            assert_modes(&scene.data());
            assert_eq!(scene.standby.psql("SHOW data_directory_mode"), "0750");
        }
        scene.site.master_command(&["backup"]).succeed();
        let other = scene.site.home().join("other");
        let words = ["restore", "data.master", other.to_str().unwrap()];
        scene.site.master_command(&words).succeed();
        assert_modes(&other);
    }
}

#[test]
fn fault_136_a_cluster_without_it_stays_closed() {
    skip_unless!(Cluster::available(15));
    let scene = Scene::new(15);
    symlink("PG_VERSION", scene.site.data().join("a_link")).unwrap();
    scene.site.master_command(&["backup"]).succeed();
    scene.restore(&["data.master"]).succeed();
    for data in [scene.data(), set_path(&scene.site, "data.master")] {
        assert_eq!((mode(&data), mode(&data.join("base/1"))), (0o700, 0o700));
        assert_eq!(mode(&data.join("PG_VERSION")), 0o600);
    }
}
