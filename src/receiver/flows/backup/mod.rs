//! The backup flow on a channel: between its session and the worker that takes part in the backup.
//! Never blocks on the disk. Invariant: the slot of a connection counts as the backup's exactly as long as it
//! takes part.
//!
//! [`work`] is what the worker does, [`incremental`] says what need not come, [`received`] are the parts that are no files of the server, [`seal`] ends the backup if
//! it [`fits`], with its [`configs`], and [`after`] that rotates and purges.

pub(crate) mod after;
pub(crate) mod configs;
pub(crate) mod fits;
pub(crate) mod incremental;
pub(crate) mod received;
pub(crate) mod seal;
pub(crate) mod work;

use std::sync::Arc;

use walmgr_protocol::message::backup::Backup;
use walmgr_protocol::message::{Error, ErrorCode, Message, Scope};
use walmgr_protocol::session::backup::{BackupReceiver, BackupReceiverAction, acknowledge};

use self::work::{BackupJob, BackupWorker};
use crate::receiver::cluster::running::{Attachment, BackupPart, BackupReport};
use crate::receiver::link::{ConnectionEnd, Link};
use crate::receiver::reports::FlowReport;
use crate::receiver::worker::{FromWorker, aside};

/// A connection's part in a backup.
pub(crate) struct BackupFlow {
    channel: u16,
    session: BackupReceiver,
    /// The worker there is, or was: the backup itself speaks for it when it ends.
    id: u64,
    worker: Option<BackupWorker>,
    attachment: Option<Attachment>,
}

impl BackupFlow {
    /// Nothing is asked for yet.
    pub(crate) fn new(channel: u16) -> Self {
        BackupFlow {
            channel,
            session: BackupReceiver::default(),
            id: 0,
            worker: None,
            attachment: None,
        }
    }

    /// Whether the connection takes no part in a backup, or not any more.
    pub(crate) const fn is_idle(&self) -> bool {
        self.session.is_idle()
    }

    /// Whether the connection takes part in a backup that is not over.
    pub(crate) const fn is_busy(&self) -> bool {
        self.attachment.is_some() && !self.session.is_idle()
    }

    /// Whether a set is being sealed, which is worth waiting for.
    pub(crate) const fn is_finishing(&self) -> bool {
        self.session.is_finishing()
    }

    /// A message arrived on the channel.
    pub(crate) async fn received(
        &mut self,
        link: &mut Link,
        message: Message,
    ) -> Result<(), ConnectionEnd> {
        match self.session.received(message)? {
            Some(action) => self.perform(link, action).await,
            None => Ok(()),
        }
    }

    /// The worker spoke, or the backup itself.
    pub(crate) async fn reported(
        &mut self,
        link: &mut Link,
        said: FromWorker<BackupReport>,
    ) -> Result<(), ConnectionEnd> {
        if said.worker != self.id {
            return Ok(());
        }
        let action = match said.report {
            BackupReport::Admitted(attachment) => {
                let granted = attachment.running().granted();
                self.attachment = Some(attachment);
                link.slot.is_of_backup(true);
                self.session.admitted(granted)?
            }
            BackupReport::LookedUp(held) => self.session.looked_up(held)?,
            BackupReport::ParentChosen(answer) => self.session.parent_chosen(answer)?,
            BackupReport::Compared(needs) => self.session.compared(needs)?,
            BackupReport::FilesDone(files) => {
                let done = Message::Backup(Backup::FilesDone(files));
                Some(BackupReceiverAction::Send(done))
            }
            BackupReport::StreamTaken => {
                self.worker_is_done(link);
                self.session.stream_taken()?
            }
            BackupReport::Sealed(set, facts) => {
                self.worker_is_done(link);
                self.session.sealed(acknowledge(&set, facts))?
            }
            BackupReport::Failed(error) => return self.fail(link, error).await,
        };
        match action {
            Some(action) => self.perform(link, action).await,
            None => Ok(()),
        }
    }

    fn worker_is_done(&mut self, link: &Link) {
        self.worker = None;
        link.slot.is_of_backup(false);
    }

    async fn fail(&mut self, link: &mut Link, error: Error) -> Result<(), ConnectionEnd> {
        self.worker_is_done(link);
        self.attachment = None;
        if error.scope == Scope::Connection {
            return Err(ConnectionEnd::Hangup(error));
        }
        if self.session.is_idle() {
            // Its last words have been said.
            return Ok(());
        }
        match self.session.failed(error) {
            BackupReceiverAction::Send(message) => link.send(self.channel, &message).await,
            _ => Ok(()),
        }
    }

    async fn perform(
        &mut self,
        link: &mut Link,
        action: BackupReceiverAction,
    ) -> Result<(), ConnectionEnd> {
        let job = match action {
            BackupReceiverAction::Admit(request) => {
                let threads = &link.served.cluster.backup_threads;
                let place = match threads.take(&link.peer.key()) {
                    Ok(place) => place,
                    Err(none) => {
                        let own = "too many connections are part of backups".to_owned();
                        let text = none.text("connections of backups", own);
                        let error = Error::channel(ErrorCode::Busy, text, "try again later");
                        return self.fail(link, error).await;
                    }
                };
                let say = link.reports_of(self.channel, FlowReport::Backup);
                let worker = work::start(
                    link.served.clone(),
                    (place, link.peer.audited()),
                    request,
                    say,
                );
                self.id = worker.id();
                self.worker = Some(worker);
                return Ok(());
            }
            BackupReceiverAction::LookUp(paths) => BackupJob::LookUp(paths),
            BackupReceiverAction::ChooseParent(asked) => BackupJob::ChooseParent(asked),
            BackupReceiverAction::Compare(files) => BackupJob::Compare(files),
            BackupReceiverAction::Write(data) => BackupJob::Write(data),
            BackupReceiverAction::EndStream(_) => BackupJob::EndStream,
            BackupReceiverAction::BeginPart(part) => BackupJob::BeginPart(part),
            BackupReceiverAction::WritePart(data) => BackupJob::WritePart(data),
            BackupReceiverAction::Finish(finish) => BackupJob::Finish(finish),
            BackupReceiverAction::Abort(why) => {
                self.worker_is_done(link);
                self.give_up(link, why);
                return Ok(());
            }
            BackupReceiverAction::Send(message) => return link.send(self.channel, &message).await,
        };
        if let Some(worker) = &self.worker {
            worker.give(job).await;
        }
        link.heard();
        Ok(())
    }

    /// The client gave up the whole backup, or only this stream of it.
    fn give_up(&mut self, link: &Link, why: String) {
        let Some(attachment) = self.attachment.take() else {
            return;
        };
        if attachment.place() == BackupPart::Control {
            let text = format!("the client gave the backup up: {why}");
            let error = Error::connection(ErrorCode::Abandoned, text, "");
            let running = Arc::clone(attachment.running());
            // Removing files takes its time.
            aside(&link.served.store.workforce, "backup", move || {
                running.end(&error);
            });
        }
    }
}
