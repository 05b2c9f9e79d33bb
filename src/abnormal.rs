//! Ends that nobody asked for: a panic, a signal, exhausted memory. Each becomes one line and a code.
//! Never tries to go on with the work. Invariant: after `prepare` no panic of this process prints more
//! than one line or exits with 101; `xarchive` exits with 1 and `xrestore` with 254 from anywhere.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, UnwindSafe};
use std::process::exit;
use std::sync::{Arc, Once, OnceLock};
use std::thread;

use rustix::fs::{Mode, OFlags};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CommandError, ExitTable, Result};
use crate::{memory, output};

/// Which table applies before the command line is parsed, or even copied: memory can be exhausted
/// by then, and the 1 that suits every other command would tell a recovering PostgreSQL that
/// there is no more WAL. Looks at `/proc/self/cmdline` without allocating anything.
pub fn table_at_start() -> ExitTable {
    let mut line = [0_u8; 8 << 10];
    let read = rustix::fs::open(c"/proc/self/cmdline", OFlags::RDONLY, Mode::empty())
        .and_then(|file| rustix::io::read(&file, &mut line));
    let Ok(length) = read else {
        return ExitTable::Ordinary;
    };
    let words = || line[..length].split(|byte| *byte == 0).skip(1);
    if words().any(is_unawaited) {
        return ExitTable::Unawaited;
    }
    let restores = |word: &[u8]| word == b"xrestore" || is_restored_to(word);
    if words().any(restores) {
        ExitTable::Xrestore
    } else if words().any(|word| word == b"xarchive") {
        ExitTable::Xarchive
    } else {
        ExitTable::Ordinary
    }
}

/// Makes an `xarchive` an agent, for which nobody waits.
pub(crate) const LOOK_AHEAD: &str = "--look-ahead";

/// Makes an `xrestore` one that lays segments ready, for which nobody waits.
pub(crate) const LAY_BEHIND: &str = "--lay-behind";

/// Whether a word of the command line makes it one that nobody waits for.
pub(crate) fn is_unawaited(word: &[u8]) -> bool {
    [LOOK_AHEAD, LAY_BEHIND]
        .iter()
        .any(|flag| word == flag.as_bytes())
}

/// The `%p` of every `restore_command` (`XLogFileRead` and `readTimeLineHistory` in
/// `src/backend/access/transam`): who is given one of these paths is a restore_command,
/// whatever else was typed.
const RESTORED_TO: [&str; 2] = ["RECOVERYXLOG", "RECOVERYHISTORY"];

/// Whether a word of the command line is one of them.
pub(crate) fn is_restored_to(word: &[u8]) -> bool {
    RESTORED_TO.iter().any(|end| word.ends_with(end.as_bytes()))
}

/// Installs what this table demands for panics and exhausted memory.
pub fn prepare(table: ExitTable) {
    memory::exit_with_when_exhausted(table.abnormal());
    std::panic::set_hook(Box::new(move |panic| {
        let ends_process = table != ExitTable::Ordinary;
        // Leaving from here, not after unwinding, covers every thread, and panics while unwinding,
        // which would abort. A daemon has more to lose: there, one connection's panic is its own.
        if ends_process {
            if !keep_for_catcher(panic) {
                end_saying(&line_about(panic));
            }
            exit(i32::from(table.abnormal()));
        }
        if !keep_for_catcher(panic) {
            output::last_words(&line_about(panic));
        }
    }));
}

/// Runs `work` and answers with its exit code, or with the table's code if it panics.
pub fn contain(table: ExitTable, work: impl FnOnce() -> u8 + UnwindSafe) -> u8 {
    std::panic::catch_unwind(work).unwrap_or(table.abnormal())
}

thread_local! {
    /// How many on this thread's stack catch a panic and log it themselves.
    static CATCHERS: Cell<usize> = const { Cell::new(0) };
    /// What the panic said that is on its way to one of them.
    static CAUGHT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `work`; the error is what a panic in it said, and where. Whoever catches it logs it: nothing else is said
/// of it. A panic while another unwinds, which ends the process, is not kept back.
pub fn caught<T>(work: impl FnOnce() -> T) -> std::result::Result<T, String> {
    CATCHERS.set(CATCHERS.get() + 1);
    let ended = std::panic::catch_unwind(AssertUnwindSafe(work));
    CATCHERS.set(CATCHERS.get() - 1);
    ended.map_err(|_| CAUGHT.take().unwrap_or_else(|| "no message".to_owned()))
}

/// Goes on unwinding here with what another thread's panic said, as if it had happened here.
pub(crate) fn pass_on(said: String) -> ! {
    if CATCHERS.get() == 0 {
        output::last_words(&said);
    } else {
        CAUGHT.set(Some(said));
    }
    std::panic::resume_unwind(Box::new("passed on"))
}

/// Names the work whose panic a test wants to see.
const PANIC_IN: &str = "WALMGR_PANIC_IN";

/// Panics where a test of this program wants it: always, or the first time. A program for users does not ask.
#[track_caller]
pub(crate) fn plant(name: &str) {
    static FIRST: Once = Once::new();
    if !cfg!(debug_assertions) {
        return;
    }
    let planted = std::env::var(PANIC_IN).unwrap_or_default();
    let is_planted = match planted.strip_prefix("first ") {
        Some(first) => first == name && !FIRST.is_completed(),
        None => planted == name,
    };
    if is_planted {
        FIRST.call_once(|| {});
    }
    assert!(!is_planted, "planted");
}

/// Whether somebody catches this panic, and gets told what it said.
fn keep_for_catcher(panic: &PanicHookInfo<'_>) -> bool {
    if CATCHERS.get() == 0 {
        return false;
    }
    CAUGHT.with_borrow_mut(|kept| {
        let is_first = kept.is_none();
        if is_first {
            *kept = Some(words_of(panic));
        }
        is_first
    })
}

/// Bit of SIGCHLD in the masks of `/proc/self/status`.
const CHILD_BIT: u64 = 1 << (rustix::process::Signal::CHILD.as_raw() - 1);

/// Takes SIGCHLD back if whoever started this process ignores it, which is inherited: the kernel
/// would then forget how a command of the settings ended before it is asked.
pub fn heed_children() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    if ignored.is_none_or(|mask| mask & CHILD_BIT == 0) {
        return;
    }
    // The handler stays when the runtime is gone. Without one, all goes on as it was inherited.
    if let Ok(runtime) = Builder::new_current_thread().enable_io().build() {
        let _inside = runtime.enter();
        let _ = signal(SignalKind::child());
    }
}

