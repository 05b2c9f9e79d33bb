//! `restore SET DST` on the master: brings a backup set back as a server that replays over the wire.
//! Never touches a directory that holds anything, unless its files are to be taken over, and never a running server's. Invariant: wherever
//! it is killed, DST has no `global/pg_control` before all of it is there, checked and durable, and
//! PostgreSQL does not start without one.
//!
//! ```text
//! describe the set, look at DST         nothing is touched before all of that fits
//! mark DST as unfinished
//! fetch the stream, take it apart       every file compared with backup_manifest as it comes
//! links, sync, settings, signal
//! global/pg_control gets its name       from here on PostgreSQL starts
//! take the mark away
//! ```
//!
//! A broken connection is made again and goes on where it was. A run that was killed is not: the next
//! one finds the mark, removes what there is and begins anew.

mod comparing;
mod difference;
mod fetched;
mod kept;
mod made;
mod old;
mod own_server;
mod pages;
mod place;
mod stream;
mod tree;
mod unpack;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use walmgr_protocol::message::fetch::SetDescription;
use walmgr_protocol::message::reach::{SetQuestion, TargetVerdict};

use crate::config::MasterConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::master::cluster::ClusterFacts;
use crate::master::fetch::Fetching;
use crate::options::{Options, Restoring};
use crate::output;
use crate::output::progress::per_second;
use crate::pg::command::walmgr_command;
use crate::pg::conf::foreign::Host;
use crate::pg::conf::{self, ServerSettings, brought};
use crate::pg::group_access;
use crate::pg::hba;
use crate::pg::in_reach::{self, TypedTarget};
use crate::pg::layout;
use crate::pg::left_out;
use crate::pg::leftovers;
use crate::pg::programs::Programs;
use crate::pg::recovery::{AfterPromotion, Recovery};
use crate::pg::wanted;
use crate::wal::obstacle::Demands;

use place::RestorePlace;
use stream::{RemoteSet, Streams};
use unpack::{Layout, Unpack};

/// Restores, or says what would be done.
pub(crate) fn run(config: &MasterConfig, options: &Options, restoring: &Restoring) -> Result<()> {
    let (Some(set), Some(destination)) = (&restoring.set, &restoring.destination) else {
        return Err(
            CommandError::usage("restore on the master needs a set and a new directory").hint(
                "type: restore SET DST; `listbackups` lists the sets, and DST must not exist yet",
            ),
        );
    };
    let destination = std::path::absolute(destination).at(Kind::Usage, "find", destination)?;
    let is_own = files::resolved(&destination) == files::resolved(&config.master_data);
    let recovery = recovery(config, restoring, is_own)?;
    let trusts_settings = restoring.trusts_settings;
    let runtime = super::runtime()?;
    let restored = runtime.block_on(async {
        let facts = ClusterFacts::read(config).ok();
        let mut fetching = Fetching::connect(config, facts.as_ref()).await?;
        let described = fetching.describe(question(set, &recovery)).await?;
        check_reach(restoring, &recovery, &described)?;
        let place = RestorePlace::examine(config, &destination, &described, restoring)?;
        if options.not_really {
            fetching.close().await;
            return output::not_really(&place.in_words(&described, &recovery));
        }
        let restore = MasterRestore {
            set: RemoteSet {
                config,
                options,
                facts,
                described,
            },
            recovery,
            trusts_settings,
        };
        restore.run(place, fetching).await
    });
    // A writer that is stuck in a dead disk must not hold the exit back.
    runtime.shutdown_background();
    restored
}

/// `is_own`: the set becomes the server of `master_data` itself, which goes on to archive. Anywhere else it may be a
/// trial beside that server.
fn recovery(config: &MasterConfig, restoring: &Restoring, is_own: bool) -> Result<Recovery> {
    let (target, timeline) = wanted::parse(&restoring.target)?;
    Ok(Recovery {
        after: match is_own {
            true => AfterPromotion::AsConfigured,
            false => AfterPromotion::ArchivesNothing,
        },
        restore_command: walmgr_command("restore_command", &config.path, "xrestore %f %p")?,
        primary_conninfo: None,
        timeline,
        target,
    })
}

