//! The binary from outside: exit codes, one line on stderr, and what it does when things run out.
//! Never needs a server or a configuration. Invariant: no exit code above 125 except `xrestore`'s.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

fn walmgr(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walmgr"));
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command
}

fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(
        text.starts_with("walmgr: ") && text.ends_with('\n'),
        "{text:?}"
    );
    let mut below = text.lines().skip(1);
    assert!(
        below.all(|line| line.starts_with("walmgr: tip: ")),
        "{text:?}"
    );
    assert!(output.stdout.is_empty());
    text
}

#[test]
fn fault_5_a_bad_command_line_is_one_line_and_code_2() {
    for line in [
        "",
        "--bogus",
        "m.ini",
        "m.ini nonsense",
        "m.ini backup",
        "m.ini xarchive",
        "m.ini xarchive --bogus pg_wal/000000010000000000000001 000000010000000000000001",
        "m.ini xarchive pg_wal/x x",
        "m.ini receiver -s -k",
        "m.ini setup --set x",
    ] {
        let output = walmgr(line).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "`{line}`");
        complaint(&output);
    }
}

#[test]
fn fault_74_a_misspelt_restore_command_stops_the_recovery() {
    for line in [
        "xrestore",
        "s.ini xrestore nonsense pg_wal/RECOVERYXLOG",
        "s.ini xrestor 000000010000000000000001 pg_wal/RECOVERYXLOG",
        "/nonexistent/s.ini xrestore 000000010000000000000001 pg_wal/RECOVERYXLOG",
        "/nonexistent/s.ini xarchive 000000010000000000000001 pg_wal/RECOVERYXLOG",
    ] {
        let output = walmgr(line).output().unwrap();
        assert_eq!(output.status.code(), Some(254), "`{line}`");
        complaint(&output);
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    for line in ["--version", "-V", "-h", "m.ini setup --help"] {
        let output = walmgr(line).output().unwrap();
        assert!(output.status.success(), "`{line}`");
        assert!(output.stderr.is_empty(), "`{line}`");
        assert!(!output.stdout.is_empty(), "`{line}`");
    }
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = walmgr("--version")
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("write the result to stdout"));
}

#[test]
fn fault_5_a_reader_that_is_gone_ends_nothing_by_a_signal() {
    for (line, expected) in [("--help", 1), ("--bogus", 2)] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = walmgr(line)
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .status()
            .unwrap();
        assert_eq!(
            status.code(),
            Some(expected),
            "`{line}` by signal {:?}",
            status.signal()
        );
    }
}

#[test]
fn fault_5_exhausted_memory_is_one_line_and_a_counted_code() {
    exhaust("xarchive", 1, 2);
}

#[test]
fn fault_74_exhausted_memory_stops_a_recovery() {
    exhaust("xrestore", 254, 254);
}

/// Raises the limit from where nothing can be loaded to where the program has all it needs, and
/// then complains about the command line.
fn exhaust(word: &str, exhausted_code: i32, usage_code: i32) {
    let mut exhausted = 0;
    let mut enough = 0;
    let mut limits_kib = (2_000..400_000).step_by(100);
    while enough < 10 {
        let limit_kib = limits_kib
            .next()
            .expect("the program needs less than 400 MB");
        let script = format!(
            "ulimit -v {limit_kib} && exec \"$0\" m.ini {word} {} x",
            "--set a=b ".repeat(4_000)
        );
        let output = Command::new("bash")
            .args(["-c", &script, env!("CARGO_BIN_EXE_walmgr")])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        // Otherwise bash, the kernel or the loader gave up before the program ran.
        if text.starts_with("walmgr: ") {
            complaint(&output);
            match output.status.code() {
                // Or the C library or the kernel found no memory where nobody asked for any.
                Some(code)
                    if code == exhausted_code
                        && (text.contains("out of memory")
                            || text.contains("stopped by a crash")) =>
                {
                    exhausted += 1;
                }
                Some(code) if code == usage_code => enough += 1,
                _ => panic!("{limit_kib} KiB: {output:?}"),
            }
        }
        // Before `main` the language's runtime wants a page for a signal stack, and nothing of ours
        // runs yet: the width of one step here, and nothing a segment's fate hangs on.
        let before_main = text.contains("failed to allocate an alternative stack");
        let aborted = !before_main
            && (output.status.signal() == Some(6) || output.status.code() == Some(134));
        assert!(!aborted, "{limit_kib} KiB: {output:?}");
    }
    assert!(exhausted > 0, "no limit exhausted the program");
}
