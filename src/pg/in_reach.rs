//! What was found of the end of a recovery, in words: the same on both sides.
//! Never looks for anything itself. Invariant: whoever is refused is told what is in reach, and what to type.

use walmgr_protocol::message::reach::{
    EndCause, RecoveryEnd, TargetBound, TargetRange, WantedTarget, WantedTimeline,
};

use super::recovery::{RecoveryTarget, TargetTimeline, time_text};
use crate::error::{CommandError, Kind};
use crate::options::Restoring;
use crate::wal::obstacle::{Met, Obstacle};

/// What somebody typed, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TypedTarget<'a> {
    /// The program, its ini file and the command.
    pub command: &'static str,
    /// What stood behind it.
    pub restoring: &'a Restoring,
    /// Whether a library that is installed here now gets a recovery past a record of its own.
    pub can_load: bool,
}

impl TypedTarget<'_> {
    /// The refusal of a target, with what to type instead; `end` is what is in the way, and `other_set` gets
    /// there.
    pub(crate) fn refused(
        &self,
        target: &RecoveryTarget,
        range: &TargetRange,
        end: Option<&RecoveryEnd>,
        other_set: Option<&str>,
    ) -> CommandError {
        let typed = self.again(self.restoring.set.as_deref(), false);
        // Without a target it would be refused too where something ends the way.
        let all = match end {
            Some(end) => match remedy(end).filter(|_| self.can_load) {
                Some(remedy) => format!("{}: {remedy}; nothing was changed", end_text(end)),
                None => format!("{}; nothing was changed", end_text(end)),
            },
            None => format!("nothing was changed; `{typed}` recovers all there is"),
        };
        let mut hint = match last_of(range, target.bound()) {
            Some(option) => format!("{all}, `{typed} {option}` up to the end of that"),
            None => all,
        };
        match other_set {
            Some(set) => {
                let typed = self.again(Some(set), true);
                hint.push_str(&format!(", and `{typed}` gets to the target"));
            }
            None if self.restoring.set.is_some() && lies_before(target, range) => {
                hint.push_str(", and no other set was found that reaches back to it");
            }
            None => {}
        }
        let range = range_text(range);
        CommandError::retry(format!("{target} is out of reach: {range}")).hint(hint)
    }

    /// The refusal of a recovery of this set to the end of the archive, which it does not get to.
    pub(crate) fn ended(&self, set: &str, end: &RecoveryEnd) -> CommandError {
        let remedy = remedy(end).filter(|_| self.can_load);
        let remedy = remedy.unwrap_or("make a new backup on the master");
        let doing = format!("restore {set}, which is older: {}", end_text(end));
        CommandError::retry(doing).hint(format!(
            "{remedy}, or restore up to before it: --target-time or --target-lsn; nothing was changed"
        ))
    }

    /// The refusal of a set that no WAL leads from to where it should.
    pub(crate) fn no_way(&self, why: &str) -> CommandError {
        let other = match self.restoring.target.timeline {
            Some(_) => "choose another set, or another --target-timeline",
            None => "choose another set: `listbackups` lists them",
        };
        CommandError::retry(why).hint(format!("{other}; nothing was changed"))
    }

    /// The error of a look for the way, as the other side says it that only gets its text.
    pub(crate) fn astray(&self, error: CommandError) -> CommandError {
        match error.kind() {
            Kind::Retry => self.no_way(&error.to_string()),
            _ => error,
        }
    }

    /// The command as it was typed, of this set, with its target or without.
    fn again(&self, set: Option<&str>, with_target: bool) -> String {
        let (mut typed, restoring) = (self.command.to_owned(), self.restoring);
        let mut add = |word: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@".contains(&byte);
            match !word.is_empty() && word.bytes().all(plain) {
                true => typed.push_str(&format!(" {word}")),
                false => typed.push_str(&format!(" '{}'", word.replace('\'', "'\\''"))),
            }
        };
        set.iter().for_each(|set| add(set));
        let destination = restoring.destination.iter();
        destination.for_each(|path| add(&path.display().to_string()));
        for (old, new) in &restoring.tablespaces {
            add("--tablespace-mapping");
            add(&format!("{}={}", old.display(), new.display()));
        }
        if restoring.trusts_settings {
            add("--trust-settings");
        }
        let words = &restoring.target;
        let mut options = vec![("--target-timeline", &words.timeline)];
        if with_target {
            options.extend([
                ("--target-time", &words.time),
                ("--target-lsn", &words.lsn),
                ("--target-xid", &words.xid),
                ("--target-name", &words.name),
                ("--target-action", &words.action),
            ]);
        }
        for (option, value) in options {
            if let Some(value) = value {
                add(option);
                add(value);
            }
        }
        let flags = [
            ("--target-immediate", words.immediate),
            ("--target-exclusive", words.exclusive),
        ];
        let flags = flags.into_iter().filter(|(_, given)| *given && with_target);
        flags.for_each(|(flag, _)| add(flag));
        typed
    }
}

/// The first of these that ends the recovery of a server that loads libraries, or none.
pub(crate) fn end_of(met: &[Met], loads_libraries: bool) -> Option<RecoveryEnd> {
    let end = met.iter().find(|met| met.obstacle.ends(loads_libraries))?;
    let cause = match end.obstacle {
        Obstacle::Manager(id) => EndCause::Manager(id),
        Obstacle::Reset => EndCause::Reset,
        _ => EndCause::Minimal,
    };
    Some(RecoveryEnd {
        lsn: end.lsn,
        cause,
    })
}

