//! What the files and folders are called that a set consists of.
//! Never reads one. Invariant: nobody but sealing writes a file of a name that is reserved.

use walmgr_protocol::names::RelativePath;

/// What a set is listed by.
pub(super) const LABEL: &str = "backup_label";

/// What `backup_label` is called until the set is sealed: PostgreSQL does not start from it.
pub(super) const UNSEALED_LABEL: &str = "backup_label.unsealed";

/// Where tablespaces are kept inside a set, a directory each, named by its OID.
pub(super) const TABLESPACES: &str = "tmpspc";

/// Where PostgreSQL and the manifest look for them.
pub(super) const TABLESPACE_LINKS: &str = "pg_tblspc";

/// The files of a set that only sealing writes. The rest are the names that would tell PostgreSQL,
/// or whoever reads the set, something that only sealing may say.
const RESERVED: [&str; 4] = [
    "backup_label",
    UNSEALED_LABEL,
    "tablespace_map",
    "backup_manifest",
];

/// Whether only sealing may write this file.
pub(super) fn is_reserved(path: &RelativePath) -> bool {
    let first = path.components().next().unwrap_or_default();
    RESERVED.iter().any(|name| name.as_bytes() == first)
}
