//! What a command fails with, and the one place that turns a failure into an exit code.
//! Never prints. Invariant: no exit code above 125 leaves `xarchive`, whatever went wrong.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::OnceLock;

use rustix::io::Errno;

/// Whose fault a failure is, and so what its reader should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The command line makes no sense.
    Usage,
    /// The ini file, a key file, or a path it names is wrong; trying again cannot help.
    Config,
    /// Something is down, slow, full or broken for the moment; trying again can help.
    Retry,
    /// The archive holds another file under the same name.
    Conflict,
    /// One side does not accept the other's identity.
    Identity,
    /// The file or the archive belongs to another cluster, version, timeline or segment size.
    ForeignCluster,
    /// The receiver could not make the file durable.
    ReceiverDisk,
    /// Another instance of this daemon holds the lock.
    AlreadyRunning,
    /// The archive is proven not to have what was asked for: an answer rather than a failure.
    Absent,
    /// `status` has something to warn of, which it has said: an answer too.
    Warned,
    /// `status` has an alarm, which it has said.
    Alarmed,
}

impl Kind {
    /// The page of docs/runbooks/ that says more than a hint has room for.
    pub(crate) const fn runbook(self) -> Option<&'static str> {
        match self {
            Kind::Conflict => Some("differs"),
            Kind::Identity => Some("key-refused"),
            Kind::ForeignCluster => Some("wrong-cluster"),
            Kind::ReceiverDisk => Some("disk-full"),
            Kind::Usage
            | Kind::Config
            | Kind::Retry
            | Kind::AlreadyRunning
            | Kind::Absent
            | Kind::Warned
            | Kind::Alarmed => None,
        }
    }
}

/// Which command's table of exit codes applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExitTable {
    /// `archive_command`: PostgreSQL retries 1 to 125 and loses count above.
    Xarchive,
    /// `restore_command`: PostgreSQL takes 1 to 125 for "no such file" and opens the database.
    Xrestore,
    /// What a command of PostgreSQL's begins and nobody waits for: always 0. A server that is the first process of its
    /// container hears of its end, and takes 2 and more for a crash of one of its own.
    Unawaited,
    /// Everything a person or a service manager starts: 0, 1, or 2 for usage and configuration.
    #[default]
    Ordinary,
}

impl ExitTable {
    /// The code for a failure of this kind.
    pub const fn code(self, kind: Kind) -> u8 {
        match (self, kind) {
            (ExitTable::Unawaited, _) => 0,
            (ExitTable::Xrestore, Kind::Absent) => 1,
            (ExitTable::Xrestore, _) => 254,
            (_, Kind::Usage | Kind::Config) => 2,
            (ExitTable::Ordinary, Kind::AlreadyRunning | Kind::Alarmed) => 2,
            (
                _,
                Kind::Retry | Kind::AlreadyRunning | Kind::Absent | Kind::Warned | Kind::Alarmed,
            ) => 1,
            (ExitTable::Xarchive, Kind::Conflict) => 3,
            (ExitTable::Xarchive, Kind::Identity) => 4,
            (ExitTable::Xarchive, Kind::ForeignCluster) => 5,
            (ExitTable::Xarchive, Kind::ReceiverDisk) => 6,
            (
                ExitTable::Ordinary,
                Kind::Conflict | Kind::Identity | Kind::ForeignCluster | Kind::ReceiverDisk,
            ) => 1,
        }
    }

    /// The code for a panic, an exhausted memory or a signal: "did not happen, try again".
    pub const fn abnormal(self) -> u8 {
        match self {
            ExitTable::Unawaited => 0,
            ExitTable::Xrestore => 254,
            ExitTable::Xarchive | ExitTable::Ordinary => 1,
        }
    }
}

/// A failed command: what it was doing, why that failed, and what a person can do.
#[derive(Debug)]
pub struct CommandError {
    kind: Kind,
    doing: String,
    causes: Vec<String>,
    hint: Option<String>,
    tip: Option<String>,
}

/// The words that stand in messages for an ini file, of which this process has read one.
const ANY_INI: &str = "`walmgr INI ";

