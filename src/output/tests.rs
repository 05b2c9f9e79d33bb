//! The shape of a line and the choice of what is said; the logfile as a file.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use tracing_subscriber::layer::Layered;

/// Collects what a layer writes.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Registry = Layered<
    Box<dyn Layer<tracing_subscriber::Registry> + Send + Sync>,
    tracing_subscriber::Registry,
>;

fn lines(build: impl FnOnce(Sink) -> Registry, talk: impl FnOnce()) -> String {
    let sink = Sink::default();
    tracing::subscriber::with_default(build(sink.clone()), talk);
    String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
}

fn written(format: Format, level: LevelFilter, to_file: bool, talk: impl FnOnce()) -> String {
    lines(
        |sink| {
            let make = move || sink.clone();
            tracing_subscriber::registry().with(match to_file {
                true => layer(make, format, FILE_LINE, level),
                false => layer(make, format, STDERR_LINE, level),
            })
        },
        talk,
    )
}

#[test]
fn a_line_of_the_logfile_has_time_process_level_and_message() {
    let text = written(Format::Text, LevelFilter::INFO, true, || {
        tracing::info!("Configuring WAL archiving");
        tracing::debug!("left out");
    });
    let (stamp, rest) = text.split_at("2011-09-21 16:57:05,685".len());
    let shape: String = stamp
        .chars()
        .map(|c| if c.is_ascii_digit() { '9' } else { c })
        .collect();
    assert_eq!(shape, "9999-99-99 99:99:99,999");
    assert_eq!(
        rest,
        format!(" {} INFO Configuring WAL archiving\n", std::process::id())
    );
}

#[test]
fn a_line_on_stderr_is_the_message_with_its_fields_and_its_peer() {
    let text = written(Format::Text, LevelFilter::INFO, false, || {
        let span = tracing::info_span!("connection", peer = "alpha");
        let _inside = span.enter();
        tracing::warn!(lsn = "0/16", "record refused");
    });
    assert_eq!(
        text,
        "walmgr: warning: peer=\"alpha\": record refused lsn=\"0/16\"\n"
    );
}

#[test]
fn a_peer_cannot_forge_a_line() {
    for format in [Format::Text, Format::Json] {
        let text = written(format, LevelFilter::INFO, true, || {
            tracing::error!(
                "bad name {}",
                "x\n2011-09-21 16:57:05,685 1 INFO all is well\u{1b}[2J"
            );
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}

#[test]
fn json_lines_are_json() {
    let text = written(Format::Json, LevelFilter::INFO, true, || {
        tracing::info!(bytes = 5, "stored");
    });
    let value: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!(value["message"], "stored");
    assert_eq!(value["level"], "INFO");
    assert_eq!(value["bytes"], 5);
}

#[test]
fn an_archiver_is_silent_on_success_unless_verbose() {
    let options = |quiet, verbosity| Options {
        quiet,
        verbosity,
        ..Options::default()
    };
    for (quiet, verbosity, archiver, person, file) in [
        (
            true,
            0,
            LevelFilter::ERROR,
            LevelFilter::ERROR,
            LevelFilter::WARN,
        ),
        (
            false,
            0,
            LevelFilter::WARN,
            LevelFilter::INFO,
            LevelFilter::INFO,
        ),
        (
            false,
            1,
            LevelFilter::INFO,
            LevelFilter::DEBUG,
            LevelFilter::DEBUG,
        ),
        (
            false,
            2,
            LevelFilter::DEBUG,
            LevelFilter::TRACE,
            LevelFilter::TRACE,
        ),
        (
            false,
            9,
            LevelFilter::TRACE,
            LevelFilter::TRACE,
            LevelFilter::TRACE,
        ),
    ] {
        let options = options(quiet, verbosity);
        assert_eq!(stderr_level(&options, Speaker::Archiver), archiver);
        assert_eq!(stderr_level(&options, Speaker::Person), person);
        assert_eq!(stderr_level(&options, Speaker::Daemon), person);
        assert_eq!(file_level(&options), file);
    }
}

#[test]
fn fault_95_a_symlink_or_fifo_is_no_logfile() {
    let folder = tempfile::tempdir().unwrap();
    let victim = folder.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    let link = folder.path().join("walmgr.log");
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    let error = open_for_append(&link).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("is a symlink"), "{error}");
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");

    let fifo = folder.path().join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    assert!(open_for_append(&fifo).is_err());
    assert!(open_for_append(folder.path()).is_err());
}

#[test]
fn a_logfile_is_appended_to_and_not_readable_by_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walmgr.log");
    for _ in 0..2 {
        open_for_append(&path)
            .unwrap()
            .write_all(b"line\n")
            .unwrap();
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"line\nline\n");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o027,
        0
    );
    let error = open_for_append(&folder.path().join("missing/walmgr.log")).unwrap_err();
    assert!(error.to_string().contains("missing/walmgr.log"), "{error}");
}
