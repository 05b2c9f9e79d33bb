//! Masters whose finished segments go elsewhere: a library, the command line, another file, another program.
//! Never one that archives to walmgr alone. Invariant: whoever would wait for a segment says at once why none
//! comes, with file and line.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::replay::{copy_of_master, signal_file};
use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, walmgr_binary};

/// Runs a test on both versions, as far as they are here.
fn on_versions(test: impl Fn(u8)) {
    for major in crate::support::USUAL {
        match Cluster::available(major) {
            Ok(()) => test(major),
            Err(reason) => crate::support::report_skip(&reason),
        }
    }
}

fn archiving_site(major: u8) -> Site {
    let cluster = Cluster::builder()
        .major(major)
        .conf("archive_mode", "on")
        .start();
    let site = Site::with_cluster(cluster);
    site.master_command(&["setup", "--no-check"]).succeed();
    site
}

/// `setup` in every form, and `backup`, refuse within one sentence that has all of these.
fn all_refuse(site: &Site, parts: &[&str]) {
    let conf = site.cluster().config_file();
    let before = fs::read(&conf).unwrap();
    for words in [
        &["setup"][..],
        &["setup", "--no-check"],
        &["-n", "setup"],
        &["backup"],
        &["-n", "backup"],
    ] {
        let refused = site.master_command(words);
        assert_eq!(
            refused.code,
            Some(2),
            "{words:?}: {}{}",
            refused.stdout,
            refused.stderr
        );
        let line = refused.stderr.lines().last().unwrap();
        for part in parts {
            assert!(line.contains(part), "{words:?}: {part:?} is not in: {line}");
        }
    }
    assert_eq!(fs::read(&conf).unwrap(), before, "nothing is edited");
}

fn status_says(site: &Site, parts: &[&str]) {
    let told = site.master_command(&["status"]).stdout;
    for part in parts {
        assert!(told.contains(part), "{part:?} is not in: {told}");
    }
}

#[test]
fn fault_137_a_library_that_archives_is_named_with_file_and_line() {
    on_versions(|major| {
        let site = archiving_site(major);
        let cluster = site.cluster();
        // Both at once are an error from 16 on, so the command goes.
        cluster.psql("ALTER SYSTEM SET archive_command = ''");
        cluster.psql("ALTER SYSTEM SET archive_library = 'basic_archive'");
        cluster.reload();
        let place = cluster.data().join("postgresql.auto.conf, line 4");
        let place = place.display().to_string();
        all_refuse(&site, &["archive_library is `basic_archive`", &place]);
        status_says(&site, &["archive_library is `basic_archive`", &place]);
    });
}

#[test]
fn fault_137_a_command_on_the_servers_command_line_is_named() {
    on_versions(|major| {
        let mut site = archiving_site(major);
        site.cluster_mut()
            .add_option("archive_command=cp %p /srv/%f");
        site.cluster_mut().restart();
        all_refuse(&site, &["cp %p /srv/%f", "the server's command line"]);
        status_says(&site, &["cp %p /srv/%f", "the server's command line"]);
    });
}

#[test]
fn fault_137_a_later_file_or_alter_system_is_named_also_before_it_counts() {
    on_versions(|major| {
        let mut site = archiving_site(major);
        let folder = site.cluster().data().join("conf.d");
        fs::create_dir(&folder).unwrap();
        let file = folder.join("90-other.conf");
        fs::write(
            &file,
            "# of another program\narchive_command = 'cp %p /srv/%f'\n",
        )
        .unwrap();
        give_to_server(&folder);
        site.cluster_mut().append_conf("include_dir = 'conf.d'");
        // Not read yet: what it does with the next reload is said beforehand.
        let place = format!("{}, line 2", file.display());
        status_says(
            &site,
            &["becomes `cp %p /srv/%f` with the next reload", &place],
        );
        for words in [&["setup"][..], &["setup", "--no-check"]] {
            let refused = site.master_command(words);
            refused.fail_last(2, "archive_command will be cp %p /srv/%f");
            refused.fail_last(2, &place);
        }
        site.cluster().reload();
        all_refuse_after_reload(&site, &place);
        fs::write(&file, "").unwrap();
        site.cluster().reload();
        crate::support::wait_for("the reload", crate::replay::PATIENCE, || {
            let command = site.cluster().psql("SHOW archive_command");
            command.contains("xarchive").then_some(())
        });

        site.cluster()
            .psql("ALTER SYSTEM SET archive_command = 'cp %p /elsewhere/%f'");
        status_says(
            &site,
            &["becomes `cp %p /elsewhere/%f` with the next reload"],
        );
        site.cluster().psql("ALTER SYSTEM RESET archive_command");
        site.cluster().reload();
        site.master_command(&["setup"]).succeed();
    });
}

fn all_refuse_after_reload(site: &Site, place: &str) {
    crate::support::wait_for("the reload", crate::replay::PATIENCE, || {
        let command = site.cluster().psql("SHOW archive_command");
        command.starts_with("cp ").then_some(())
    });
    all_refuse(site, &["cp %p /srv/%f", place]);
}