fn question(set: &str, recovery: &Recovery) -> SetQuestion {
    let target = recovery.target.as_ref();
    SetQuestion {
        name: set.to_owned(),
        timeline: recovery.timeline.into(),
        target: target.map(|(target, _)| target.into()),
    }
}

/// What the server would find out much later, in the words of the standby's `restore`.
fn check_reach(
    restoring: &Restoring,
    recovery: &Recovery,
    described: &SetDescription,
) -> Result<()> {
    // What ends a recovery is judged by the libraries of the set's own configuration.
    let typed = TypedTarget {
        command: "walmgr MASTER.ini restore",
        restoring,
        can_load: false,
    };
    let end = described.recovery_end.as_ref();
    let target = recovery.target.as_ref().map(|(target, _)| target);
    match (&described.verdict, target, end) {
        (TargetVerdict::NoWay(why), ..) => Err(typed.no_way(why)),
        (TargetVerdict::OutOfReach(range, other_set), Some(target), _) => {
            // It becomes part of a line to type.
            let is_name = |set: &&str| {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
                set.bytes().all(plain)
            };
            let other_set = other_set.as_deref().filter(is_name);
            Err(typed.refused(target, range, end, other_set))
        }
        (TargetVerdict::Untold(why), Some(target), _) => {
            tracing::warn!("{}", in_reach::untold_text(target, why));
            Ok(())
        }
        (_, None, Some(end)) => Err(typed.ended(&described.name, end)),
        _ => Ok(()),
    }
}

/// One restore, once nothing speaks against it.
struct MasterRestore<'a> {
    set: RemoteSet<'a>,
    recovery: Recovery,
    trusts_settings: bool,
}

impl<'a> MasterRestore<'a> {
    async fn run(&self, place: RestorePlace, fetching: Fetching<'a>) -> Result<()> {
        let begun = Instant::now();
        let place = place.begin(&self.set.described)?;
        let made = async {
            let layout = match &place.old {
                None => self.fetch(&place, fetching).await?,
                Some(old) => difference::fetch(&self.set, &place, old, fetching).await?,
            };
            self.finish(&place, &layout)
        };
        if let Err(error) = made.await {
            return Err(place.give_up(error));
        }
        self.report(&place.data, begun.elapsed())
    }

    /// Gets the whole stream.
    async fn fetch(&self, place: &RestorePlace, first: Fetching<'a>) -> Result<Layout> {
        let (name, total_bytes) = (&self.set.described.name, self.set.described.stream_bytes);
        tracing::info!("fetching {name}, {}", HumanBytes(total_bytes));
        let mut streams = Streams::begin(&self.set, first);
        let sink = Unpack::begin(place, &self.set.described, streams.counters())?;
        let sink = streams.get(sink).await?;
        streams.pause().await;
        sink.finish()
    }

