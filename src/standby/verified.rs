//! `completed_wals/.verified/good`: when `verify` last went through the whole archive and found everything good.
//! Never says what else was found. Invariant: a torn or foreign file says nothing.

use std::path::PathBuf;

use jiff::Timestamp;
use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;

use crate::config::StandbyConfig;
use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::store::VERIFIED_NAME;

const NAME: &str = "good";

/// What stands before the seconds since 1970.
const WORD: &str = "good ";

fn path(config: &StandbyConfig) -> PathBuf {
    config.completed_wals.join(VERIFIED_NAME).join(NAME)
}

/// Notes that it was so at this moment.
pub(super) fn note(config: &StandbyConfig) -> Result<()> {
    let (path, now_s) = (path(config), Timestamp::now().as_second());
    files::replace_own(&path, format!("{WORD}{now_s}\n").as_bytes()).at(Kind::Retry, "write", &path)
}

/// When it was, in seconds since 1970; nothing if it never was, or nobody can tell.
pub(super) fn last_s(config: &StandbyConfig) -> Option<i64> {
    parsed(&files::read_at_most(&path(config), SMALL_FILE_BYTES_MAX).ok()?)
}

fn parsed(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let seconds = text.strip_prefix(WORD)?.strip_suffix('\n')?;
    seconds.parse().ok().filter(|seconds| *seconds > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_note_says_when_everything_was_good() {
        assert_eq!(parsed(b"good 1767225600\n"), Some(1_767_225_600));
        for torn in [
            "",
            "good ",
            "good 17",
            "good -1\n",
            "good 1e9\n",
            "bad 17\n",
            "good 17\n\n",
        ] {
            assert_eq!(parsed(torn.as_bytes()), None, "{torn:?}");
        }
    }
}
