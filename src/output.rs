//! Everything walmgr says: results on stdout, the log on stderr and in `logfile`.
//! Never fails a command because a log cannot be written. Invariant: one event is one line, whatever
//! bytes a peer or a file put into it.

pub mod backups;
pub(crate) mod progress;
mod shown;
mod waiting;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};

use rustix::fs::OFlags;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::error::{CommandError, IoContext, Kind, Result, with_own_ini};
use crate::memory;
use crate::options::Options;

use shown::JsonLines;
pub(crate) use shown::escaped;
pub use waiting::Waiting;

/// What the settings say about the log.
#[derive(Debug, Clone, Copy)]
pub struct Log<'a> {
    /// `logfile`.
    pub logfile: Option<&'a Path>,
    /// `log_format`.
    pub format: Format,
    /// Who is talking.
    pub speaker: Speaker,
}

/// `log_format`: how a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `2011-09-21 16:57:05,685 30450 INFO message` in the file, the message alone on stderr.
    #[default]
    Text,
    /// One JSON object a line, in both places.
    Json,
}

/// How much is said without `-v`, and whether the work can go on without its logfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// PostgreSQL reads stderr: nothing but warnings. Archiving never waits for a logfile.
    Archiver,
    /// A person reads stderr: what is done. A missing logfile is a warning.
    Person,
    /// Nobody may be watching: a logfile that cannot be written is a wrong setting.
    Daemon,
}

static LOGFILE: OnceLock<Logfile> = OnceLock::new();
static STARTED: AtomicBool = AtomicBool::new(false);
/// Whether lines that do not pass through the log are JSON like those that do.
static JSON: AtomicBool = AtomicBool::new(false);

/// Starts logging; to be called once, as soon as the settings are known.
pub fn start(options: &Options, log: Log<'_>) -> Result<()> {
    let opened = log.logfile.map(Logfile::open).transpose();
    let (file, complaint) = match opened {
        Ok(file) => (file, None),
        Err(error) => (None, Some(error)),
    };
    let file = file.map(|file| LOGFILE.get_or_init(|| file));
    let subscriber = tracing_subscriber::registry()
        .with(layer(
            io::stderr,
            log.format,
            STDERR_LINE,
            stderr_level(options, log.speaker),
        ))
        .with(file.map(|file| layer(file, log.format, FILE_LINE, file_level(options))));
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        STARTED.store(true, Ordering::Release);
    }
    if log.format == Format::Json {
        JSON.store(true, Ordering::Release);
    }
    match complaint {
        // Not before stderr is logged to: this error too is a line of the log.
        Some(error) if log.speaker == Speaker::Daemon => return Err(error),
        Some(error) => tracing::warn!("logging to stderr only: {error}"),
        None => {}
    }
    Ok(())
}

/// Opens `logfile` again by its name, as logrotate expects it after a SIGHUP.
pub fn reopen_logfile() -> Result<()> {
    let Some(logfile) = LOGFILE.get() else {
        return Ok(());
    };
    let fresh = open_for_append(&logfile.path)?;
    *logfile
        .file
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner) = fresh;
    Ok(())
}

/// Prints a command's result, one line or more, on stdout. Where a peer's words are a part of a line,
/// the caller `escaped` them: here a new line is taken for the program's own.
pub fn print(text: &str) -> Result<()> {
    let (text, mut out) = (shown::lines(&with_own_ini(text)), io::stdout().lock());
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|error| CommandError::retry("write the result to stdout").because(error))
}

/// With `-n`: says on stdout what a real run would do, as a verb phrase.
pub fn not_really(doing: &str) -> Result<()> {
    print(&format!("would {doing}"))
}

/// Reports the failure that ends a command. That a file does not exist is an answer to whoever
/// asked, several times a second perhaps, and no line in PostgreSQL's log; what `status` found is on
/// stdout.
pub fn failure(error: &CommandError) {
    if error.is_answer() {
        tracing::debug!("{error}");
        return;
    }
    if !memory::take_last_word() {
        return;
    }
    let line = match error.kind().runbook() {
        Some(runbook) => format!("{error} (walmgr help {runbook})"),
        None => error.to_string(),
    };
    if STARTED.load(Ordering::Acquire) {
        tracing::error!("{line}");
    } else {
        to_stderr(&escaped(&line));
        if let Some(tip) = error.tip() {
            to_stderr(&escaped(&format!("tip: {tip}")));
        }
    }
    memory::last_word_is_said();
}

/// Says one line when the process may be in any state, a panicking logger included.
pub fn last_words(line: &str) {
    let json = JSON.load(Ordering::Acquire).then(|| json_line(line));
    let line = escaped(line);
    match &json {
        Some(json) => write_to_stderr(json),
        None => to_stderr(&line),
    }
    memory::last_word_is_said();
    if let Some(logfile) = LOGFILE.get() {
        let mut file = match logfile.file.try_lock() {
            Ok(file) => file,
            Err(TryLockError::Poisoned(file)) => file.into_inner(),
            // This thread may be the one that holds it.
            Err(TryLockError::WouldBlock) => return,
        };
        let text = json.unwrap_or_else(|| format!("{} ERROR {line}\n", stamp()));
        let _ = file.write_all(text.as_bytes());
    }
}

/// An error as a line of JSON, with the members that lines of the log have.
fn json_line(message: &str) -> String {
    let timestamp = jiff::Timestamp::now().to_string();
    let line = serde_json::json!({
        "timestamp": timestamp,
        "level": "ERROR",
        "message": message,
        "target": module_path!(),
    });
    shown::lines(&format!("{line}\n"))
}