#[test]
fn fault_137_archive_mode_always_is_kept_and_looked_at_like_on() {
    on_versions(|major| {
        let cluster = Cluster::builder()
            .major(major)
            .conf("archive_mode", "always")
            .start();
        let site = Site::with_cluster(cluster);
        site.master_command(&["setup"]).succeed();
        assert_eq!(site.cluster().psql("SHOW archive_mode"), "always");
        site.master_command(&["backup"]).succeed();
        let told = site.master_command(&["status", "--json"]).stdout;
        assert!(told.contains("\"archiving\":\"on\""), "{told}");
        site.cluster()
            .psql("ALTER SYSTEM SET archive_command = 'cp %p /srv/%f'");
        site.cluster().reload();
        let automatic = site.data().join("postgresql.auto.conf");
        all_refuse_after_reload(&site, &automatic.display().to_string());
    });
}

#[test]
fn fault_137_standby_with_archive_mode_on_archives_nothing() {
    on_versions(|major| {
        let mut site = archiving_site(major);
        let settings = ["hot_standby = on", "archive_mode = on"];
        let mut standby = copy_of_master(&mut site, "replaying", &settings);
        signal_file(&standby, "standby.signal");
        standby.start();
        for (setting, value) in [
            ("master_db", standby.conninfo()),
            ("master_data", standby.data().display().to_string()),
            ("master_config", standby.config_file().display().to_string()),
        ] {
            site.master_set(setting, &value);
        }
        assert_eq!(standby.psql("SHOW archive_mode"), "on");
        let told = site.master_command(&["status", "--json"]).stdout;
        assert!(told.contains("\"is_standby\":true"), "{told}");
        assert!(!told.contains("archiving_"), "{told}");
        let set_up = site.master_command(&["setup"]);
        set_up.succeed();
        assert!(
            set_up.stderr.contains("is in recovery"),
            "{}",
            set_up.stderr
        );
        let refused = site.master_command(&["backup"]);
        refused.fail_last(2, "the server is a standby: back up its master");
    });
}

#[test]
fn fault_137_archive_command_that_discards_is_an_alarm() {
    on_versions(|major| {
        for (command, part) in [
            ("", "pile up in pg_wal"),
            ("/bin/true", "are discarded"),
            ("exit 0", "are discarded"),
        ] {
            let cluster = Cluster::builder()
                .major(major)
                .conf("archive_mode", "on")
                .conf("archive_command", command);
            let site = Site::with_cluster(cluster.start());
            status_says(
                &site,
                &[
                    "critical: archiving is off: archive_command is ",
                    part,
                    "postgresql.conf, line ",
                ],
            );
            let refused = site.master_command(&["backup"]);
            refused.fail_last(2, part);
        }
    });
}

