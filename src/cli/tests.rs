//! The grammar, driven without the binary: what people type, and what they mistype.

use std::path::Path;

use walmgr_protocol::names::WalFileName;

use super::*;
use crate::master::setup::SetupArgs;
use crate::options::init::InitSide;
use crate::standby::authorize::AuthorizeArgs;
use crate::standby::revoke::RevokeArgs;

const SEGMENT: &str = "00000001000000020000009A";

fn parsed(line: &str) -> Parsed {
    parse(
        std::iter::once("walmgr")
            .chain(line.split_whitespace())
            .map(OsString::from),
    )
}

fn invocation(line: &str) -> Invocation {
    match parsed(line) {
        Parsed::Run(invocation) => invocation,
        other => panic!("`{line}` is not a run: {other:?}"),
    }
}

fn complaint_about(line: &str) -> String {
    match parsed(line) {
        Parsed::Usage(error, table) => {
            let expected = if table == ExitTable::Xrestore { 254 } else { 2 };
            assert_eq!(table.code(error.kind()), expected, "`{line}`");
            let text = format!("{error} {}", error.tip().unwrap_or_default());
            assert!(
                !text.contains('\n'),
                "`{line}` answers in several lines: {text}"
            );
            text
        }
        other => panic!("`{line}` is accepted: {other:?}"),
    }
}

#[test]
fn options_count_wherever_they_stand() {
    for line in [
        "-vv -n --set a=1 master.ini setup --no-check",
        "-v master.ini -n setup -v --set a=1 --no-check",
        "master.ini setup --no-check --verbose --not-really -v --set a=1",
        "--verbose --set=a=1 master.ini --not-really setup --no-check --verbose",
    ] {
        let found = invocation(line);
        assert_eq!(found.ini, Path::new("master.ini"), "{line}");
        assert_eq!(
            found.command,
            Command::Setup(SetupArgs {
                check: false,
                restart: false,
                root_restarts: false,
            }),
            "{line}"
        );
        assert_eq!(found.options.verbosity, 2, "{line}");
        assert!(found.options.not_really, "{line}");
        assert_eq!(
            found.options.overrides,
            [("a".to_owned(), "1".to_owned())],
            "{line}"
        );
    }
}

#[test]
fn settings_given_in_several_places_keep_their_order() {
    let found = invocation("--set a=1,b=2 x.ini --set c=3 periodic --set a=4");
    let names: Vec<&str> = found
        .options
        .overrides
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["a", "b", "c", "a"]);
}

#[test]
fn a_repeated_flag_is_the_same_flag() {
    assert!(invocation("-n -n x.ini stop -n -n").options.not_really);
}

#[test]
fn every_command_takes_its_own_arguments() {
    assert_eq!(
        invocation("m.ini identity --json").command,
        Command::Identity
    );
    assert_eq!(invocation("m.ini stop").command, Command::Stop);
    assert_eq!(invocation("m.ini periodic -q").command, Command::Periodic);
    assert_eq!(
        invocation("m.ini setup").command,
        Command::Setup(SetupArgs {
            check: true,
            restart: false,
            root_restarts: false,
        })
    );
    assert_eq!(
        invocation("s.ini revoke alpha").command,
        Command::Revoke(RevokeArgs {
            name: "alpha".into()
        })
    );
    assert_eq!(
        invocation("s.ini authorize SHA256:abc alpha --rights push,read").command,
        Command::Authorize(AuthorizeArgs {
            fingerprint: "SHA256:abc".into(),
            name: "alpha".into(),
            rights: vec!["push".into(), "read".into()],
        })
    );
    assert!(invocation("s.ini receiver -d").options.daemon);
    assert!(invocation("-s s.ini receiver").options.stop);
    assert!(invocation("s.ini --reload receiver").options.reload);
    assert!(invocation("s.ini receiver --kill").options.kill);
}

