//! The file in a set that says how many backups it is away from a full one.
//! Never says which sets those were: no set needs another one. Invariant: a set without it is a full one.

use walmgr_protocol::names::RelativePath;

/// The file. PostgreSQL does not look at it, and no backup takes it.
pub(crate) const NAME: &str = "walmgr_incremental";

/// Its path.
pub(crate) fn path() -> Option<RelativePath> {
    RelativePath::new(NAME.as_bytes()).ok()
}

/// What stands in that of a set which is so many backups away from a full one.
pub(crate) fn text(since_full: u32) -> String {
    format!("{since_full}\n")
}

/// What it says; `None` if that is not what [`text`] makes.
pub(crate) fn parse(text: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
    let since_full: u32 = digits.parse().ok()?;
    (self::text(since_full).as_bytes() == text).then_some(since_full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_is_read() {
        for since_full in [0, 1, 9, u32::MAX] {
            assert_eq!(parse(text(since_full).as_bytes()), Some(since_full));
        }
        for other in [
            "",
            "\n",
            "1",
            "+1\n",
            "01\n",
            "1\n\n",
            "-1\n",
            "4294967296\n",
            " 1\n",
        ] {
            assert_eq!(parse(other.as_bytes()), None, "{other:?}");
        }
    }
}
