//! What the files and folders are called that a set consists of.
//! Never reads one. Invariant: nobody but sealing writes a file of a name that is reserved.

use walmgr_protocol::names::RelativePath;

use crate::pg::layout;

/// What `backup_label` is called until the set is sealed.
pub(super) const UNSEALED_LABEL: &str = layout::BACKUP_LABEL_UNSEALED;

/// The files of a set that only sealing writes. The rest are the names that would tell PostgreSQL,
/// or whoever reads the set, something that only sealing may say.
const RESERVED: [&str; 4] = [
    layout::BACKUP_LABEL,
    UNSEALED_LABEL,
    layout::TABLESPACE_MAP,
    layout::BACKUP_MANIFEST,
];

/// Whether only sealing may write this file.
pub(super) fn is_reserved(path: &RelativePath) -> bool {
    let first = path.components().next().unwrap_or_default();
    RESERVED.iter().any(|name| name.as_bytes() == first)
}