/// From here on SIGTERM, SIGINT, SIGHUP and SIGQUIT end the process with the code that was [prepared](prepare) for,
/// after one line on standard error alone.
pub fn exit_on_signals() {
    memory::exit_on_signals();
}

/// From here on SIGTERM, SIGINT, SIGHUP and SIGQUIT end the process with this table's code, as
/// [`exit_on_signals`] has them do before, and the log says so as it says everything else.
///
/// A thread of its own waits for them, so that a blocked disk or network call delays nothing.
/// Whatever the process was doing stays undone: an upload that was not committed leaves no trace.
pub fn log_signals(table: ExitTable) -> Result<()> {
    static LOGGED: Once = Once::new();
    let mut begun = Ok(());
    LOGGED.call_once(|| begun = wait_for_signals(table));
    begun
}

fn wait_for_signals(table: ExitTable) -> Result<()> {
    let failed = |error: std::io::Error| CommandError::retry("watch for signals").because(error);
    let runtime = Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed)?;
    let watched = watch(&runtime).map_err(failed)?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let name = runtime.block_on(first_of(watched));
            end_saying(&format!("stopped by {name} before the work was done"));
            exit(i32::from(table.abnormal()));
        })
        .map_err(failed)?;
    memory::leave_signals_to_thread();
    Ok(())
}

/// That somebody wants this process to end what it does, and to clear up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt(Arc<OnceLock<&'static str>>);

impl Interrupt {
    /// From here on SIGTERM, SIGINT, SIGHUP and SIGQUIT are noted, and end nothing.
    pub(crate) fn heed() -> Result<Interrupt> {
        let failed =
            |error: std::io::Error| CommandError::retry("watch for signals").because(error);
        let runtime = Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(failed)?;
        let watched = watch(&runtime).map_err(failed)?;
        let interrupt = Interrupt::default();
        let noted = interrupt.clone();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let name = runtime.block_on(first_of(watched));
                tracing::warn!("{name}: clearing up");
                let _ = noted.0.set(name);
                // The handlers stay, so that an impatient second signal does not end it in between.
                loop {
                    thread::park();
                }
            })
            .map_err(failed)?;
        Ok(interrupt)
    }

    /// Whether nobody wants that yet.
    pub(crate) fn goes_on(&self) -> bool {
        self.0.get().is_none()
    }

    /// Fails once somebody does.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some(name) => Err(CommandError::retry(format!("interrupted by {name}"))),
        }
    }
}

/// The handlers are in place when this returns, before the thread that answers them runs.
fn watch(runtime: &Runtime) -> std::io::Result<[Signal; 4]> {
    let _inside = runtime.enter();
    // Taken over and never looked at: beyond the file size limit a line of the logfile then fails to
    // be written, where the signal would end this process and with it PostgreSQL's archiver.
    let _ = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
    Ok([
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::hangup())?,
        signal(SignalKind::quit())?,
    ])
}

async fn first_of(
    [mut terminate, mut interrupt, mut hangup, mut quit]: [Signal; 4],
) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        _ = hangup.recv() => "SIGHUP",
        _ = quit.recv() => "SIGQUIT",
    }
}

/// Says why this process ends, unless another thread does.
fn end_saying(line: &str) {
    if memory::take_last_word() {
        output::last_words(line);
    }
}

fn line_about(panic: &PanicHookInfo<'_>) -> String {
    // What tokio says when there is no memory, or no number, left for a thread.
    match panic.payload_as_str() {
        Some(message) if message.starts_with("OS can't spawn worker thread") => {
            format!("{message}; raise the limits of this process on memory and threads")
        }
        _ => format!("internal error: {}; please report it", words_of(panic)),
    }
}

/// What a panic says, and where.
fn words_of(panic: &PanicHookInfo<'_>) -> String {
    let message = panic.payload_as_str().unwrap_or("no message");
    match panic.location() {
        Some(place) => format!("{message} at {}:{}", place.file(), place.line()),
        None => message.to_owned(),
    }
}
