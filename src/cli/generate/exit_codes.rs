//! What each exit code of each table means, for the manual pages and the reference.
//! Never says which code a failure has: `error` does. Invariant: a code that can leave a command is in its table.

use crate::error::{ExitTable, Kind};

/// All tables, each with the commands that it is for.
pub(super) const TABLES: [(ExitTable, &str); 3] = [
    (ExitTable::Ordinary, "all other commands"),
    (ExitTable::Xarchive, "xarchive"),
    (ExitTable::Xrestore, "xrestore"),
];

/// Every kind of failure, in the order in which a table names them.
const KINDS: [Kind; 11] = [
    Kind::Retry,
    Kind::Usage,
    Kind::Config,
    Kind::Conflict,
    Kind::Identity,
    Kind::ForeignCluster,
    Kind::ReceiverDisk,
    Kind::AlreadyRunning,
    Kind::Absent,
    Kind::Warned,
    Kind::Alarmed,
];

/// What a kind means to the reader of a table.
const fn words(kind: Kind) -> &'static str {
    match kind {
        Kind::Retry => {
            "failed for now (down, busy, slow, full, damaged): the same line may work later"
        }
        Kind::Usage => "a wrong command line",
        Kind::Config => "a wrong setting, key file or path",
        Kind::Conflict => "the archive holds another file under this name",
        Kind::Identity => "one side does not accept the other's key",
        Kind::ForeignCluster => "another cluster, version, timeline or segment size",
        Kind::ReceiverDisk => "the receiver's disk is full or failing",
        Kind::AlreadyRunning => "it runs already",
        Kind::Absent => "the archive does not have it",
        Kind::Warned => "`status`, `verify`, `drill`: a warning",
        Kind::Alarmed => "`status`, `verify`, `drill`: critical",
    }
}

/// What PostgreSQL or a service manager does with the codes of a table.
pub(super) const fn why(table: ExitTable) -> &'static str {
    match table {
        ExitTable::Unawaited => "Nobody waits for it.",
        ExitTable::Ordinary => {
            "`status`, `verify` and `drill` use 0, 1 and 2 as monitoring does: fine, warning, critical."
        }
        ExitTable::Xarchive => {
            "PostgreSQL keeps the segment and tries again after each code but 0. No code is above 125: its archiver \
             would then restart without counting the failure."
        }
        ExitTable::Xrestore => {
            "After 1 a standby asks again, and a server with recovery.signal opens. After 254 PostgreSQL stops rather \
             than open with data missing."
        }
    }
}

/// Whether a command of this table can fail in this way.
const fn can_have(table: ExitTable, kind: Kind) -> bool {
    match kind {
        Kind::Warned | Kind::Alarmed | Kind::AlreadyRunning => matches!(table, ExitTable::Ordinary),
        Kind::Absent => matches!(table, ExitTable::Xrestore),
        _ => true,
    }
}

/// The codes of a table, each with its meanings.
pub(super) fn meanings(table: ExitTable) -> Vec<(u8, String)> {
    let done = match table {
        ExitTable::Ordinary | ExitTable::Unawaited => "done",
        ExitTable::Xarchive => "durable on the standby",
        ExitTable::Xrestore => {
            "the file is in place, its records checked now or when it was stored"
        }
    };
    let mut codes = vec![(0, done.to_owned())];
    let everything_else = table.code(Kind::Config) == table.code(Kind::Retry);
    for kind in KINDS.into_iter().filter(|kind| can_have(table, *kind)) {
        let code = table.code(kind);
        let text = match everything_else && kind != Kind::Absent {
            true => "everything else: damaged, unreadable, a gap, wrong settings, a signal",
            false if table == ExitTable::Ordinary && kind.runbook().is_some() => words(Kind::Retry),
            false => words(kind),
        };
        match codes.iter_mut().find(|(known, _)| *known == code) {
            Some((_, known)) if known.contains(text) => {}
            Some((_, known)) => {
                known.push_str("; ");
                known.push_str(text);
            }
            None => codes.push((code, text.to_owned())),
        }
    }
    codes.sort_by_key(|(code, _)| *code);
    codes
}

/// The pages of `docs/runbooks` about a code.
pub(super) fn runbooks(table: ExitTable, code: u8) -> Vec<&'static str> {
    let of = |kind: Kind| match (table, kind) {
        (ExitTable::Xrestore, Kind::Absent) => None,
        (ExitTable::Xrestore, _) => Some("replay-stopped"),
        (_, Kind::Usage | Kind::Config) => Some("wrong-settings"),
        (ExitTable::Ordinary | ExitTable::Unawaited, _) => None,
        (ExitTable::Xarchive, Kind::Retry) => Some("archiving_fails"),
        (ExitTable::Xarchive, kind) => kind.runbook(),
    };
    let kinds = KINDS.into_iter().filter(|kind| table.code(*kind) == code);
    let mut pages: Vec<&str> = kinds.filter_map(of).collect();
    pages.dedup();
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_that_a_failure_has_is_in_its_table() {
        for (table, _) in TABLES {
            let codes: Vec<u8> = meanings(table).iter().map(|(code, _)| *code).collect();
            for kind in KINDS {
                assert!(codes.contains(&table.code(kind)), "{table:?} {kind:?}");
            }
            assert!(codes.contains(&table.abnormal()), "{table:?}");
            for code in codes.iter().filter(|code| **code > 1) {
                let pages = runbooks(table, *code);
                assert_eq!(pages.len(), 1, "{table:?} {code}: {pages:?}");
            }
            assert!(codes.is_sorted_by(|one, other| one < other), "{codes:?}");
        }
    }
}