    /// Makes a data directory of the files.
    fn finish(&self, place: &RestorePlace, layout: &Layout) -> Result<()> {
        let (files, home) = (&place.prepared, &place.data);
        self.set.check(place)?;
        if !layout.has_manifest {
            tracing::warn!(
                "{} has no backup_manifest, so only the transfer of its files was checked",
                self.set.described.name
            );
        }
        for line in left_out::named_in(files) {
            let name = &self.set.described.name;
            tracing::warn!("{name} lacks a file of the master: {line}");
        }
        place.link_tablespaces(&self.set.described)?;
        place.later.lead()?;
        place.make_wal_directory()?;
        let spaces: Vec<PathBuf> = place.spaces.values().cloned().collect();
        let modes = group_access::apply(files, &spaces);
        modes.at(Kind::Retry, "change the modes of", files)?;
        leftovers::remove(files)?;
        for path in brought::put_in_place(files, home)? {
            let path = place.at_home(&path);
            tracing::info!("{} is the one that the set brought", path.display());
        }
        tracing::info!("making it durable");
        place.sync()?;
        self.settle_settings(place)?;
        let main = place.before_home(&files::resolved(&self.set.config.master_config));
        let own = self.is_own().then_some(&*main);
        let server = ServerSettings::of_next(files, home, own);
        if let Some(note) = self.recovery.note(&server) {
            tracing::info!("{note}");
        }
        self.recovery.write(files)?;
        if self.is_own() {
            own_server::archive_once_open(self.set.config, place)?;
        }
        let demands = self.set.described.demands;
        let demands = demands.map(|needed| i32::try_from(needed).unwrap_or_default());
        conf::raise(&server, Demands::of(demands))?;
        for path in conf::make_missing_folders(server.config_file(), files)? {
            let path = place.at_home(&path);
            tracing::info!("{} is made, as the set has no empty folder", path.display());
        }
        place.settle()?;
        // The restore is done: what the server then needs can only be told.
        let server = server.moved(files, home);
        match conf::pieces(server.config_file(), home) {
            Ok(pieces) => {
                for piece in pieces.iter().filter(|piece| piece.is_missing()) {
                    tracing::warn!("the server needs {piece}, which is missing");
                }
            }
            Err(error) => {
                tracing::warn!("whether every file of the configuration is there: {error}")
            }
        }
        Ok(())
    }

    /// What came from another host gives no orders here that the master's own file does not give.
    fn settle_settings(&self, place: &RestorePlace) -> Result<()> {
        let own = files::read(&self.set.config.master_config).unwrap_or_default();
        let own_hba = files::read(
            self.set
                .config
                .master_config
                .with_file_name(layout::HBA_CONF),
        );
        if let Ok(foreign) = files::read(place.prepared.join(layout::HBA_CONF)) {
            for line in hba::wider(&foreign, own_hba.ok().as_deref()) {
                let line = line.escape_debug();
                tracing::warn!("the set's pg_hba.conf lets in more than this host's own: {line}");
            }
        }
        if self.trusts_settings {
            return Ok(());
        }
        let host = Host {
            own: &own,
            data: &place.data,
        };
        let replaced = self.recovery.settings();
        // The command of this host takes its place.
        let is_own = self.is_own();
        for (path, off) in host.neutralise_directory(&place.prepared)? {
            let is_replaced = replaced.iter().any(|(name, _)| *name == off.name);
            let is_set_here = is_replaced || (is_own && off.name == "archive_command");
            if !is_set_here {
                tracing::warn!("{}", off.sentence(&place.at_home(&path)));
            }
        }
        Ok(())
    }

    /// Whether the server is the one of `master_data`.
    fn is_own(&self) -> bool {
        self.recovery.after == AfterPromotion::AsConfigured
    }

    fn report(&self, data: &Path, elapsed: Duration) -> Result<()> {
        let (name, shown) = (&self.set.described.name, data.display());
        let bytes = self.set.described.stream_bytes;
        let config_note = match data.join(layout::MAIN_CONF).exists() {
            true => "",
            false => {
                "\nIt has no postgresql.conf: create one, or start the server with -c \
                config_file=..."
            }
        };
        let pg_ctl = Programs::of_master(self.set.config).typed("pg_ctl");
        let next = match &self.recovery.target {
            None => format!(
                "`{pg_ctl} -D {shown} start` starts it as a standby that replays what the archive \
                 has, and\n`{pg_ctl} -D {shown} promote` opens it."
            ),
            Some((target, action)) => {
                format!("`{pg_ctl} -D {shown} start` recovers it up to {target}, then: {action}.")
            }
        };
        let archiving = match self.is_own() {
            true => own_server::archiving_in_words(self.set.config, self.recovery.target.is_some()),
            false => "Its port is the master's: change it before the start if both run on one host. Archiving is \
                off."
                .to_owned(),
        };
        output::print(&format!(
            "{name} restored to {shown}: {} in {:.0} s, {}/s.\n{next}\n{archiving}{config_note}",
            HumanBytes(bytes),
            elapsed.as_secs_f64(),
            HumanBytes(per_second(bytes, elapsed)),
        ))
    }
}