#[test]
fn xarchive_takes_paths_that_are_not_utf_8() {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let path = OsString::from_vec(b"pg_\xff/seg".to_vec());
    let words = [
        "walmgr".into(),
        "m.ini".into(),
        "xarchive".into(),
        path,
        SEGMENT.into(),
    ];
    let Parsed::Run(found) = parse(words) else {
        panic!("not accepted");
    };
    assert_eq!(found.command.exit_table(), ExitTable::Xarchive);
    let Command::Xarchive(typed) = found.command else {
        panic!("another command");
    };
    assert_eq!(typed.path.as_os_str().as_bytes(), b"pg_\xff/seg");
    assert_eq!(typed.name.to_string(), SEGMENT);
}

#[test]
fn fault_5_a_mistyped_archive_command_is_one_line_and_code_2() {
    for arguments in [
        "",
        "pg_wal/x",
        "pg_wal/x ../etc/passwd",
        "--bogus pg_wal/x",
        "a b c",
    ] {
        let line = format!("m.ini xarchive {arguments}");
        complaint_about(&line);
        assert!(
            matches!(parsed(&line), Parsed::Usage(_, ExitTable::Xarchive)),
            "{line}"
        );
    }
}

#[test]
fn fault_5_a_bad_flag_is_one_line_and_code_2_for_every_command() {
    for word in words() {
        let text = complaint_about(&format!("m.ini {word} --bogus"));
        assert!(text.contains("--bogus"), "{text}");
    }
    complaint_about("--bogus");
    complaint_about("");
    complaint_about("--set");
    complaint_about("-q -v m.ini stop");
}

#[test]
fn fault_74_no_misspelt_restore_command_can_end_a_recovery() {
    for words in [
        "xrestore",
        "xrestore %f pg_wal/RECOVERYXLOG",
        "xrestore --bogus 000000010000000000000001 pg_wal/RECOVERYXLOG",
        "xrestore 000000010000000000000001 pg_wal/RECOVERYXLOG x y",
        "xrestor 000000010000000000000001 pg_wal/RECOVERYXLOG",
        "restore 00000002.history pg_wal/RECOVERYHISTORY",
        "xrestore -d 00000002.history x",
    ] {
        let line = format!("s.ini {words}");
        let usage = parsed(&line);
        assert!(
            matches!(usage, Parsed::Usage(_, ExitTable::Xrestore)),
            "{line}"
        );
        complaint_about(&line);
    }
}

#[test]
fn xrestore_takes_two_names_and_perhaps_a_third() {
    let name: WalFileName = SEGMENT.parse().unwrap();
    for oldest_needed in ["", SEGMENT, "000000000000000000000000"] {
        let line = format!("s.ini xrestore {SEGMENT} pg_wal/RECOVERYXLOG {oldest_needed}");
        let found = invocation(&line);
        assert_eq!(found.exit_table(), ExitTable::Xrestore);
        let Command::Xrestore(typed) = found.command else {
            panic!("another command");
        };
        assert_eq!(typed.name, name);
        assert_eq!(typed.path, Path::new("pg_wal/RECOVERYXLOG"));
    }
}

#[test]
fn mistakes_are_answered_with_the_way_out() {
    for (line, expected) in [
        ("m.ini setpu", "did you mean `setup`?"),
        ("m.ini nonsense", "the commands are: init, identity,"),
        ("m.ini", "the command is missing behind m.ini"),
        ("setup", "type: walmgr <config.ini> setup"),
        (
            "setup m.ini",
            "the configuration file comes before the command",
        ),
        (
            "backup m.ini",
            "the configuration file comes before the command",
        ),
        ("m.ini setup -d", "-d"),
        ("-d m.ini setup", "`setup` is no daemon, it has no --daemon"),
        (
            "m.ini receiver -s -k",
            "--stop and --kill exclude each other",
        ),
        ("m.ini setup --json", "`setup` has no --json"),
        (
            "m.ini setup --set loop_delay",
            "`loop_delay` in --set has no `=value`",
        ),
        (
            "s.ini authorize SHA256:abc alpha --rights root",
            "push, backup, read",
        ),
        ("m.ini xarchive pg_wal/x y", "a WAL file name"),
        ("m.ini xarchive pg_wal/x", "<NAME>"),
    ] {
        let text = complaint_about(line);
        assert!(text.contains(expected), "`{line}`: {text}");
    }
}

