//! Files of others where a restore puts something: a `lost+found` in a plain directory, notes beside the WAL.
//! Never a server's own files. Invariant: a restore takes the place, and nothing that was there is gone.

use std::fs;
use std::path::PathBuf;

use crate::restore::Scene;
use crate::support::Cluster;
use crate::support::backup_set::make_set;
use crate::support::place::give_to_server;

/// The files of this name beside a directory and in what is called like it.
fn found(directory: &std::path::Path, name: &str) -> Vec<PathBuf> {
    let (folder, prefix) = (directory.parent().unwrap(), directory.file_name().unwrap());
    let entries = fs::read_dir(folder).unwrap().flatten();
    let named = entries.filter(|entry| {
        let prefix = prefix.to_str().unwrap();
        entry.file_name().to_str().unwrap().starts_with(prefix)
    });
    let paths = named.map(|entry| entry.path().join(name));
    paths.filter(|path| path.exists()).collect()
}

#[test]
fn fault_129_files_of_no_server_outlive_a_restore() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let mut scene = Scene::new(major);
        scene.site.standby_set("backup_datadir", "no");
        let (data, wal) = (scene.data(), scene.site.home().join("standby-wal"));
        scene
            .site
            .standby_set("slave_pg_xlog", wal.to_str().unwrap());
        for (directory, name) in [(&data, "lost+found/#12"), (&wal, "notes/todo")] {
            let file = directory.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "mine").unwrap();
            give_to_server(directory);
        }
        make_set(&scene.site, "data.master");
        scene.restore(&["data.master"]).succeed();
        let content = scene.content();
        scene.wait_until_standby_has(&content);
        let kept = || [found(&data, "lost+found/#12"), found(&wal, "notes/todo")];
        for paths in kept() {
            assert_eq!(paths.len(), 1, "{paths:?}");
            assert_eq!(fs::read_to_string(&paths[0]).unwrap(), "mine");
        }
        // A server's own WAL goes with the server, and with nothing else.
        scene.restore(&["data.master"]).succeed();
        assert_eq!(found(&wal, "archive_status").len(), 1);
        assert_eq!(found(&data, "PG_VERSION").len(), 1);
        assert!(kept().iter().all(|paths| paths.len() == 1));
    }
}
