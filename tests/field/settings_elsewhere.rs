//! Servers whose settings are neither in `postgresql.conf` of the data directory nor in `postgresql.auto.conf`: in
//! files that are included, in `/etc`, on the command line. Never a setting that SQL changes. Invariant: whatever
//! decides for PostgreSQL decides for walmgr, whether the server can be asked or not.

use std::fs;
use std::path::{Path, PathBuf};

use crate::replay::{bare_master, copy_of_master, finish, signal_file, wait_until_restored};
use crate::restore::{PATIENCE, Scene};
use crate::support::backup_set::make_set;
use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, StopMode, wait_for};

/// Where an administrator puts a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Include,
    IncludedFolder,
    FileElsewhere,
    CommandLine,
}

const PLACES: [Place; 4] = [
    Place::Include,
    Place::IncludedFolder,
    Place::FileElsewhere,
    Place::CommandLine,
];

fn on_15_and_18(test: impl Fn(u8)) {
    for major in crate::support::USUAL {
        match Cluster::available(major) {
            Ok(()) => test(major),
            Err(why) => crate::support::report_skip(&why),
        }
    }
}

fn append(path: &Path, line: &str) {
    let text = fs::read_to_string(path).unwrap_or_default();
    fs::write(path, format!("{text}{line}\n")).unwrap();
    give_to_server(path);
}

/// Has the server read its settings from a folder of their own, as Debian does; where they are then.
fn lead_elsewhere(server: &mut Cluster) -> PathBuf {
    let folder = server.data().with_extension("etc");
    fs::create_dir_all(&folder).unwrap();
    let main = folder.join("postgresql.conf");
    fs::rename(server.data().join("postgresql.conf"), &main).unwrap();
    give_to_server(&folder);
    server.add_option(&format!("config_file={}", main.display()));
    main
}

/// Sets parameters of a server that does not run.
fn set(server: &mut Cluster, place: Place, settings: &[(&str, &str)]) {
    let main = server.data().join("postgresql.conf");
    let file = match place {
        Place::Include => {
            append(&main, "include 'more.conf'");
            server.data().join("more.conf")
        }
        Place::IncludedFolder => {
            append(&main, "include_dir 'conf.d'");
            let folder = server.data().join("conf.d");
            fs::create_dir(&folder).unwrap();
            give_to_server(&folder);
            folder.join("more.conf")
        }
        Place::FileElsewhere => lead_elsewhere(server),
        Place::CommandLine => {
            for (name, value) in settings {
                server.add_option(&format!("{name}={value}"));
            }
            return;
        }
    };
    for (name, value) in settings {
        append(&file, &format!("{name} = '{value}'"));
    }
}

/// A copy of the master that recovers up to the restore point `here`, with a table behind it in the archive.
fn to_target(site: &mut Site, place: Place, more: &[(&str, &str)]) -> Cluster {
    let mut server = copy_of_master(site, "replaying", &[]);
    signal_file(&server, "recovery.signal");
    site.standby_set("slave_data", &server.data().display().to_string());
    let here = [
        ("recovery_target_name", "here"),
        ("recovery_target_action", "pause"),
    ];
    set(&mut server, place, &[&here, more].concat());
    site.cluster()
        .psql("SELECT pg_create_restore_point('here')");
    site.cluster()
        .psql("CREATE TABLE behind AS SELECT generate_series(1, 1000) AS n");
    finish(site);
    server
}

fn has_table(server: &Cluster, name: &str) -> bool {
    server.psql(&format!("SELECT to_regclass('{name}') IS NOT NULL")) == "t"
}

fn screen(site: &Site) -> String {
    site.standby_command(&["status"]).stdout
}

#[test]
fn fault_132_a_target_is_known_wherever_it_is_set() {
    on_15_and_18(|major| {
        for place in PLACES {
            let mut site = bare_master(major);
            let mut server = to_target(&mut site, place, &[("hot_standby", "on")]);
            server.start();
            wait_for("the target", PATIENCE, || {
                let told = screen(&site);
                assert!(!told.contains("pg_wal_replay_pause"), "{place:?}: {told}");
                told.contains("its recovery has reached the target")
                    .then_some(())
            });
            // What the files say by now is not what the server was started with.
            append(
                &server.data().join("postgresql.auto.conf"),
                "recovery_target_name = ''",
            );
            let said = site.standby_command(&["boot"]);
            assert_eq!(said.code, Some(0), "{place:?}: {}", said.stderr);
            assert!(!has_table(&server, "behind"), "{place:?}");
        }
    });
}

#[test]
fn fault_132_a_server_that_ended_at_a_target_elsewhere_opens_there() {
    skip_unless!(Cluster::available(15));
    for place in PLACES {
        let mut site = bare_master(15);
        let mut server = to_target(&mut site, place, &[("hot_standby", "off")]);
        server.spawn();
        server.wait_for_log("database system is shut down", PATIENCE);
        wait_for("the server's end", PATIENCE, || {
            (!server.is_running()).then_some(())
        });
        server.stop(StopMode::Fast);
        let start = |more: &str| {
            let options = format!(
                "-c port={} -c unix_socket_directories={} {more}",
                server.port(),
                server.home().display()
            );
            format!(
                "{} -D {} -l {} -w start -o '{options}'",
                server.bin().join("pg_ctl").display(),
                server.data().display(),
                server.home().join("started.log").display()
            )
        };
        // Whoever starts it by hand is given a line that opens it at its target.
        let by_hand = site.standby_command(&["boot"]);
        let line = by_hand.fail(2);
        let is_given =
            line.contains("-c recovery_target_action=promote -c recovery_target_name=here");
        assert_eq!(is_given, place == Place::CommandLine, "{line}");
        let main = server.data().with_extension("etc").join("postgresql.conf");
        let options = match place {
            Place::FileElsewhere => format!("-c config_file={}", main.display()),
            _ => String::new(),
        };
        site.standby_set("slave_start_cmd", &start(&options));
        if place == Place::CommandLine {
            let refused = site.standby_command(&["boot"]);
            let line = refused.fail(2);
            assert!(line.contains("the server would go past it"), "{line}");
            assert!(!site.partial_wals().join("FROZEN").exists());
            let with_target = start("-c recovery_target_name=here");
            site.standby_set("slave_start_cmd", &with_target);
        }
        let said = site.standby_command(&["boot"]);
        assert_eq!(said.code, Some(0), "{place:?}: {}", said.stderr);
        assert!(!has_table(&server, "behind"), "{place:?}");
    }
}