#[test]
fn fault_137_a_script_around_our_line_is_ours_and_stays() {
    on_versions(|major| {
        let cluster = Cluster::builder()
            .major(major)
            .conf("archive_mode", "on")
            .start();
        let site = Site::with_cluster(cluster);
        let (walmgr, ini) = (walmgr_binary().display(), site.master_ini().display());
        let text = format!("#!/bin/sh\nexec {walmgr} {ini} xarchive \"$1\" \"$2\"\n");
        let script = site.home().write("archive.sh", text);
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let command = format!("{} %p %f", script.display());
        site.cluster()
            .psql(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
        site.cluster().reload();
        status_says(&site, &["RPO"]);
        assert!(
            !site
                .master_command(&["status"])
                .stdout
                .contains("archive_command")
        );
        site.cluster().psql("ALTER SYSTEM RESET archive_command");
        let conf = site.cluster().config_file();
        let mut lines = fs::read_to_string(&conf).unwrap();
        lines.push_str(&format!("archive_command = '{command}'\n"));
        fs::write(&conf, lines).unwrap();
        site.master_command(&["setup"]).succeed();
        assert_eq!(site.cluster().psql("SHOW archive_command"), command);
        site.master_command(&["backup"]).succeed();
    });
}

#[test]
fn fault_137_a_wait_says_what_the_archiver_is_at() {
    on_versions(|major| {
        let mut site = archiving_site(major);
        site.master_set("push_timeout", "8");
        let (walmgr, ini) = (walmgr_binary().display(), site.master_ini().display());
        let text = format!("#!/bin/sh\nsleep 20\nexec {walmgr} {ini} xarchive \"$1\" \"$2\"\n");
        let script = site.home().write("archive.sh", text);
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let conf = site.cluster().config_file();
        let mut lines = fs::read_to_string(&conf).unwrap();
        lines.push_str(&format!("archive_command = '{} %p %f'\n", script.display()));
        fs::write(&conf, lines).unwrap();
        let waited = site.master_command(&["setup"]);
        assert_eq!(waited.code, Some(1), "{}", waited.stderr);
        assert!(
            waited.stderr.contains("still waiting for 0000"),
            "{}",
            waited.stderr
        );
        let line = waited.stderr.lines().last().unwrap();
        assert!(line.contains("has neither archived"), "{line}");
        assert!(!line.contains("failed attempts"), "{line}");
    });
}

#[test]
fn fault_137_setup_forces_another_segment_when_the_first_went_elsewhere() {
    on_versions(|major| {
        let site = archiving_site(major);
        let (walmgr, ini) = (walmgr_binary().display(), site.master_ini().display());
        // Lets one segment go, as the command of before does if the archiver is late to read its settings.
        let text = format!(
            "#!/bin/sh\nmkdir {} 2>/dev/null && exit 0\nexec {walmgr} {ini} xarchive \"$1\" \"$2\"\n",
            site.home().join("let-go").display()
        );
        let script = site.home().write("archive.sh", text);
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        fs::set_permissions(site.home().path(), PermissionsExt::from_mode(0o777)).unwrap();
        let conf = site.cluster().config_file();
        let mut lines = fs::read_to_string(&conf).unwrap();
        lines.push_str(&format!("archive_command = '{} %p %f'\n", script.display()));
        fs::write(&conf, lines).unwrap();
        let said = site.master_command(&["setup"]);
        said.succeed();
        let told = "the archiver may have run the previous command; waiting for 0000";
        assert!(said.stderr.contains(told), "{}", said.stderr);
    });
}

fn set_command(site: &Site, command: &str) {
    let conf = site.cluster().config_file();
    let mut lines = fs::read_to_string(&conf).unwrap();
    lines.push_str(&format!(
        "archive_command = '{}'\n",
        command.replace('\'', "''")
    ));
    fs::write(&conf, lines).unwrap();
    site.cluster().reload();
    crate::support::wait_for("the reload", crate::replay::PATIENCE, || {
        (site.cluster().psql("SHOW archive_command") == command).then_some(())
    });
}

#[test]
fn fault_137_a_program_whose_name_begins_alike_is_another() {
    on_versions(|major| {
        let site = archiving_site(major);
        let ini = site.master_ini().display();
        for (name, text) in [
            ("walmgr3", "#!/bin/sh\nexit 0\n"),
            ("walmgr", "#!/usr/bin/python3\nimport skytools\n"),
        ] {
            let program = site.home().write(name, text);
            set_command(
                &site,
                &format!("{} {ini} xarchive %p %f", program.display()),
            );
            let said = format!("archive_command is `{}", program.display());
            status_says(&site, &[&said, "not walmgr's with this ini file"]);
            site.master_command(&["stop"])
                .fail_last(2, "nothing was changed");
            site.master_command(&["backup"]).fail_last(2, &said);
        }
        let replaced = site.master_command(&["setup"]);
        replaced.succeed();
        assert!(
            replaced.stderr.contains("is replaced: it gets no more"),
            "{}",
            replaced.stderr
        );
    });
}

#[test]
fn fault_137_what_stands_around_our_line_stays_and_archives() {
    let site = match Cluster::available(15) {
        Ok(()) => archiving_site(15),
        Err(reason) => skip!("{reason}"),
    };
    let walmgr = walmgr_binary().display();
    let ini = site.master_ini().display();
    for command in [
        format!("nice -n 5 {walmgr} {ini} xarchive \"%p\" \"%f\""),
        format!("LC_ALL=C env A=b '{walmgr}' \"{ini}\" xarchive %p %f"),
        format!("test ! -f /nonexistent/stop && {walmgr} {ini} xarchive %p %f"),
        format!("sh -c 'exec {walmgr} {ini} xarchive \"%p\" %f' 2>&1"),
        format!("if [ -d pg_wal ]; then {walmgr} {ini} xarchive %p %f; else exit 1; fi"),
    ] {
        set_command(&site, &command);
        let told = site.master_command(&["status"]).stdout;
        assert!(!told.contains("archive_command"), "{command}: {told}");
        site.master_command(&["setup"]).succeed();
        assert_eq!(site.cluster().psql("SHOW archive_command"), command);
    }
}

#[test]
fn fault_137_a_command_that_hides_its_failure_is_named_and_replaced() {
    on_versions(|major| {
        let site = archiving_site(major);
        let line = site.cluster().psql("SHOW archive_command");
        for behind in [" || true", " 2>&1 | cat", "; exit 0"] {
            set_command(&site, &format!("{line}{behind}"));
            status_says(
                &site,
                &[
                    "critical: archive_command is",
                    "segments that did not arrive",
                ],
            );
            // It is ours all the same, and what arrives can be waited for.
            site.master_command(&["-n", "backup"]).succeed();
            let said = site.master_command(&["setup"]);
            said.succeed();
            assert!(said.stderr.contains("it is replaced"), "{}", said.stderr);
            assert_eq!(site.cluster().psql("SHOW archive_command"), line);
        }
    });
}