/// The placeholder for this side's ini file, and what is typed for it.
static OWN_INI: OnceLock<(&str, String)> = OnceLock::new();

/// From here on lines to type have this side's ini file in them, not a word that stands for it.
/// `side` is `STANDBY.ini` or `MASTER.ini`, as messages to both sides have it.
pub fn name_own_ini(side: &'static str, path: &Path) {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    // Anything else would have to be quoted for the shell, and once more where it is JSON.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@".contains(&byte);
    if let Some(text) = path.to_str().filter(|text| text.bytes().all(is_plain)) {
        let _ = OWN_INI.set((side, text.to_owned()));
    }
}

/// `text` with this side's ini file in the lines to type, where it is known.
pub fn with_own_ini(text: &str) -> Cow<'_, str> {
    match OWN_INI.get() {
        Some((side, path)) if text.contains("`walmgr ") => {
            let own = format!("`walmgr {path} ");
            let side = format!("`walmgr {side} ");
            Cow::Owned(text.replace(ANY_INI, &own).replace(&side, &own))
        }
        _ => Cow::Borrowed(text),
    }
}

/// What every command returns.
pub type Result<T, E = CommandError> = std::result::Result<T, E>;

impl CommandError {
    /// A failure while `doing` something, said as a present-tense verb phrase or a sentence.
    pub fn new(kind: Kind, doing: impl Into<String>) -> Self {
        CommandError {
            kind,
            doing: doing.into(),
            causes: Vec::new(),
            hint: None,
            tip: None,
        }
    }

    /// A wrong setting or file of settings.
    pub fn config(doing: impl Into<String>) -> Self {
        Self::new(Kind::Config, doing)
    }

    /// A wrong command line.
    pub fn usage(doing: impl Into<String>) -> Self {
        Self::new(Kind::Usage, doing)
    }

    /// A failure that may be gone the next time.
    pub fn retry(doing: impl Into<String>) -> Self {
        Self::new(Kind::Retry, doing)
    }

    /// The error that led here, with everything that led to it.
    #[must_use]
    pub fn because(mut self, cause: impl std::error::Error) -> Self {
        let mut next: Option<&dyn std::error::Error> = Some(&cause);
        while let Some(error) = next {
            let text = error.to_string();
            // Some libraries repeat the inner error in the outer one's text.
            if !self.causes.last().is_some_and(|last| last.contains(&text)) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.hint = (!hint.is_empty()).then_some(hint);
        self
    }

    /// Adds to the hint, behind what it says already.
    #[must_use]
    pub fn and_hint(self, more: &str) -> Self {
        let hint = match &self.hint {
            Some(hint) => format!("{hint}; {more}"),
            None => more.to_owned(),
        };
        self.hint(hint)
    }

    /// A guess at what was meant, for a line of its own below the error's.
    #[must_use]
    pub fn with_tip(mut self, tip: impl Into<String>) -> Self {
        self.tip = Some(tip.into());
        self
    }

    /// The guess, if there is one.
    pub fn tip(&self) -> Option<&str> {
        self.tip.as_deref()
    }

    /// Whether it is an answer that was given already, rather than a failure to be told.
    pub const fn is_answer(&self) -> bool {
        matches!(self.kind, Kind::Absent | Kind::Warned | Kind::Alarmed)
    }

    /// What it was doing, why that failed, and the hint.
    pub(crate) fn parts(&self) -> (&str, &[String], Option<&str>) {
        (&self.doing, &self.causes, self.hint.as_deref())
    }

    /// A failure of another process, out of what that told of it.
    pub(crate) fn from_parts(
        kind: Kind,
        doing: String,
        causes: Vec<String>,
        hint: String,
    ) -> CommandError {
        let told = CommandError {
            causes,
            ..Self::new(kind, doing)
        };
        told.hint(hint)
    }

    /// Whose fault it is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for CommandError {
    /// One line, whatever the parts contain: it has to land in PostgreSQL's log in one piece.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.doing.clone();
        for cause in &self.causes {
            line.push_str(": ");
            line.push_str(cause);
        }
        if let Some(hint) = &self.hint {
            line.push_str("; ");
            line.push_str(hint);
        }
        let line = with_own_ini(&line);
        let parts = line.split(['\n', '\r']).map(str::trim);
        for (index, part) in parts.filter(|part| !part.is_empty()).enumerate() {
            out.write_str(if index == 0 { "" } else { " " })?;
            out.write_str(part)?;
        }
        Ok(())
    }
}

