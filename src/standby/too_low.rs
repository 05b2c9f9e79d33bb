//! The parameters that a hot standby must not have lower than its master: replay stops at them.
//! Never looks at them where `hot_standby` is off, as PostgreSQL does not. Invariant: each is named with
//! what to set it to and where it is set now.

use crate::error::Result;
use crate::pg::conf::{self, ServerSettings};
use crate::pg::control::ControlFile;
use crate::pg::sql::Session;
use crate::status::TooLow;
use crate::wal::obstacle::Demands;

/// Their names, in the order of [`Demands::each`], and what each is where nobody sets it (`src/backend/utils/misc/guc_tables.c`).
const PARAMETERS: [(&str, i64); 5] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

/// What WAL demands of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demanded(Demands);

impl Demanded {
    /// What was replayed last demanded; replay writes it into the control file before it stops.
    pub(super) fn by(control: &ControlFile) -> Demanded {
        Demanded(Demands::of([
            control.max_connections,
            control.max_worker_processes,
            control.max_wal_senders,
            control.max_prepared_transactions,
            control.max_locks_per_transaction,
        ]))
    }

    /// The demands of `ahead`, which is still to be replayed, where there are any, else these.
    #[must_use]
    pub(super) fn and(self, ahead: Option<Demands>) -> Demanded {
        Demanded(self.0.or(ahead.unwrap_or_default()))
    }

    fn compare(self, found: impl Fn(&str, i64) -> Option<(i64, String)>) -> Vec<TooLow> {
        let pairs = PARAMETERS.into_iter().zip(self.0.each());
        let low = pairs.filter_map(|((name, default), (_, needed))| {
            let needed = i64::from(needed);
            let (here, place) = found(name, default)?;
            (here < needed).then_some(TooLow {
                name,
                here,
                needed,
                place,
            })
        });
        low.collect()
    }

    /// Those that are too low in a server that answers, and so is a hot standby.
    pub(super) async fn too_low_in(self, session: &Session) -> Result<Vec<TooLow>> {
        let names = PARAMETERS.map(|(name, _)| name);
        let settings = session.in_force(&names).await?;
        Ok(self.compare(|name, _| {
            let found = settings.iter().find(|setting| setting.name == name)?;
            Some((found.value.parse().ok()?, found.place()))
        }))
    }

    /// Those that are too low in the files of a server that does not answer.
    pub(super) fn too_low_in_files(self, settings: &ServerSettings) -> Vec<TooLow> {
        let hot = settings.value("hot_standby");
        if hot.is_some_and(|value| !conf::is_on(&value)) {
            return Vec::new();
        }
        self.compare(|name, default| match settings.get(name) {
            Some(set) => Some((set.value.trim().parse().ok()?, set.place)),
            None => Some((default, "no file: this is the default".to_owned())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_counts_and_a_warm_standby_needs_nothing() {
        let data = tempfile::tempdir().unwrap();
        let files = ServerSettings::of(data.path(), None);
        let write = |text: &str| std::fs::write(files.config_file(), text).unwrap();
        let demanded = Demanded(Demands::of([120, 8, 10, 4, 64]));
        write("max_connections = 50\nmax_connections = 110\n");
        let low = demanded.too_low_in_files(&files);
        let told: Vec<_> = low.iter().map(|it| (it.name, it.here, it.needed)).collect();
        assert_eq!(
            told,
            [
                ("max_connections", 110, 120),
                ("max_prepared_transactions", 0, 4)
            ]
        );
        assert!(low[0].place.ends_with("postgresql.conf, line 2"), "{low:?}");
        write("hot_standby = off\n");
        assert_eq!(demanded.too_low_in_files(&files), []);
    }
}
