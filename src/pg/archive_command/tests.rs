//! Lines as they stand in `archive_command`, and whose they are.
//! Never a shell. Invariant: a line that is taken for ours would call walmgr with this ini file.

use super::*;
use std::fs;

const INI: &str = "/etc/walmgr/master.ini";

#[track_caller]
fn assert_destination(command: &str, expected: Destination) {
    let ours = Ours {
        ini: Path::new(INI),
        data: Path::new("/etc/walmgr"),
    };
    assert_eq!(destination(command, &ours), expected, "{command}");
}

#[test]
fn a_command_is_ours_only_where_walmgr_is_run_with_this_ini_file() {
    for command in [
        "/usr/bin/walmgr /etc/walmgr/master.ini xarchive %p %f",
        "walmgr /etc/walmgr/master.ini -q xarchive %p %f",
        "walmgr --set a=b /etc/walmgr/master.ini xarchive %p %f",
        "walmgr --set=a=b -v /etc/walmgr/master.ini -q xarchive -v %p %f",
        "walmgr master.ini xarchive %p %f",
        "cd /etc && walmgr walmgr/master.ini xarchive %p %f",
        "\"/usr/bin/walmgr\" '/etc/walmgr/master.ini' xarchive \"%p\" \"%f\"",
        "/usr/bin/walmgr /etc/walmgr/master.ini xarchive \"%p\" \"%f\" 2>>/var/log/walmgr.log",
        "  walmgr /etc/walmgr/master.ini xarchive %p %f  # since 2019",
        "nice walmgr /etc/walmgr/master.ini xarchive %p %f",
        "nice -n 19 ionice -c 3 /usr/bin/walmgr /etc/walmgr/master.ini xarchive %p %f",
        "PGSSLMODE=require LC_ALL=C walmgr /etc/walmgr/master.ini xarchive %p %f",
        "env -i PATH=/usr/bin walmgr /etc/walmgr/master.ini xarchive %p %f",
        "exec walmgr /etc/walmgr/master.ini xarchive %p %f",
        "timeout -k 5 60 walmgr /etc/walmgr/master.ini xarchive %p %f",
        "sudo -n -u postgres -- walmgr /etc/walmgr/master.ini xarchive %p %f",
        "flock -n /run/lock/x walmgr /etc/walmgr/master.ini xarchive %p %f",
        "sh -c 'walmgr /etc/walmgr/master.ini xarchive %p %f'",
        "/bin/bash -o pipefail -ec \"exec walmgr /etc/walmgr/master.ini xarchive \\\"%p\\\" %f\"",
        "ionice -c3 sh -c 'cd /etc; walmgr walmgr/master.ini xarchive %p %f'",
        "flock /run/lock/x -c 'walmgr /etc/walmgr/master.ini xarchive %p %f'",
        "su postgres -c 'walmgr /etc/walmgr/master.ini xarchive %p %f'",
        "cp %p /srv && walmgr /etc/walmgr/master.ini xarchive %p %f",
        "walmgr /etc/walmgr/master.ini xarchive %p %f && cp %p /srv/%f",
        "test ! -f /srv/stop && walmgr /etc/walmgr/master.ini xarchive %p %f",
        "[ -e /srv/stop ] || walmgr /etc/walmgr/master.ini xarchive %p %f",
        "if [ -e /x ]; then walmgr /etc/walmgr/master.ini xarchive %p %f; else exit 1; fi",
        "if [ -e /x ]; then walmgr /etc/walmgr/master.ini xarchive %p %f; else true; fi",
        "(walmgr /etc/walmgr/master.ini xarchive %p %f)",
        "{ walmgr /etc/walmgr/master.ini xarchive %p %f; }",
        "walmgr /etc/walmgr/master.ini xarchive %p %f || exit 1",
        "walmgr /etc/walmgr/master.ini xarchive %p %f || (logger failed; exit 2)",
        "walmgr /etc/walmgr/master.ini xarchive %p %f || { logger failed; false; }",
        "walmgr /etc/walmgr/master.ini xarchive %p %f; code=$?; logger $code; exit $?",
        "walmgr /etc/walmgr/master.ini xarchive %p %f || walmgr /etc/walmgr/master.ini xarchive %p %f",
        "if walmgr /etc/walmgr/master.ini xarchive %p %f; then logger ok; else exit 1; fi",
        "logger %f; walmgr /etc/walmgr/master.ini xarchive %p %f",
        "echo %f | walmgr /etc/walmgr/master.ini xarchive %p %f",
    ] {
        assert_destination(command, Destination::Here);
    }
}

#[test]
fn a_command_of_a_like_name_or_for_another_file_is_not_ours() {
    for command in [
        "/usr/bin/walmgr3 /etc/walmgr/master.ini xarchive %p %f",
        "walmgr.py /etc/walmgr/master.ini xarchive %p %f",
        "/opt/walmgr/bin/ship /etc/walmgr/master.ini xarchive %p %f",
        "sudo -u postgres walmgr3 /etc/walmgr/master.ini xarchive %p %f",
        "sh -c 'walmgr3 /etc/walmgr/master.ini xarchive %p %f'",
        "/usr/bin/walmgr /etc/walmgr/other-master.ini xarchive %p %f",
        "/usr/bin/walmgr /etc/walmgr/master.ini.old xarchive %p %f",
        "/usr/bin/walmgr '/etc/walmgr/master.ini xarchive' %p %f",
        "/usr/bin/walmgr /etc/walmgr/master.ini sync xarchive",
        "/usr/bin/walmgr xarchive /etc/walmgr/master.ini",
        "ssh standby walmgr /etc/walmgr/master.ini xarchive %p %f",
        "echo walmgr /etc/walmgr/master.ini xarchive %p %f",
        "cp %p /srv/%f # walmgr /etc/walmgr/master.ini xarchive %p %f",
        "echo 'walmgr /etc/walmgr/master.ini xarchive %p %f'",
        "cd /srv && walmgr master.ini xarchive %p %f",
        "cp %p /srv/%f",
    ] {
        assert_destination(command, Destination::Other);
    }
    assert_destination("", Destination::Kept);
    for command in [
        " ",
        LETS_GO,
        "# later",
        "exit 0",
        "exit",
        ":",
        "true",
        "test 1",
        "cd .",
        "/bin/true; exit 0",
        "walmgr -n /etc/walmgr/master.ini xarchive %p %f",
        "walmgr /etc/walmgr/master.ini xarchive --not-really %p %f",
    ] {
        assert_destination(command, Destination::Nobody);
    }
}

