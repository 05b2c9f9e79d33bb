//! `syncdaemon`: the partial flow for ever, one pass every `loop_delay`, and one when WAL is written.
//! Never gives up because something is down; it ends when it is told to, or when its server is a
//! standby. Invariant: one line in the log for each change of state, none for a pass.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use walmgr_protocol::names::{Lsn, TimelineId};

use crate::config::{self, MasterConfig};
use crate::daemon::{self, DaemonControl, Notice, Notices, PidFile, Pulse, Readiness};
use crate::error::{CommandError, Result};
use crate::master::agent::{self, Agent};
use crate::master::backoff::backoff;
use crate::master::monitored::MonitoredSyncdaemon;
use crate::master::partial::{MasterReach, Shipper};
use crate::master::position::{PositionFound, PositionReader};
use crate::master::synchronous::Synchronous;
use crate::master::wal_watch::WalWatch;
use crate::options::Options;
use crate::output;
use crate::pg::layout;

/// `syncdaemon`, or what `-r`, `-s` and `-k` make of it.
pub(crate) fn run(config: &MasterConfig, options: &Options, readiness: Readiness) -> Result<()> {
    let pidfile = config.syncdaemon_pidfile();
    if let Some(control) = DaemonControl::asked_by(options) {
        if options.not_really {
            let path = pidfile.display();
            return output::not_really(&format!("send {control:?} to the syncdaemon of {path}"));
        }
        let pid = daemon::signal_running(&pidfile, control, daemon::END_TIMEOUT)?;
        tracing::info!("{control:?}: syncdaemon, process {pid}");
        return Ok(());
    }
    if options.not_really {
        return output::not_really(&format!(
            "ship WAL to {} every {:?}",
            config.slave, config.loop_delay
        ));
    }
    let runtime = crate::master::runtime()?;
    // Before the pidfile names this process: whoever reads it there may send a signal.
    let notices = runtime.block_on(async { Notices::listen() })?;
    let _lock = PidFile::acquire(&pidfile)?;
    let ended = runtime.block_on(serve(config.clone(), options, notices, readiness));
    // A reader that is stuck in a dead disk must not hold the exit back.
    runtime.shutdown_background();
    ended
}

async fn serve(
    config: MasterConfig,
    options: &Options,
    mut notices: Notices,
    readiness: Readiness,
) -> Result<()> {
    tracing::info!(
        "syncdaemon {} ships to {} every {:?}",
        env!("CARGO_PKG_VERSION"),
        config.slave,
        config.loop_delay
    );
    let monitored = Arc::new(MonitoredSyncdaemon::new(&config));
    let mut metrics = monitored.serve()?;
    let mut ticker = Ticker::new(config, monitored);
    readiness.ready(&notices)?;
    let mut pulse = Pulse::start();
    let mut early = ticker.early();
    loop {
        let mut reload_asked = false;
        early.pass_begins();
        let (begun, had) = (Instant::now(), ticker.durable());
        let next = {
            let mut tick = std::pin::pin!(ticker.tick());
            loop {
                tokio::select! {
                    next = &mut tick => break next,
                    notice = notices.next() => match notice {
                        Notice::Drain => return ended(),
                        Notice::Reload => reload_asked = true,
                    },
                    () = pulse.beat() => {}
                }
            }
        };
        let Some(next) = next else {
            return ended();
        };
        let durable = ticker.durable();
        early.pass_ended(begun, durable != had, ticker.awaits_flush);
        let mut news = ticker.synchronous.news();
        let (streams, looks) = (news.is_some(), durable.is_some());
        let next = match looks && ticker.has_all && !ticker.config.synchronous {
            true => early.due_behind(begun, next),
            false => next,
        };
        // Once at least: however long a pass takes, what the receiver says meanwhile is heard.
        while !reload_asked {
            tokio::select! {
                () = ticker.rest(next.saturating_duration_since(Instant::now())) => {}
                notice = notices.next() => match notice {
                    Notice::Drain => return ended(),
                    Notice::Reload => reload_asked = true,
                },
                () = early.is_due(streams), if looks => break,
                () = flushed(&mut news, durable) => break,
                () = pulse.beat() => {}
            }
            if Instant::now() >= next {
                break;
            }
        }
        if reload_asked {
            ticker.reload(options);
            metrics.listen_on(&ticker.config.metrics_listen);
            early = ticker.early();
        }
    }
}

