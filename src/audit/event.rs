//! What the audit log tells of: one enum, whose variants are the events and whose fields are members of the line.
//! Never writes anything. Invariant: each event has a row in `docs/reference/audit.md`; a test compares them.

use serde_json::{Value, json};

/// Makes the enum, and its words and members, of one list: an event that is added cannot lack them.
macro_rules! events {
    ($($(#[$about:meta])* $event:ident { $($(#[$what:meta])* $field:ident: $kind:ty,)* } = $word:literal,)*) => {
        /// What was done.
        #[derive(Debug)]
        pub(crate) enum AuditEvent<'a> {
            $($(#[$about])* $event { $($(#[$what])* $field: $kind,)* },)*
        }

        impl AuditEvent<'_> {
            /// All words, for whoever documents them.
            #[cfg(test)]
            pub(super) const WORDS: &'static [&'static str] = &[$($word,)*];

            /// The event's name in a line.
            pub(super) const fn word(&self) -> &'static str {
                match self {
                    $(AuditEvent::$event { .. } => $word,)*
                }
            }

            /// What its line says of it, by the names of its fields.
            pub(super) fn members(&self) -> Vec<(&'static str, Value)> {
                match self {
                    $(AuditEvent::$event { $($field,)* } => vec![$((stringify!($field), json!($field)),)*],)*
                }
            }
        }
    };
}

events! {
    /// A command of this host that changes an archive, a server of it or its rules, or proves it.
    Command {
        /// Its name.
        command: &'a str,
        /// What was typed behind the ini file, secrets left out.
        typed: &'a [String],
    } = "command",
    /// A backup set became one.
    SetSealed {
        /// Its name.
        set: &'a str,
        /// Where its WAL begins.
        first_segment: &'a str,
        /// Where it is consistent.
        stop: &'a str,
    } = "set_sealed",
    /// A listed backup set goes.
    SetRemoved {
        /// Its name at that moment.
        set: String,
        /// Why.
        because: &'a str,
    } = "set_removed",
    /// A peer gets a backup set, or the rest of it.
    SetFetched {
        /// Its name at that moment.
        set: &'a str,
        /// From where on.
        offset_bytes: u64,
        /// What was sent of it so far, unpacked.
        sent_bytes: u64,
    } = "set_fetched",
    /// A peer got an archived file.
    WalFetched {
        /// Its name.
        file: &'a str,
        /// How many of the same address were fetched before and have no line.
        more: u64,
    } = "wal_fetched",
    /// A backup set stays until it is unpinned.
    SetPinned {
        /// Its name at that moment.
        set: &'a str,
        /// What was said of it.
        note: &'a str,
    } = "set_pinned",
    /// A backup set stays no longer than the rules say.
    SetUnpinned {
        /// Its name at that moment.
        set: &'a str,
    } = "set_unpinned",
    /// WAL goes that nobody needs.
    WalPurged {
        /// The first segment of a stretch,
        first: String,
        /// and its last.
        last: String,
        /// Files that go, copies included.
        files: usize,
    } = "wal_purged",
    /// What a backup made superfluous is gone, or some of it.
    ClearedAway {
        /// Sets.
        sets: u32,
        /// Files of WAL.
        wal_files: u32,
    } = "cleared_away",
    /// An archive was bound to a cluster.
    Bound {
        /// PostgreSQL's identifier of the cluster.
        system_id: String,
        /// The version of it.
        postgres_major: u32,
        /// Size of a segment.
        segment_bytes: u32,
    } = "bound",
    /// A peer, or something that it asked for, was not let in.
    Refused {
        /// How many of the same address were refused before and have no line.
        more: u64,
    } = "refused",
    /// A file was stored that no reader follows.
    SetApart {
        /// Its name.
        file: &'a str,
    } = "set_apart",
    /// A timeline begins: its history is stored, and readers may follow it.
    TimelineBrought {
        /// The name of the history.
        file: &'a str,
    } = "timeline_brought",
    /// Another file of a stored name was offered, and the stored one stays.
    RewriteRefused {
        /// Its name.
        file: &'a str,
        /// How many of the same address were refused before and have no line.
        more: u64,
    } = "rewrite_refused",
    /// The stream of the old master ends here.
    Frozen {
        /// Its timeline.
        timeline: u32,
    } = "frozen",
    /// The stream of the master goes on.
    Thawed {} = "thawed",
    /// The receiver read its settings and keys again.
    Reloaded {} = "reloaded",
    /// Lines that are missing before this one.
    LinesLost {
        /// How many.
        lost: u64,
    } = "lines_lost",
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuditOutcome<'a> {
    /// It begins now.
    Begun,
    /// It was done.
    Done,
    /// It was not done, or not all of it.
    Failed(&'a str),
    /// It was not allowed.
    Refused(&'a str),
}

impl AuditOutcome<'_> {
    /// Its name in a line.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            AuditOutcome::Begun => "begun",
            AuditOutcome::Done => "done",
            AuditOutcome::Failed(_) => "failed",
            AuditOutcome::Refused(_) => "refused",
        }
    }
}
