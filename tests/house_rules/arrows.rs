//! Which room may look into which.
//! Never says why; CONTRIBUTING.md does. Invariant: nobody names a room above its own.

/// What each room of `src` may name of the others. `error` is open to all; a room sees itself.
/// The order is the order of the arrows: nobody names a room above its own.
#[rustfmt::skip]
pub(super) const ARROWS: [(&str, &[&str]); 27] = [
    ("main", &["abnormal", "cli", "memory", "output"]),
    (
        "cli",
        &[
            "abnormal", "audit", "cleanup", "config", "daemon", "files", "identity", "master",
            "options", "output", "receiver", "standby", "status", "protocol",
        ],
    ),
    (
        "master",
        &[
            "abnormal", "cleanup", "config", "daemon", "files", "identity", "laid_ready", "metrics", "options",
            "output", "pg", "rate_limit", "shell", "status", "tar", "transport", "wal", "protocol",
        ],
    ),
    (
        "standby",
        &[
            "abnormal", "audit", "cleanup", "config", "daemon", "files", "identity", "laid_ready", "metrics",
            "options", "output", "patience", "pg", "rate_limit", "shell", "status", "store", "transport",
            "wal", "protocol",
        ],
    ),
    (
        "receiver",
        &[
            "abnormal", "audit", "config", "daemon", "files", "metrics", "options", "output", "patience",
            "pg", "rate_limit", "shell", "store", "tar", "transport", "wal", "protocol",
        ],
    ),
    (
        "laid_ready",
        &["abnormal", "files", "pg", "shell", "protocol"],
    ),
    (
        "cleanup",
        &["config", "files", "options", "output", "pg", "transport"],
    ),
    ("identity", &["config", "options", "output", "transport"]),
    ("status", &["config", "metrics", "options", "output", "protocol"]),
    ("transport", &["config", "files", "wal", "protocol"]),
    (
        "store",
        &[
            "abnormal", "audit", "config", "files", "metrics", "pg", "tar", "wal", "protocol",
        ],
    ),
    ("pg", &["config", "files", "options", "patience", "wal", "protocol"]),
    ("tar", &["protocol"]),
    ("wal", &["protocol"]),
    ("metrics", &["config", "files", "patience"]),
    ("config", &["files", "patience", "protocol"]),
    ("daemon", &["files", "options", "output", "patience"]),
    ("output", &["memory", "options", "protocol"]),
    ("abnormal", &["memory", "output"]),
    ("audit", &["files"]),
    ("files", &[]),
    ("patience", &[]),
    ("rate_limit", &[]),
    ("shell", &["output", "patience"]),
    ("options", &["protocol"]),
    ("memory", &[]),
    ("error", &[]),
];
