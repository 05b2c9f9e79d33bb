//! What the server of a drill is set to, whatever its set says. One table says what must not act there.
//! Never edits a file: all of it stands on the command line, which overrides every file. Invariant: the server listens on
//! no port, archives nothing, follows and connects to nobody, runs no background worker, and takes little memory.
//!
//! What a set's files may not say on any host but its own (`pg::conf::foreign`) is switched off there before.

use std::path::Path;

use super::place::{PORT, ScratchPlace};
use super::programs::DrillPrograms;
use crate::pg::conf::ServerSettings;

/// The settings, by the first major version that has each.
///
/// With `hot_standby = off` no setting has to be as high as the master's, so replay does not stand still for that, and
/// `max_worker_processes` may be 0: then no library can start a worker (`pg_cron`'s jobs, for example), nor a
/// subscription of the master fetch from its publisher.
const TABLE: [(&str, &str, u8); 35] = [
    ("listen_addresses", "", 13),
    ("unix_socket_permissions", "0700", 13),
    ("unix_socket_group", "", 13),
    ("bonjour", "off", 13),
    ("ssl", "off", 13),
    ("cluster_name", "walmgr drill", 13),
    ("external_pid_file", "", 13),
    ("restart_after_crash", "off", 13),
    // Nobody follows it, and it follows nobody.
    ("archive_mode", "off", 13),
    ("hot_standby", "off", 13),
    ("max_wal_senders", "0", 13),
    ("wal_keep_size", "0", 13),
    ("max_slot_wal_keep_size", "-1", 13),
    ("synchronous_standby_names", "", 13),
    ("summarize_wal", "off", 17),
    // Nothing runs in it but what the drill asks.
    ("max_worker_processes", "0", 13),
    ("max_logical_replication_workers", "0", 13),
    ("autovacuum", "off", 13),
    ("session_preload_libraries", "", 13),
    ("local_preload_libraries", "", 13),
    ("event_triggers", "off", 17),
    ("default_transaction_read_only", "off", 13),
    // Beside a live server.
    ("huge_pages", "off", 13),
    ("shared_memory_type", "mmap", 13),
    ("min_dynamic_shared_memory", "0", 14),
    ("shared_buffers", "128MB", 13),
    ("wal_buffers", "-1", 13),
    // Its log is one file in its directory.
    ("logging_collector", "off", 13),
    ("log_destination", "stderr", 13),
    ("log_line_prefix", "postgres ", 13),
    ("log_min_messages", "warning", 13),
    ("log_statement", "none", 13),
    ("log_min_duration_statement", "-1", 13),
    ("log_duration", "off", 13),
    ("lc_messages", "C", 13),
];

/// What a server that restores keeps of WAL in its directory, unless a segment is large.
const WAL_BYTES_MAX: u64 = 1 << 30;

/// What the server is started with.
pub(super) struct SetUp {
    /// Names and values.
    pub(super) settings: Vec<(String, String)>,
    /// What was left out that a server of the set would have.
    pub(super) notes: Vec<String>,
}

/// How much WAL it keeps: PostgreSQL wants room for two segments.
pub(super) fn wal_bytes_max(segment_bytes: u64) -> u64 {
    WAL_BYTES_MAX.max(4 * segment_bytes)
}

/// The settings of a server in this place, whose set says this.
pub(super) fn of_server(
    set: &ServerSettings,
    programs: &DrillPrograms,
    place: &ScratchPlace,
    segment_bytes: u64,
) -> SetUp {
    let known = TABLE.iter().filter(|(.., since)| *since <= programs.major);
    let mut settings: Vec<(String, String)> = known
        .map(|(name, value, _)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let text = |path: &Path| path.display().to_string();
    let wal_megabytes = wal_bytes_max(segment_bytes) >> 20;
    let (preload, missing) = preload(set, &programs.libraries());
    for (name, value) in [
        // From the data directory, as a socket's path must be short.
        ("unix_socket_directories", "..".to_owned()),
        ("port", PORT.to_string()),
        ("hba_file", text(&place.path().join(HBA_NAME))),
        ("ident_file", text(&place.path().join(IDENT_NAME))),
        ("max_wal_size", format!("{wal_megabytes}MB")),
        ("shared_preload_libraries", preload),
    ] {
        settings.push((name.to_owned(), value));
    }
    let notes = missing.into_iter().map(|library| {
        format!(
            "shared_preload_libraries names {library}, which is not installed here: a server that is restored on \
             this host does not start"
        )
    });
    SetUp {
        settings,
        notes: notes.collect(),
    }
}

/// Who may connect: whoever may look into the drill's directory, as nobody else reaches the socket.
pub(super) const HBA: (&str, &str) = (HBA_NAME, "local all all trust\n");
const HBA_NAME: &str = "pg_hba.conf";

/// Names of users that are not mapped.
pub(super) const IDENT: (&str, &str) = (IDENT_NAME, "");
const IDENT_NAME: &str = "pg_ident.conf";

/// The libraries of the set that are installed here, as the WAL may need their resource managers; and the others.
fn preload(set: &ServerSettings, folders: &[std::path::PathBuf]) -> (String, Vec<String>) {
    let named = set.value("shared_preload_libraries").unwrap_or_default();
    preload_of(&named, |library| {
        folders.is_empty()
            || folders.iter().any(|folder| {
                let file = folder.join(library);
                file.is_file() || file.with_extension("so").is_file()
            })
    })
}

fn preload_of(named: &str, is_installed: impl Fn(&str) -> bool) -> (String, Vec<String>) {
    let names = named
        .split(',')
        .map(|name| name.trim().trim_matches('"'))
        .filter(|name| !name.is_empty());
    let library = |name: &str| name.strip_prefix("$libdir/").unwrap_or(name).to_owned();
    let (installed, missing): (Vec<&str>, Vec<&str>) =
        names.partition(|name| is_installed(&library(name)));
    let quoted: Vec<String> = installed.iter().map(|name| format!("\"{name}\"")).collect();
    (
        quoted.join(", "),
        missing.into_iter().map(ToOwned::to_owned).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_are_not_installed_are_named_and_left_out() {
        let installed = |name: &str| name != "pg_cron";
        let (kept, missing) = preload_of(" auto_explain, \"pg_cron\" ,$libdir/b", installed);
        assert_eq!(kept, "\"auto_explain\", \"$libdir/b\"");
        assert_eq!(missing, ["pg_cron"]);
        assert_eq!(preload_of("", installed), (String::new(), Vec::new()));
    }

    #[test]
    fn a_setting_stands_in_the_table_once() {
        let mut names: Vec<&str> = TABLE.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn wal_of_the_largest_segments_fits() {
        assert_eq!(wal_bytes_max(16 << 20), 1 << 30);
        assert_eq!(wal_bytes_max(1 << 30), 4 << 30);
    }
}