/// Returns when the server has flushed more than the standby has, or streams no longer; never where it does not stream.
async fn flushed(news: &mut Option<watch::Receiver<Lsn>>, durable: Option<Lsn>) {
    match news {
        // Either way there is something to do.
        Some(news) => {
            while news.changed().await.is_ok() && Some(*news.borrow_and_update()) <= durable {}
        }
        None => std::future::pending().await,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what the daemon ends with")]
fn ended() -> Result<()> {
    daemon::tell_stopping();
    tracing::info!("syncdaemon stopped");
    Ok(())
}

/// One pass after another, with what they have in common.
struct Ticker {
    config: MasterConfig,
    position_reader: PositionReader,
    shipper: Option<Shipper>,
    /// What was said last, so that it is said once.
    state: String,
    failures: u32,
    /// Whether the standby had all that the last pass found.
    has_all: bool,
    /// Whether the server had written more than it had flushed when the last pass asked it.
    awaits_flush: bool,
    monitored: Arc<MonitoredSyncdaemon>,
    /// Whom `xarchive` asks.
    agent: Option<Agent>,
    /// Up to where the agent knows of the segments that are closed.
    closed: Lsn,
    /// On which timeline.
    closed_on: Option<TimelineId>,
    /// What commits wait for, with `synchronous = 1`.
    synchronous: Synchronous,
}

/// How far a pass may go.
struct PassReach {
    reach: MasterReach,
    /// Whether the files were read because the database is down.
    is_down: bool,
}

impl Ticker {
    fn new(config: MasterConfig, monitored: Arc<MonitoredSyncdaemon>) -> Self {
        Ticker {
            agent: Agent::start(
                &config,
                &agent::socket_beside(&config.syncdaemon_pidfile()),
                Arc::clone(&monitored.agent),
            ),
            closed: Lsn(0),
            closed_on: None,
            synchronous: Synchronous::of(&config),
            config,
            position_reader: PositionReader::default(),
            shipper: None,
            state: String::new(),
            failures: 0,
            has_all: false,
            awaits_flush: false,
            monitored,
        }
    }

    fn early(&self) -> WalWatch {
        WalWatch::watch(
            &self.config.master_data.join(layout::PG_WAL),
            self.config.loop_delay,
        )
    }

    /// Up to where the standby has all; `None` while there is no connection.
    fn durable(&self) -> Option<Lsn> {
        self.shipper.as_ref().map(Shipper::durable)
    }

    /// One pass. Returns when the next one is due, or `None` when there is nothing to do any more.
    async fn tick(&mut self) -> Option<Instant> {
        let begun = Instant::now();
        let passed = self.pass().await;
        self.monitored.passed(passed.is_ok());
        match passed {
            Ok(true) => {
                self.failures = 0;
                let next = begun + self.config.loop_delay;
                let again = (self.synchronous.tries_again()).filter(|_| self.config.synchronous);
                Some(again.map_or(next, |again| again.min(next)))
            }
            Ok(false) => {
                let text = "the server is now a standby; its master ships the WAL";
                tracing::info!("{text}");
                None
            }
            Err(error) => {
                self.lose_shipper();
                self.failures = self.failures.saturating_add(1);
                self.say(format!("{error}"), |text| tracing::warn!("{text}"));
                Some(Instant::now() + backoff(self.failures))
            }
        }
    }

    async fn pass(&mut self) -> Result<bool> {
        self.awaits_flush = false;
        let (asked, end) = (Instant::now(), self.synchronous.end().await);
        let ahead = match (self.shipper.take(), end) {
            (Some(shipper), Some(end)) => {
                (self.monitored.rpo).writes(shipper.files(), Some(end), asked);
                let reach = MasterReach::written_behind(end, shipper.files());
                let is_down = false;
                Some((shipper, PassReach { reach, is_down }))
            }
            (shipper, _) => {
                self.shipper = shipper;
                Box::pin(self.look(asked)).await?
            }
        };
        let Some((mut shipper, PassReach { reach, is_down })) = ahead else {
            return Ok(false);
        };
        let had = shipper.durable();
        shipper.pass(reach).await?;
        if shipper.durable() != had {
            tracing::debug!("durable up to {}", shipper.durable());
        }
        if self.synchronous.is_open() {
            self.synchronous.passed(&self.config, &mut shipper).await;
        }
        // The files show no flush: what a pass went through to its end and found nothing in is all.
        self.has_all = match reach.flushed {
            Some(flushed) => flushed <= shipper.durable(),
            None => shipper.durable() == had,
        };
        self.tell_of_closed(&shipper, reach.flushed);
        self.say_how(&shipper, is_down);
        self.shipper = Some(shipper);
        Ok(true)
    }

    /// Asks how far the master's WAL reaches, and has a connection for it; nothing where the server replays.
    async fn look(&mut self, asked: Instant) -> Result<Option<(Shipper, PassReach)>> {
        let PositionFound::Master(position) = self.position_reader.look(&self.config).await? else {
            return Ok(None);
        };
        self.awaits_flush = position.awaits_flush;
        let timeline = position.files.timeline();
        let (reach, is_down) = (position.reach, position.unasked);
        (self.monitored.rpo).writes(&position.files, reach.flushed, asked);
        if (self.shipper.as_ref()).is_some_and(|shipper| shipper.files().timeline() != timeline) {
            tracing::info!("the master is on timeline {timeline}");
            self.shipper = None;
        }
        let has_link = self.config.synchronous && !is_down && self.synchronous.is_due();
        // What commits are told of was compared with the files of the server that streams.
        if has_link && let Some(shipper) = self.shipper.take() {
            shipper.close().await;
        }
        let shipper = match self.shipper.take() {
            Some(shipper) => shipper,
            None => {
                let (facts, files) = (position.facts, position.files);
                let shipper = Shipper::connect(&self.config, &facts, files, reach).await?;
                self.connected(&shipper);
                if has_link {
                    (self.synchronous)
                        .open(&self.config, facts, shipper.files())
                        .await;
                }
                shipper.telling(Arc::clone(&self.monitored.rpo))
            }
        };
        Ok(Some((shipper, PassReach { reach, is_down })))
    }

    /// Says how it stands, if that is new.
    fn say_how(&mut self, shipper: &Shipper, is_down: bool) {
        if let Some(note) = shipper.note().or(self.synchronous.trouble()) {
            let note = note.to_owned();
            return self.say(note, |text| tracing::warn!("{text}"));
        }
        let (slave, timeline) = (&self.config.slave, shipper.files().timeline());
        let how = match is_down && self.config.use_xlog_functions {
            true => ", from its files: the database is down".to_owned(),
            false if self.synchronous.is_open() => {
                format!("; commits can wait for {}", self.config.job_name)
            }
            false => String::new(),
        };
        let state = format!("timeline {timeline} is shipped to {slave}{how}");
        let (from, durable) = (shipper.from(), shipper.durable());
        self.say(state, |text| {
            tracing::info!("{text}; the receiver has its WAL from {from} to {durable}")
        });
    }

    /// The connection to the receiver is of no use any more.
    fn lose_shipper(&mut self) {
        self.shipper = None;
        self.synchronous.close();
    }

    /// The receiver answers.
    fn connected(&mut self, shipper: &Shipper) {
        let (files, from) = (shipper.files(), shipper.durable());
        let first = files.containing(from);
        let (start, timeline) = (files.start(first), files.timeline());
        // A pass that broke off has told of none, however many segments it shipped whole.
        self.closed = match self.closed_on == Some(timeline) {
            true => self.closed.min(start),
            false => start,
        };
        self.closed_on = Some(timeline);
        if let Some(agent) = &self.agent {
            agent.receiver_is_there(first);
        }
    }

    /// Has the agent finish the segments that the server has closed, before it is asked to.
    fn tell_of_closed(&mut self, shipper: &Shipper, flushed: Option<Lsn>) {
        let (files, shipped) = (shipper.files(), shipper.durable());
        // Before it writes to the next segment, the server has flushed all of this one.
        let written = flushed.unwrap_or(Lsn(shipped.0.saturating_sub(1)));
        let size = files.segment_bytes();
        while Lsn(self.closed.0 + size) <= written.min(shipped) {
            if let Some(agent) = &self.agent {
                agent.is_closed(files.containing(self.closed));
            }
            self.closed.0 += size;
        }
    }

    /// Waits, and notices at once when the receiver goes.
    async fn rest(&mut self, pause: Duration) {
        let Some(shipper) = &mut self.shipper else {
            return tokio::time::sleep(pause).await;
        };
        if let Err(error) = shipper.rest(pause).await {
            self.lose_shipper();
            self.monitored.passed(false);
            self.say(format!("{error}"), |text| tracing::warn!("{text}"));
        }
    }

    fn say(&mut self, state: String, log: impl FnOnce(&str)) {
        if state != self.state {
            log(&state);
            self.state = state;
        }
    }

    fn reload(&mut self, options: &Options) {
        daemon::tell_reloading();
        let loaded = config::load(&self.config.path, &options.overrides)
            .and_then(|fresh| fresh.into_master("syncdaemon"))
            .and_then(|fresh| unchanged(&self.config, &fresh).map(|()| fresh));
        match loaded {
            Ok(fresh) => {
                self.monitored.reloaded(&fresh);
                // The next one takes its socket.
                self.agent = None;
                *self = Ticker::new(fresh, Arc::clone(&self.monitored));
                tracing::info!("settings reloaded");
            }
            Err(error) => {
                tracing::error!("reload failed, the old settings remain in force: {error}");
            }
        }
        if let Err(error) = output::reopen_logfile() {
            tracing::warn!("{error}");
        }
        daemon::tell_ready();
    }
}

/// What a running daemon cannot change is refused rather than ignored.
fn unchanged(old: &MasterConfig, new: &MasterConfig) -> Result<()> {
    let changed = [
        (
            "pidfile",
            old.syncdaemon_pidfile() != new.syncdaemon_pidfile(),
        ),
        ("logfile", old.logfile != new.logfile),
    ];
    match changed.into_iter().find(|(_, changed)| *changed) {
        None => Ok(()),
        Some((key, _)) => Err(
            CommandError::config(format!("{key} cannot change by a reload"))
                .hint("restart the syncdaemon"),
        ),
    }
}
