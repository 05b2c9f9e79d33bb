//! What both sides make beside the ini file: identity, lists, pidfile, log; and whether it is still what walmgr made.
//! Never removes anything. Invariant: what cannot be told from somebody else's file stays.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;

use super::{Neighbours, Trace};
use crate::config::TlsSettings;
use crate::files;
use crate::transport::authorized_keys::AuthorizedKeys;
use crate::transport::authorized_names::AuthorizedNames;
use crate::transport::identity::Identity;

/// The beginning of a log that is looked at.
const LOG_BYTES_MAX: u64 = 64 << 10;

/// A number, and the path of a host's file.
const PIDFILE_BYTES_MAX: u64 = 8 << 10;

/// Key and certificate.
pub(crate) fn identity(tls: &TlsSettings, others: &Neighbours) -> Vec<Trace> {
    let foreign = match (&tls.authority, Identity::load(&tls.key, &tls.certificate)) {
        (Some(_), _) => {
            Some("an authority signed it (tls_ca), so it may have another use".to_owned())
        }
        // A cleanup that was killed between the two.
        (None, Err(_)) if tls.key.exists() != tls.certificate.exists() => None,
        (None, Err(_)) => Some("it is no identity that walmgr makes".to_owned()),
        (None, Ok(_)) => None,
    };
    let one = |path: &Path, what| {
        let trace = Trace::file(path, what)?;
        Some(trace.unless(others.user_of(path)).unless(foreign.clone()))
    };
    let pair = [
        one(&tls.certificate, "certificate of the identity"),
        one(&tls.key, "key of the identity"),
    ];
    let stays = pair.iter().flatten().any(|trace| !trace.goes());
    let why = stays.then(|| "the other half of the identity stays".to_owned());
    let kept = |trace: Trace| trace.unless(why.clone());
    pair.into_iter().flatten().map(kept).collect()
}

/// `authorized_keys`.
pub(crate) fn list_of_keys(path: &Path, others: &Neighbours) -> Option<Trace> {
    let trace = Trace::file(path, "keys that may connect")?;
    let foreign = AuthorizedKeys::load(path).is_err();
    Some(list(trace, foreign, others))
}

/// `authorized_names`.
pub(crate) fn list_of_names(path: &Path, others: &Neighbours) -> Option<Trace> {
    let trace = Trace::file(path, "certificates that may connect")?;
    let foreign = AuthorizedNames::load(path).is_err();
    Some(list(trace, foreign, others))
}

fn list(trace: Trace, is_foreign: bool, others: &Neighbours) -> Trace {
    let why = is_foreign.then(|| "it has lines that are not walmgr's".to_owned());
    let user = others.user_of(trace.path());
    trace.unless(user).unless(why)
}

/// A pidfile that no daemon holds.
pub(crate) fn pidfile(path: &Path, others: &Neighbours) -> Option<Trace> {
    let trace = Trace::file(path, "pidfile")?;
    let text = files::read_at_most(path, PIDFILE_BYTES_MAX).unwrap_or_default();
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_number = first.iter().all(u8::is_ascii_digit);
    let why = (!is_number).then(|| "it holds no process number".to_owned());
    let user = others.user_of(path);
    Some(trace.unless(user).unless(why))
}

/// A log in walmgr's form.
pub(crate) fn log(path: &Path, others: &Neighbours) -> Option<Trace> {
    let trace = Trace::file(path, "log")?;
    let text = files::read_at_most(path, LOG_BYTES_MAX).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let why = match lines.next() {
        Some(line) if !is_line_of_ours(line) => {
            Some("it begins with a line that is not walmgr's".to_owned())
        }
        _ => None,
    };
    let user = others.user_of(path);
    Some(trace.unless(user).unless(why))
}

/// `2026-01-31 17:45:00,123 4711 INFO …`, or the object of `log_format = json`.
fn is_line_of_ours(line: &str) -> bool {
    if line.starts_with('{') {
        let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
        return value.is_some_and(|value| value.get("level").is_some());
    }
    let words: Vec<&str> = line.split(' ').take(4).collect();
    let [day, time, pid, level] = words[..] else {
        return false;
    };
    let shape = |text: &str, form: &str| {
        let fits = |(found, wanted): (char, char)| match wanted {
            '9' => found.is_ascii_digit(),
            other => found == other,
        };
        text.chars().count() == form.len() && text.chars().zip(form.chars()).all(fits)
    };
    shape(day, "9999-99-99")
        && shape(time, "99:99:99,999")
        && pid.bytes().all(|byte| byte.is_ascii_digit())
        && ["DEBUG", "INFO", "WARNING", "ERROR"].contains(&level)
}

/// Whose it is, if not this user's.
pub(super) fn other_owner(found: &Metadata) -> Option<String> {
    let owner = found.uid();
    (owner != geteuid().as_raw())
        .then(|| files::user_name(owner).unwrap_or_else(|| format!("user {owner}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_166_a_log_is_known_by_its_lines() {
        for line in [
            "2026-01-31 17:45:00,123 4711 INFO listening",
            "2026-01-31 17:45:00,123 1 ERROR x",
            "{\"level\":\"INFO\"}",
        ] {
            assert!(is_line_of_ours(line), "{line}");
        }
        for line in [
            "2026-01-31 17:45:00.123 UTC [4711] LOG:  starting",
            "Jan 31 17:45:00 host sshd[1]: x",
            "{}",
            "",
            "é",
        ] {
            assert!(!is_line_of_ours(line), "{line}");
        }
    }
}