#[test]
fn a_file_behind_the_command_is_named_with_the_words_in_order() {
    for (typed, meant) in [
        ("setup m.ini", "m.ini setup"),
        ("setup m.conf", "m.conf setup"),
        ("init m.ini", "m.ini init"),
        ("init master m.ini", "m.ini init master"),
        ("-v init m.ini --pgdata /pg", "-v m.ini init --pgdata /pg"),
        ("authorize m.ini", "m.ini authorize"),
        ("authorize m.ini SHA256:abc", "m.ini authorize SHA256:abc"),
        (
            "authorize m.ini SHA256:abc db1",
            "m.ini authorize SHA256:abc db1",
        ),
        (
            "authorize SHA256:abc db1 m.ini",
            "m.ini authorize SHA256:abc db1",
        ),
        ("restore m.ini", "m.ini restore"),
        ("restore m.ini last /pg", "m.ini restore last /pg"),
        ("xarchive m.ini pg_wal/x", "m.ini xarchive pg_wal/x"),
        (
            "--set loop_delay=5 status m.ini",
            "--set loop_delay=5 m.ini status",
        ),
    ] {
        let text = complaint_about(typed);
        let expected =
            format!("the configuration file comes before the command; type: walmgr {meant}");
        assert_eq!(text.trim_end(), expected, "`{typed}`");
    }
    for (typed, meant) in [
        ("authorize", "<config.ini> authorize"),
        (
            "authorize SHA256:abc db1",
            "<config.ini> authorize SHA256:abc db1",
        ),
        ("init master", "<config.ini> init master"),
        ("-v setup", "-v <config.ini> setup"),
    ] {
        let expected = format!("the configuration file is missing; type: walmgr {meant}");
        assert_eq!(complaint_about(typed).trim_end(), expected, "`{typed}`");
    }
}

#[test]
fn init_knows_its_side_from_options_word_or_file_name() {
    use InitSide::{Master, Standby};
    for (line, expected) in [
        ("a.ini init --pgdata /pg", (Master, Some("/pg"), None)),
        ("a.ini init --slave b:7432", (Master, None, Some("b:7432"))),
        ("a.ini init master", (Master, None, None)),
        ("/etc/walmgr/master.ini init", (Master, None, None)),
        ("a.ini init standby", (Standby, None, None)),
        ("/etc/master/standby.ini init", (Standby, None, None)),
        ("slave.ini init", (Standby, None, None)),
    ] {
        let found = invocation(line);
        let Command::Init(typed) = found.command else {
            panic!("`{line}` is another command");
        };
        let side = typed.side(&found.ini).unwrap();
        let pgdata = typed.pgdata.as_deref().and_then(Path::to_str);
        assert_eq!((side, pgdata, typed.slave.as_deref()), expected, "{line}");
        assert_eq!(typed.slave_fingerprint, None, "{line}");
    }
    assert!(complaint_about("a.ini init").contains("type `init master` or `init standby`"));
    assert!(complaint_about("a.ini init standby --slave b").contains("belong to the master"));
}

#[test]
fn help_version_and_sample_need_no_file() {
    let Parsed::Print(version) = parsed("--version") else {
        panic!("no page");
    };
    assert_eq!(
        version.trim_end(),
        format!("walmgr {}", env!("CARGO_PKG_VERSION"))
    );
    assert!(matches!(parsed("--ini"), Parsed::Sample));
    for line in ["-h", "--help", "m.ini setup --help", "m.ini receiver -h"] {
        assert!(matches!(parsed(line), Parsed::Print(_)), "{line}");
    }
}

#[test]
fn help_lists_every_command_that_exists_and_no_other() {
    let Parsed::Print(page) = parsed("--help") else {
        panic!("no page");
    };
    insta::assert_snapshot!(page);
}