fn to_stderr(line: &str) {
    write_to_stderr(&format!("walmgr: {line}\n"));
}

fn write_to_stderr(text: &str) {
    // In one piece, and without the panic that `eprintln!` has for a closed stderr.
    let _ = io::stderr().write_all(text.as_bytes());
}

fn stderr_level(options: &Options, speaker: Speaker) -> LevelFilter {
    match (options.quiet, speaker, options.verbosity) {
        (true, _, _) => LevelFilter::ERROR,
        (_, Speaker::Archiver, 0) => LevelFilter::WARN,
        (_, Speaker::Archiver, 1) | (_, _, 0) => LevelFilter::INFO,
        (_, Speaker::Archiver, 2) | (_, _, 1) => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

fn file_level(options: &Options) -> LevelFilter {
    match (options.quiet, options.verbosity) {
        (true, _) => LevelFilter::WARN,
        (_, 0) => LevelFilter::INFO,
        (_, 1) => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

fn layer<S, W>(
    writer: W,
    format: Format,
    text: LineOf,
    level: LevelFilter,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'event> MakeWriter<'event> + Send + Sync + 'static,
{
    // The layer's own complaints would go through `eprintln!`, which panics when stderr is gone.
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .log_internal_errors(false);
    match format {
        Format::Text => {
            let layer = layer.with_writer(writer).event_format(text);
            layer.with_filter(level).boxed()
        }
        Format::Json => {
            let layer = layer.with_writer(JsonLines(writer)).json();
            layer.flatten_event(true).with_filter(level).boxed()
        }
    }
}

/// A line as this writes it, from an event's level and its text.
struct LineOf(fn(&mut Writer<'_>, Level, &str) -> fmt::Result);

impl<S, N> FormatEvent<S, N> for LineOf
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'fields> FormatFields<'fields> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let text = text_of(context, event)?;
        self.0(&mut out, *event.metadata().level(), &text)
    }
}

/// `walmgr: message`, with `warning: ` before a warning.
const STDERR_LINE: LineOf = LineOf(|out, level, text| {
    let warning = match level {
        Level::WARN => "warning: ",
        _ => "",
    };
    writeln!(out, "walmgr: {warning}{text}")
});

/// The line that skytools wrote: local time, process id, level, message.
const FILE_LINE: LineOf = LineOf(|out, level, text| {
    let level = match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        _ => "DEBUG",
    };
    writeln!(out, "{} {level} {text}", stamp())
});

/// The message with its fields, behind the fields of the spans around it.
fn text_of<S, N>(context: &FmtContext<'_, S, N>, event: &Event<'_>) -> Result<String, fmt::Error>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'fields> FormatFields<'fields> + 'static,
{
    let mut text = String::new();
    for span in context
        .event_scope()
        .into_iter()
        .flat_map(|scope| scope.from_root())
    {
        if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
            && !fields.is_empty()
        {
            // The name of a cluster says by itself what it is.
            text.push_str(fields.strip_prefix("cluster=").unwrap_or(fields));
            text.push_str(": ");
        }
    }
    context.format_fields(Writer::new(&mut text), event)?;
    Ok(escaped(&text))
}

fn stamp() -> String {
    let now = jiff::Zoned::now();
    format!(
        "{} {}",
        now.strftime("%Y-%m-%d %H:%M:%S,%3f"),
        std::process::id()
    )
}

/// `logfile`, open for append.
struct Logfile {
    path: PathBuf,
    file: Mutex<File>,
    complained: AtomicBool,
}

impl Logfile {
    fn open(path: &Path) -> Result<Self> {
        Ok(Logfile {
            path: path.to_path_buf(),
            file: Mutex::new(open_for_append(path)?),
            complained: AtomicBool::new(false),
        })
    }
}

/// A symlink is refused: whoever can plant one could make walmgr write into another file.
/// A FIFO is refused: it would block the first writer for as long as nobody reads.
fn open_for_append(path: &Path) -> Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(path);
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(
                CommandError::config(format!("logfile {} is a symlink", path.display()))
                    .hint("name the file that the link points to"),
            );
        }
        other => other.at_setting("open logfile", path)?,
    };
    let kind = file
        .metadata()
        .at(Kind::Config, "examine logfile", path)?
        .file_type();
    if kind.is_file() || kind.is_char_device() {
        Ok(file)
    } else if kind.is_fifo() {
        Err(CommandError::config(format!(
            "logfile {} is a FIFO",
            path.display()
        )))
    } else {
        Err(CommandError::config(format!(
            "logfile {} is not a file",
            path.display()
        )))
    }
}

impl<'event> MakeWriter<'event> for &'static Logfile {
    type Writer = LogfileWriter;

    fn make_writer(&'event self) -> Self::Writer {
        LogfileWriter(self)
    }
}

/// Passes one event on to the file; a full disk costs lines, never the command.
struct LogfileWriter(&'static Logfile);

impl Write for LogfileWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut file = self
            .0
            .file
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match file.write_all(line) {
            Ok(()) => self.0.complained.store(false, Ordering::Relaxed),
            Err(error) if !self.0.complained.swap(true, Ordering::Relaxed) => {
                to_stderr(&format!(
                    "warning: write logfile {}: {error}",
                    self.0.path.display()
                ));
            }
            Err(_) => {}
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