impl std::error::Error for CommandError {}

/// Adds the path to an IO error; without it `No such file or directory` helps nobody.
pub trait IoContext<T> {
    /// Turns an IO error into a [`CommandError`] of this kind, saying `doing path: error`.
    fn at(self, kind: Kind, doing: &str, path: &Path) -> Result<T>;

    /// Adds the path to an error of a file that walmgr writes where the settings say. The settings are
    /// wrong then ([`Kind::Config`]), unless the disk is full or failing ([`Kind::Retry`]).
    fn at_setting(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, kind: Kind, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|error| {
            CommandError::new(kind, format!("{doing} {}", path.display())).because(error.into())
        })
    }

    fn at_setting(self, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|error| {
            let error: io::Error = error.into();
            let folder = path.parent().unwrap_or(path).display();
            let (kind, hint) = match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                    (Kind::Retry, "free some space there".to_owned())
                }
                _ if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => (
                    Kind::Retry,
                    "look at the system's log for errors of this disk".to_owned(),
                ),
                ErrorKind::PermissionDenied => {
                    let user = rustix::process::geteuid().as_raw();
                    let hint = format!(
                        "this runs as user {user}: run it as the owner of {folder}, or give the \
                        directory to the user who runs walmgr"
                    );
                    (Kind::Config, hint)
                }
                ErrorKind::NotFound => (
                    Kind::Config,
                    format!("create its directory: mkdir -p {folder}"),
                ),
                _ => (Kind::Config, String::new()),
            };
            CommandError::new(kind, format!("{doing} {}", path.display()))
                .because(error)
                .hint(hint)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_with_cause_and_hint() {
        let io = std::io::Error::other("disk\nfull");
        let error = CommandError::retry("store it")
            .because(io)
            .hint("free some space");
        assert_eq!(error.to_string(), "store it: disk full; free some space");
    }

    #[test]
    fn fault_31_a_full_disk_is_no_wrong_setting_and_a_missing_permission_is() {
        let path = Path::new("/run/walmgr/standby.pid");
        let at = |errno: Errno| {
            let failed: Result<(), Errno> = Err(errno);
            failed.at_setting("write pidfile", path).unwrap_err()
        };
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG, Errno::IO] {
            assert_eq!(at(errno).kind(), Kind::Retry, "{errno}");
        }
        let denied = at(Errno::ACCESS);
        assert_eq!(denied.kind(), Kind::Config);
        let line = denied.to_string();
        assert!(
            line.starts_with("write pidfile /run/walmgr/standby.pid: "),
            "{line}"
        );
        assert!(line.contains("the owner of /run/walmgr,"), "{line}");
    }

    #[test]
    fn fault_5_no_kind_of_failure_leaves_xarchive_above_125() {
        use Kind::*;
        for kind in [
            Usage,
            Config,
            Retry,
            Conflict,
            Identity,
            ForeignCluster,
            ReceiverDisk,
            AlreadyRunning,
        ] {
            assert!((1..=6).contains(&ExitTable::Xarchive.code(kind)));
            assert!((1..=2).contains(&ExitTable::Ordinary.code(kind)));
            assert_eq!(ExitTable::Xrestore.code(kind), 254);
        }
        assert_eq!(ExitTable::Ordinary.code(Warned), 1);
        assert_eq!(ExitTable::Ordinary.code(Alarmed), 2);
        assert_eq!(ExitTable::Xarchive.abnormal(), 1);
        assert_eq!(ExitTable::Xarchive.code(Absent), 1);
        assert_eq!(ExitTable::Xrestore.code(Absent), 1);
        assert_eq!(ExitTable::Xrestore.abnormal(), 254);
    }
}
