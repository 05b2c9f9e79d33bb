//! What lies in a data directory and goes into no backup, and why.
//! Never looks at a data directory. Invariant: a person is told of everything that is not taken and that
//! is not made anew by a server anyway.

use std::fmt;
use std::path::Path;

use walmgr_protocol::names::RelativePath;

use crate::files;

/// The file in a set that names its damaged pages.
pub(crate) const DAMAGED_PAGES: &str = "walmgr_damaged_pages";

/// The file in a set that names what the set lacks. PostgreSQL does not look at it.
pub(crate) const LEFT_OUT: &str = "walmgr_left_out";

/// The file that names what a set lacks where whoever made the backup had said that it may lack something.
pub(crate) const LEFT_OUT_ALLOWED: &str = "walmgr_left_out_allowed";

/// How much of such a file is shown: what a person reads, and no more of a file that anybody wrote.
const SHOWN_BYTES_MAX: u64 = 4 << 10;

/// What a set says that it lacks, a line each, as it may be shown; nothing for one that says nothing.
pub(crate) fn named_in(set: &Path) -> Vec<String> {
    let mut text = Vec::new();
    for name in [LEFT_OUT, LEFT_OUT_ALLOWED] {
        // A file that cannot be read is found when the set is compared with its manifest.
        let shown = files::read_at_most(&set.join(name), SHOWN_BYTES_MAX);
        text.extend(shown.unwrap_or_default());
    }
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .map(|line| line.escape_debug().to_string())
        .collect()
}

/// Something that a person put into the data directory, and might miss in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// Where it is.
    pub path: RelativePath,
    /// Why it is not taken.
    pub why: WhyNot,
}

/// Why something is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyNot {
    /// A symbolic link to nothing, a tablespace's included.
    Dangling,
    /// Symbolic links that lead to each other.
    Loop,
    /// A symbolic link to a directory that it lies in.
    Around,
    /// A symbolic link to what the server's user may not read.
    Unreadable,
    /// A FIFO or device.
    Special,
    /// A socket, which a program makes anew.
    Socket,
    /// The server's log, which was moved behind a symbolic link.
    Log,
}

impl WhyNot {
    /// Whether a server that is restored from the set may lack something.
    pub const fn is_loss(self) -> bool {
        match self {
            WhyNot::Dangling
            | WhyNot::Loop
            | WhyNot::Around
            | WhyNot::Unreadable
            | WhyNot::Special => true,
            WhyNot::Socket | WhyNot::Log => false,
        }
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            WhyNot::Dangling => "a symbolic link to what does not exist",
            WhyNot::Loop => "a symbolic link that leads to itself",
            WhyNot::Around => "a symbolic link to a directory that it lies in",
            WhyNot::Unreadable => "behind a symbolic link, and may not be read",
            WhyNot::Special => "neither a file nor a directory",
            WhyNot::Socket => "a socket",
            WhyNot::Log => "a symbolic link to the server's log",
        };
        write!(out, "{} is {why}", self.path)
    }
}
