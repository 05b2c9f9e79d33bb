//! Questions to the opened server of a drill.
//! Never asks without a bound. Invariant: an interrupt ends a question within a moment.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::process::geteuid;
use tokio_postgres::types::{FromSql, Type};

use super::place::{PORT, ScratchPlace};
use crate::abnormal::Interrupt;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::conninfo::Environment;
use crate::pg::data_directory::DataDirectory;
use crate::pg::event_loop::converse;
use crate::pg::sql::{Limits, Session};
use crate::standby::replay::TICK;

/// A server on this host that has just opened answers at once; a busy disk may hold it up.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// A drill that takes longer than a day runs into the next night's.
pub(super) const CHECK_LIMIT: Duration = Duration::from_secs(86_400);

/// Databases in which nearly every cluster lets a superuser in.
const DATABASES: [&str; 2] = ["postgres", "template1"];

/// The variables that say to libpq what is no concern of a drill.
const VARIABLES: [&str; 14] = [
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGUSER",
    "PGDATABASE",
    "PGSERVICE",
    "PGOPTIONS",
    "PGREQUIREAUTH",
    "PGREQUIREPEER",
    "PGCHANNELBINDING",
    "PGTARGETSESSIONATTRS",
    "PGLOADBALANCEHOSTS",
    "PGSSLMODE",
    "PGSSLNEGOTIATION",
];

/// The name of a superuser of the server.
pub(super) fn superuser(place: &ScratchPlace, interrupt: &Interrupt) -> Result<String> {
    let own = files::user_name(geteuid().as_raw());
    let owner = DataDirectory::open(&place.data())?.owner_name();
    let mut users: Vec<String> = own.into_iter().chain(owner).collect();
    users.push("postgres".to_owned());
    users.dedup();
    let mut refused = None;
    for user in &users {
        for database in DATABASES {
            let is_superuser = ask(place, user, database, interrupt, async |session| {
                session.is_superuser().await
            });
            match is_superuser {
                Ok(true) => return Ok(user.clone()),
                Ok(false) => break,
                Err(error) => {
                    interrupt.check()?;
                    refused = Some(error);
                }
            }
        }
    }
    let doing = format!(
        "expected a superuser named {} in the restored server",
        users.join(" or ")
    );
    let error = CommandError::retry(doing);
    Err(match refused {
        Some(refused) => error.because(refused),
        None => error,
    })
}

/// Runs `drill_sql`: fails on an error, on no row, and where the first value is false or null.
pub(super) fn run(
    place: &ScratchPlace,
    user: &str,
    database: &str,
    sql: &str,
    interrupt: &Interrupt,
) -> Result<()> {
    let rows = ask(place, user, database, interrupt, async |session| {
        // The query is the administrator's, and so are the names in it.
        session.query("RESET search_path", &[]).await?;
        session.query(sql, &[]).await
    });
    let rows = rows.map_err(|error| CommandError::retry("drill_sql failed").because(error))?;
    let failed = |what: &str| Err(CommandError::retry(format!("drill_sql {what}: {sql}")));
    let Some(row) = rows.first() else {
        return failed("returned no row");
    };
    match row.try_get::<_, Option<FirstValue>>(0) {
        Ok(None) => failed("returned null"),
        Ok(Some(FirstValue { is_false: true })) => failed("returned false"),
        Ok(Some(_)) => Ok(()),
        Err(_) => failed("returned no column"),
    }
}

/// A value of any type.
struct FirstValue {
    is_false: bool,
}

impl<'a> FromSql<'a> for FirstValue {
    fn from_sql(
        kind: &Type,
        raw: &'a [u8],
    ) -> std::result::Result<FirstValue, Box<dyn std::error::Error + Sync + Send>> {
        Ok(FirstValue {
            is_false: *kind == Type::BOOL && raw == [0],
        })
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn ask<T>(
    place: &ScratchPlace,
    user: &str,
    database: &str,
    interrupt: &Interrupt,
    question: impl AsyncFnOnce(&Session) -> Result<T>,
) -> Result<T> {
    // By its handle, as the path may be longer than a socket's may be.
    let folder = File::open(place.path()).at(Kind::Retry, "open", place.path())?;
    let host = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let user = user.replace('\\', "\\\\").replace('\'', "\\'");
    let conninfo = format!("host={host} port={PORT} user='{user}'");
    let environment = VARIABLES
        .iter()
        .fold(Environment::of_process(), |environment, name| {
            environment.with_variable(name, "")
        });
    let limits = Limits {
        connect: CONNECT_LIMIT,
        statement: CHECK_LIMIT,
    };
    converse(async {
        let asking = async {
            let session = Session::connect_in(&conninfo, &environment, database, limits).await?;
            let answer = question(&session).await;
            session.close().await;
            answer
        };
        let interrupted = async {
            while interrupt.goes_on() {
                tokio::time::sleep(TICK).await;
            }
        };
        tokio::select! {
            answer = asking => answer,
            () = interrupted => match interrupt.check() {
                Err(error) => Err(error),
                Ok(()) => Err(CommandError::retry("interrupted")),
            },
        }
    })
}