#[test]
fn a_failure_that_nobody_hears_of_is_seen() {
    for command in [
        "walmgr /etc/walmgr/master.ini xarchive %p %f || true",
        "walmgr /etc/walmgr/master.ini xarchive %p %f; exit 0",
        "walmgr /etc/walmgr/master.ini xarchive %p %f; logger %f",
        "walmgr /etc/walmgr/master.ini xarchive %p %f || logger failed",
        "walmgr /etc/walmgr/master.ini xarchive %p %f && logger ok || logger failed",
        "walmgr /etc/walmgr/master.ini xarchive %p %f | tee -a /tmp/log",
        "walmgr /etc/walmgr/master.ini xarchive %p %f 2>&1 | logger",
        "(walmgr /etc/walmgr/master.ini xarchive %p %f) | logger",
        "walmgr /etc/walmgr/master.ini xarchive %p %f &",
        "(walmgr /etc/walmgr/master.ini xarchive %p %f) &",
        "! walmgr /etc/walmgr/master.ini xarchive %p %f",
        "sh -c 'walmgr /etc/walmgr/master.ini xarchive %p %f' || true",
        "sh -c 'walmgr /etc/walmgr/master.ini xarchive %p %f; true'",
        "if walmgr /etc/walmgr/master.ini xarchive %p %f; then true; fi",
    ] {
        assert_destination(command, Destination::Unheard);
    }
}

#[test]
fn a_file_that_is_named_says_whose_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(
        "ours.sh",
        "#!/bin/sh\n# ours\nexec /usr/bin/walmgr /m.ini xarchive \"$@\"\n",
    );
    write("passes.sh", "#!/usr/bin/env bash\nionice walmgr \"$@\"\n");
    write(
        "other.sh",
        "#!/bin/sh\n# no walmgr xarchive\ncp \"$1\" /srv/walmgr/xarchive\n",
    );
    write("walmgr", "#!/usr/bin/python\nimport walmgr\nxarchive = 1\n");
    write(
        "ours.py",
        "#!/usr/bin/python3\nrun('walmgr /m.ini xarchive')\n",
    );
    let ini = path("master.ini");
    write("master.ini", "");
    std::os::unix::fs::symlink(&ini, path("link.ini")).unwrap();
    let (ini, link) = (Path::new(&ini), path("link.ini"));
    let ours = Ours {
        ini,
        data: folder.path(),
    };
    let own = std::env::current_exe().unwrap().display().to_string();
    for (command, expected) in [
        (format!("{} %p %f", path("ours.sh")), Destination::Here),
        ("./ours.sh %p %f".to_owned(), Destination::Here),
        (format!("sh {} %p %f", path("ours.sh")), Destination::Here),
        (format!("nice {} %p %f", path("ours.sh")), Destination::Here),
        (
            format!("{} %p %f || true", path("ours.sh")),
            Destination::Unheard,
        ),
        (
            format!("{} {link} xarchive %p %f", path("passes.sh")),
            Destination::Here,
        ),
        (
            format!("{} /m.ini xarchive %p %f", path("passes.sh")),
            Destination::Other,
        ),
        (format!("{} %p %f", path("passes.sh")), Destination::Other),
        (format!("{} %p %f", path("other.sh")), Destination::Other),
        (format!("{} %p %f", path("ours.py")), Destination::Other),
        // Skytools' program of the same name, with the same file.
        (
            format!("{} {link} xarchive %p %f", path("walmgr")),
            Destination::Other,
        ),
        (format!("walmgr {link} xarchive %p %f"), Destination::Here),
        (format!("{own} {link} xarchive %p %f"), Destination::Here),
        (format!("{} %p %f", path("none.sh")), Destination::Other),
    ] {
        assert_eq!(destination(&command, &ours), expected, "{command}");
    }
    for (command, kept) in [
        (format!("{} %p %f", path("ours.sh")), true),
        (format!("walmgr {link} xarchive %p %f"), false),
        (format!("nice walmgr {link} xarchive %p %f"), true),
        (format!("cp %p /srv && {own} {link} xarchive %p %f"), true),
        (format!("nice /none/walmgr {link} xarchive %p %f"), false),
        (format!("nice walmgr {link} xarchive %p %f || true"), false),
    ] {
        assert_eq!(is_worth_keeping(&command, &ours), kept, "{command}");
    }
}

proptest::proptest! {
    #[test]
    fn no_command_makes_it_panic(text in "(walmgr|sh|-c|m.ini|xarchive|[ '\"\\\\$()<>&|;#\n=!{}]|nice|exit|fi){0,20}") {
        let ours = Ours { ini: Path::new("/d/m.ini"), data: Path::new("/d") };
        destination(&text, &ours);
        is_worth_keeping(&text, &ours);
    }
}