#[test]
fn fault_131_what_holds_a_silent_server_up_is_known_wherever_it_is_set() {
    skip_unless!(Cluster::available(15));
    for place in PLACES {
        let mut site = bare_master(15);
        let mut server = copy_of_master(&mut site, "replaying", &[]);
        signal_file(&server, "standby.signal");
        site.standby_set("slave_data", &server.data().display().to_string());
        let settings = [("hot_standby", "off"), ("recovery_min_apply_delay", "1h")];
        set(&mut server, place, &settings);
        server.start();
        site.cluster().psql("CREATE TABLE behind AS SELECT 1 AS n");
        wait_until_restored(&server, &finish(&site));
        let told = site.standby_command(&["--json", "status"]).stdout;
        assert!(
            told.contains("recovery_min_apply_delay = 1h"),
            "{place:?}: {told}"
        );
        let by = match place {
            Place::CommandLine => "the server's command line",
            Place::FileElsewhere => ".etc/postgresql.conf, line ",
            _ => "more.conf, line ",
        };
        assert!(told.contains(by), "{place:?}: {told}");
    }
}

#[test]
fn fault_127_a_restore_lowers_nothing_that_a_file_elsewhere_raised() {
    on_15_and_18(|major| {
        let mut scene = Scene::new(major).with_commands();
        make_set(&scene.site, "data.master");
        for line in ["max_connections = 150", "max_locks_per_transaction = 70"] {
            scene.site.cluster_mut().append_conf(line);
        }
        scene.site.cluster_mut().restart();
        scene.work("20");
        let content = scene.content();
        scene.restore(&["data.master"]).succeed();
        scene.wait_until_standby_has(&content);

        // From now on its server is led to settings of which walmgr's own know nothing.
        let main = scene.data().with_extension("etc").join("postgresql.conf");
        fs::create_dir(main.parent().unwrap()).unwrap();
        fs::copy(scene.data().join("postgresql.conf"), &main).unwrap();
        append(&main, "max_connections = 300");
        give_to_server(main.parent().unwrap());
        let lead = format!("-o '-c config_file={} ", main.display());
        let start = scene.start_command().replace("-o '", &lead);
        scene.site.standby_set("slave_start_cmd", &start);
        scene.restore(&["data.master"]).succeed();
        scene.wait_until_standby_has(&content);
        let again = scene.restore(&["data.master"]);
        assert!(
            !again.stderr.contains("max_connections is set to"),
            "{}",
            again.stderr
        );
        assert!(
            again
                .stderr
                .contains("max_locks_per_transaction is set to 70, not 64"),
            "{}",
            again.stderr
        );
        scene.wait_until_standby_has(&content);
        assert_eq!(scene.standby.psql("SHOW max_connections"), "300");
        assert_eq!(scene.standby.psql("SHOW max_locks_per_transaction"), "70");
    });
}

#[test]
fn fault_137_a_setup_lowers_nothing_that_an_included_file_sets() {
    skip_unless!(Cluster::available(15));
    let mut site = Site::with_cluster(Cluster::builder().start());
    let main = site.cluster().config_file();
    let folder = main.with_file_name("conf.d");
    fs::create_dir(&folder).unwrap();
    // Before the commented defaults, where setup puts its lines.
    let text = fs::read_to_string(&main).unwrap();
    fs::write(&main, format!("include_dir 'conf.d'\n{text}")).unwrap();
    give_to_server(&main);
    for line in ["wal_level = logical", "archive_mode = always"] {
        append(&folder.join("a.conf"), line);
    }
    give_to_server(&folder);
    site.cluster_mut().restart();
    site.master_command(&["setup"]).succeed();
    site.cluster_mut().restart();
    let shown = |name: &str| site.cluster().psql(&format!("SHOW {name}"));
    assert_eq!(
        [shown("wal_level"), shown("archive_mode")],
        ["logical", "always"]
    );
}

#[test]
fn fault_112_what_the_standby_itself_allows_elsewhere_stays_on() {
    skip_unless!(Cluster::available(15));
    let mut site = bare_master(15);
    let mut server = copy_of_master(&mut site, "replaying", &[]);
    signal_file(&server, "standby.signal");
    site.standby_set("slave_data", &server.data().display().to_string());
    append(
        &lead_elsewhere(&mut server),
        "recovery_end_command = 'true'",
    );
    server.start();
    server.stop(StopMode::Fast);
    append(
        &site.cluster().config_file(),
        "recovery_end_command = 'true'",
    );
    append(
        &site.cluster().config_file(),
        "archive_cleanup_command = 'true'",
    );
    make_set(&site, "data.master");
    let said = site.standby_command(&["restore", "data.master"]).stderr;
    assert!(said.contains("archive_cleanup_command"), "{said}");
    assert!(!said.contains("recovery_end_command"), "{said}");
}
