//! What `walmgr --generate` writes, read by the programs that it is for: man, mandoc, bash, zsh, fish, and walmgr itself.
//! Never looks at how it is made. Invariant: a program that the machine lacks is a SKIP with its name.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use walmgr::cli::words;

use crate::support::report_skip;

/// Has the files of `kind` written into a directory of their own.
fn generated(kind: &str) -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let mut walmgr = Command::new(env!("CARGO_BIN_EXE_walmgr"));
    let output = walmgr
        .args(["--generate", kind])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let files: Vec<PathBuf> = printed.lines().map(PathBuf::from).collect();
    assert!(!files.is_empty());
    (folder, files)
}

/// The output of a program, or `None` with a SKIP where it is absent.
fn ran(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .env("MANWIDTH", "96")
        .output()
    {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            report_skip(&format!("{program} is absent"));
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn man_and_mandoc_have_nothing_to_say_of_a_manual_page() {
    let (_folder, pages) = generated("man");
    assert_eq!(pages.len(), words().len() + 2);
    for page in &pages {
        let page = page.to_str().unwrap();
        let lint = ["-T", "lint", "-W", "warning", page];
        if let Some(output) = ran("mandoc", &lint) {
            assert_eq!(said(&output), "", "{page}");
        }
        let render = ["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page];
        if let Some(output) = ran("man", &render) {
            assert!(output.stderr.is_empty(), "{page}: {}", said(&output));
        }
    }
}

/// What bash offers for the last of `words`.
fn bash_offers(file: &Path, words: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "source '{}'; COMP_WORDS=({}); COMP_CWORD={}; _walmgr_behind_ini walmgr '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        file.display(),
        quoted.join(" "),
        words.len() - 1,
        words[words.len() - 1],
        words[words.len() - 2],
    );
    let output = Command::new("bash")
        .args(["--norc", "-c", &script])
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{}", said(&output));
    let offers = String::from_utf8(output.stdout).unwrap();
    offers
        .lines()
        .filter(|offer| !offer.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn bash_completes_commands_behind_the_ini_file_and_then_options() {
    let (_folder, files) = generated("bash");
    let offers = |words: &[&str]| bash_offers(&files[0], words);
    assert_eq!(offers(&["walmgr", "m.ini", "list"]), ["listbackups"]);
    assert_eq!(
        offers(&["walmgr", "-v", "--set", "a=b", "m.ini", "syncd"]),
        ["syncdaemon"]
    );
    assert_eq!(
        offers(&["walmgr", "m.ini", "receiver", "--rel"]),
        ["--reload"]
    );
    assert_eq!(
        offers(&["walmgr", "m.ini", "backup", "--allow"]),
        ["--allow-left-out"]
    );
    assert_eq!(offers(&["walmgr", "--not"]), ["--not-really"]);
    // Left to bash: files.
    assert_eq!(offers(&["walmgr", "mas"]), [""; 0]);
    let all = offers(&["walmgr", "m.ini", ""]);
    for word in words() {
        assert!(all.contains(&word), "{word} is not offered");
    }
}

#[test]
fn fish_completes_commands_behind_the_ini_file_and_then_options() {
    let (_folder, files) = generated("fish");
    let file = files[0].to_str().unwrap();
    for (line, expected) in [
        ("walmgr m.ini listb", "listbackups"),
        ("walmgr -v m.ini syncd", "syncdaemon"),
        ("walmgr m.ini receiver --rel", "--reload"),
        ("walmgr m.ini backup --allow", "--allow-left-out"),
    ] {
        let script = format!("source '{file}'; complete -C '{line}'");
        let Some(output) = ran("fish", &["--no-config", "-c", &script]) else {
            return;
        };
        let offers = said(&output);
        let mut words = offers.lines().filter_map(|offer| offer.split('\t').next());
        assert!(words.any(|word| word == expected), "{line}: {offers}");
    }
}

#[test]
fn zsh_can_read_its_completion() {
    let (_folder, files) = generated("zsh");
    let file = files[0].to_str().unwrap();
    let script =
        format!("autoload -U compinit && compinit -D && source '{file}' && whence -w _walmgr");
    if let Some(output) = ran("zsh", &["-f", "-c", &script]) {
        assert!(
            said(&output).contains("_walmgr: function"),
            "{}",
            said(&output)
        );
    }
}

#[test]
fn an_example_of_an_ini_file_loads() {
    let (_folder, files) = generated("examples");
    for file in &files {
        let mut walmgr = Command::new(env!("CARGO_BIN_EXE_walmgr"));
        let output = walmgr.arg(file).args(["-n", "identity"]).output().unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            file.display(),
            said(&output)
        );
    }
}

#[test]
fn a_kind_that_cannot_be_generated_is_refused_with_those_that_can() {
    let mut walmgr = Command::new(env!("CARGO_BIN_EXE_walmgr"));
    let output = walmgr
        .args(["--generate", "info", "/nonexistent"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = said(&output);
    assert!(
        said.contains("there is no info") && said.contains("man, bash, zsh, fish"),
        "{said}"
    );
    assert!(!Path::new("/nonexistent").exists());
}