/// Why nobody gets past it.
pub(crate) fn end_text(end: &RecoveryEnd) -> String {
    let why = match end.cause {
        EndCause::Manager(id) => {
            return format!(
                "replay ends at {}: the record there needs the library of resource manager {id}, \
                and shared_preload_libraries is empty",
                end.lsn
            );
        }
        EndCause::Reset => "pg_resetwal was run on the master: no WAL leads there",
        EndCause::Minimal => {
            "the master ran with wal_level = minimal, so the WAL lacks changes of that time"
        }
    };
    format!("no recovery can pass {}, where {why}", end.lsn)
}

/// What gets a server past it without a new backup, if anything does.
pub(crate) fn remedy(end: &RecoveryEnd) -> Option<&'static str> {
    matches!(end.cause, EndCause::Manager(_))
        .then_some("install the extension here, and set shared_preload_libraries as on the master")
}

/// What is said of a target of which nobody knows whether it is in reach.
pub(crate) fn untold_text(target: &RecoveryTarget, why: &str) -> String {
    format!("only PostgreSQL can tell whether {target} is in reach: {why}")
}

/// What is in reach of either of two sets, the newer one first.
#[must_use]
pub(crate) fn widened(range: TargetRange, older: TargetRange) -> TargetRange {
    use TargetRange::{Lsns, Names, Nothing, Times, Xids};
    match (range, older) {
        (Lsns(a, b), Lsns(c, d)) => Lsns(a.min(c), b.max(d)),
        (Times(a, b), Times(c, d)) => Times(a.min(c), b.max(d)),
        // The numbers of transactions begin again some day.
        (Xids(_, last), Xids(first, _)) => Xids(first, last),
        (Nothing, other) | (Names(..), other @ Names(..)) => other,
        (one, _) => one,
    }
}

/// The option for the last target that is in reach.
fn last_of(range: &TargetRange, bound: TargetBound) -> Option<String> {
    let option = match range {
        TargetRange::Lsns(_, last) => format!("--target-lsn {last}"),
        // A microsecond before what is excluded.
        TargetRange::Times(_, last) => {
            format!("--target-time '{}'", time_text(last.saturating_sub(1)))
        }
        TargetRange::Xids(_, last) => format!("--target-xid {last}"),
        TargetRange::Names(names, _) => {
            let name = names.last()?.replace('\'', "'\\''");
            format!("--target-name '{name}'")
        }
        TargetRange::Nothing => return None,
    };
    Some(match bound {
        TargetBound::Inclusive => option,
        TargetBound::Exclusive => format!("{option} --target-exclusive"),
    })
}

/// Whether it is an older set that could reach it.
fn lies_before(target: &RecoveryTarget, range: &TargetRange) -> bool {
    match (target, range) {
        (RecoveryTarget::Lsn(lsn, _), TargetRange::Lsns(first, _)) => lsn < first,
        (RecoveryTarget::Time(time_us, _), TargetRange::Times(first, _)) => time_us < first,
        _ => false,
    }
}

fn range_text(range: &TargetRange) -> String {
    match range {
        TargetRange::Lsns(first, last) => format!("LSNs from {first} to {last} are in reach"),
        TargetRange::Times(first, last) => {
            let (first, last) = (time_text(*first), time_text(*last));
            format!("times from {first} to before {last} are in reach")
        }
        TargetRange::Xids(first, last) => {
            format!("transactions from {first} to {last} are in reach")
        }
        TargetRange::Names(names, count) => {
            let names = names.join(", ");
            format!("{count} restore points are in reach, the last are {names}")
        }
        TargetRange::Nothing => "the archive has no such target".to_owned(),
    }
}

impl From<&RecoveryTarget> for WantedTarget {
    fn from(target: &RecoveryTarget) -> Self {
        match target {
            RecoveryTarget::Time(time_us, bound) => WantedTarget::Time(*time_us, *bound),
            RecoveryTarget::Lsn(lsn, bound) => WantedTarget::Lsn(*lsn, *bound),
            RecoveryTarget::Xid(xid, bound) => WantedTarget::Xid(*xid, *bound),
            RecoveryTarget::Name(name) => WantedTarget::Name(name.clone()),
            RecoveryTarget::Consistent => WantedTarget::Consistent,
        }
    }
}

impl From<&WantedTarget> for RecoveryTarget {
    fn from(target: &WantedTarget) -> Self {
        match target {
            WantedTarget::Time(time_us, bound) => RecoveryTarget::Time(*time_us, *bound),
            WantedTarget::Lsn(lsn, bound) => RecoveryTarget::Lsn(*lsn, *bound),
            WantedTarget::Xid(xid, bound) => RecoveryTarget::Xid(*xid, *bound),
            WantedTarget::Name(name) => RecoveryTarget::Name(name.clone()),
            WantedTarget::Consistent => RecoveryTarget::Consistent,
        }
    }
}

impl From<TargetTimeline> for WantedTimeline {
    fn from(timeline: TargetTimeline) -> Self {
        match timeline {
            TargetTimeline::Latest => WantedTimeline::Newest,
            TargetTimeline::Current => WantedTimeline::Own,
            TargetTimeline::Number(number) => WantedTimeline::Number(number),
        }
    }
}

impl From<WantedTimeline> for TargetTimeline {
    fn from(timeline: WantedTimeline) -> Self {
        match timeline {
            WantedTimeline::Newest => TargetTimeline::Latest,
            WantedTimeline::Own => TargetTimeline::Current,
            WantedTimeline::Number(number) => TargetTimeline::Number(number),
        }
    }
}
