//! Where a recovery is to end, as it is typed: `--target-time` and the others.
//! Never asks whether it can be reached. Invariant: what is read is a value that PostgreSQL takes.

use walmgr_protocol::message::reach::TargetBound;
use walmgr_protocol::names::TimelineId;

use super::recovery::{RecoveryTarget, TargetAction, TargetTimeline, parse_time};
use crate::error::{CommandError, Result};
use crate::options::TargetWords;

/// Where a recovery is to end, what then, and along which timeline.
pub(crate) type Wanted = (Option<(RecoveryTarget, TargetAction)>, TargetTimeline);

/// Reads what was typed.
pub(crate) fn parse(words: &TargetWords) -> Result<Wanted> {
    let wrong = |option: &str, text: &str, expected: &str| {
        CommandError::usage(format!("{option} {text}: expected {expected}"))
    };
    let bound = match words.exclusive {
        false => TargetBound::Inclusive,
        true => TargetBound::Exclusive,
    };
    let target = if let Some(text) = &words.time {
        Some(RecoveryTarget::Time(parse_time(text)?, bound))
    } else if let Some(text) = &words.lsn {
        let lsn = text.parse();
        let lsn = lsn.map_err(|_| wrong("--target-lsn", text, "a WAL location such as 0/3000060"));
        Some(RecoveryTarget::Lsn(lsn?, bound))
    } else if let Some(text) = &words.xid {
        // `pg_current_xact_id()` counts on where the number of a transaction begins again.
        let xid = text
            .parse::<u64>()
            .ok()
            .map(|xid| xid & u64::from(u32::MAX));
        let xid = xid.and_then(|xid| u32::try_from(xid).ok());
        let xid = xid.filter(|xid| *xid >= FIRST_NORMAL_XID);
        let xid = xid.ok_or_else(|| wrong("--target-xid", text, "a transaction's number"));
        Some(RecoveryTarget::Xid(xid?, bound))
    } else if let Some(text) = &words.name {
        let fits = !text.is_empty() && text.len() < NAME_BYTES_MAX && !text.contains('\0');
        let wrong = || wrong("--target-name", text, "a name of at most 63 bytes");
        Some(RecoveryTarget::Name(
            fits.then(|| text.clone()).ok_or_else(wrong)?,
        ))
    } else if words.immediate {
        Some(RecoveryTarget::Consistent)
    } else {
        None
    };
    let timeline = match words.timeline.as_deref() {
        None | Some("latest") => TargetTimeline::Latest,
        Some("current") => TargetTimeline::Current,
        Some(text) => {
            let number = text.parse().ok().and_then(TimelineId::new);
            let number = number
                .ok_or_else(|| wrong("--target-timeline", text, "a number, latest or current"));
            TargetTimeline::Number(number?)
        }
    };
    let action = match words.action.as_deref() {
        Some("promote") => TargetAction::Promote,
        Some("shutdown") => TargetAction::Shutdown,
        _ => TargetAction::Pause,
    };
    Ok((target.map(|target| (target, action)), timeline))
}

/// `MAXFNAMELEN`, with the zero at the end.
const NAME_BYTES_MAX: usize = 64;

/// `FirstNormalTransactionId`.
const FIRST_NORMAL_XID: u32 = 3;
