//! The part of a connection that belongs to a backup: between its session and its worker.
//! Never blocks on the disk. Invariant: reports are dealt with before a worker gets more to do, so
//! that what it says never piles up.

use std::sync::Arc;

use tokio::sync::mpsc;
use walmgr_protocol::message::backup::Backup;
use walmgr_protocol::message::{Error, ErrorCode, Message, Scope};
use walmgr_protocol::session::backup::{Receiver, ReceiverAction, acknowledge};

use super::{Connection, End};
use crate::receiver::cluster::running::{Attachment, BackupPart, BackupReport, Reports};
use crate::receiver::flows::backup::work::{self, BackupJob, BackupWorker};
use crate::receiver::worker::aside;
use crate::transport::authorized_keys::Right;

/// A connection's part in a backup, if it has one.
pub(super) struct Link {
    session: Receiver,
    channel: u16,
    worker: Option<BackupWorker>,
    attachment: Option<Attachment>,
    reports: Reports,
    /// What the worker, or the backup itself, says.
    pub(super) inbox: mpsc::UnboundedReceiver<BackupReport>,
}

impl Default for Link {
    fn default() -> Self {
        let (reports, inbox) = mpsc::unbounded_channel();
        Link {
            session: Receiver::default(),
            channel: 0,
            worker: None,
            attachment: None,
            reports,
            inbox,
        }
    }
}

impl Link {
    /// Whether what arrives on this channel is the backup's.
    pub(super) const fn owns(&self, channel: u16) -> bool {
        self.channel != 0 && self.channel == channel
    }

    /// Whether the connection takes part in a backup that is not over.
    pub(super) const fn is_busy(&self) -> bool {
        self.attachment.is_some() && !self.session.is_idle()
    }

    /// Whether a set is being sealed, which is worth waiting for.
    pub(super) const fn is_finishing(&self) -> bool {
        self.session.is_finishing()
    }
}

impl Connection {
    pub(super) async fn backup_message(
        &mut self,
        channel: u16,
        message: Message,
    ) -> Result<(), End> {
        self.index(channel)?;
        let asks = matches!(
            message,
            Message::Backup(Backup::Begin(_) | Backup::Resume(_) | Backup::Join(_))
        );
        if asks && self.link.session.is_idle() {
            if let Some(refusal) = self.cannot_take("a backup", Right::Backup) {
                self.log_refusal(&refusal);
                return Ok(self.wire.send(channel, &Message::Error(refusal)).await?);
            }
            // A part that is over has nothing more to say.
            self.link = Link {
                channel,
                ..Link::default()
            };
        }
        let action = self.link.session.received(message)?;
        match action {
            Some(action) => self.perform_backup(action).await,
            None => Ok(()),
        }
    }

    pub(super) async fn backup_reported(&mut self, report: BackupReport) -> Result<(), End> {
        let session = &mut self.link.session;
        let action = match report {
            BackupReport::Admitted(attachment) => {
                let granted = attachment.running().granted();
                self.link.attachment = Some(attachment);
                self.slot.is_of_backup(true);
                session.admitted(granted)?
            }
            BackupReport::LookedUp(held) => session.looked_up(held)?,
            BackupReport::FilesDone(files) => {
                let done = Message::Backup(Backup::FilesDone(files));
                Some(ReceiverAction::Send(done))
            }
            BackupReport::StreamTaken => {
                self.link.worker = None;
                self.slot.is_of_backup(false);
                session.stream_taken()?
            }
            BackupReport::Sealed(set, facts) => {
                self.link.worker = None;
                self.slot.is_of_backup(false);
                session.sealed(acknowledge(&set, facts))?
            }
            BackupReport::Failed(error) => return self.backup_failed(error).await,
        };
        match action {
            Some(action) => self.perform_backup(action).await,
            None => Ok(()),
        }
    }

    async fn backup_failed(&mut self, error: Error) -> Result<(), End> {
        self.link.worker = None;
        self.link.attachment = None;
        self.slot.is_of_backup(false);
        if error.scope == Scope::Connection {
            return Err(End::Hangup(error));
        }
        if self.link.session.is_idle() {
            // Its last words have been said.
            return Ok(());
        }
        let action = self.link.session.failed(error);
        match action {
            ReceiverAction::Send(message) => {
                Ok(self.wire.send(self.link.channel, &message).await?)
            }
            _ => Ok(()),
        }
    }

    async fn perform_backup(&mut self, action: ReceiverAction) -> Result<(), End> {
        match action {
            ReceiverAction::Admit(request) => {
                let cluster = Arc::clone(&self.cluster);
                let Some(place) = cluster.backups.threads.take(&self.peer.key()) else {
                    let text = "too many connections are part of backups";
                    let error = Error::channel(ErrorCode::Busy, text, "try again later");
                    return self.backup_failed(error).await;
                };
                let reports = self.link.reports.clone();
                self.link.worker = Some(work::start(cluster, place, request, reports));
                Ok(())
            }
            ReceiverAction::LookUp(paths) => self.give_backup(BackupJob::LookUp(paths)).await,
            ReceiverAction::Write(data) => self.give_backup(BackupJob::Write(data)).await,
            ReceiverAction::EndStream(_) => self.give_backup(BackupJob::EndStream).await,
            ReceiverAction::BeginPart(part) => self.give_backup(BackupJob::BeginPart(part)).await,
            ReceiverAction::WritePart(data) => self.give_backup(BackupJob::WritePart(data)).await,
            ReceiverAction::Finish(finish) => self.give_backup(BackupJob::Finish(finish)).await,
            ReceiverAction::Abort(why) => {
                self.link.worker = None;
                self.slot.is_of_backup(false);
                self.give_up_backup(why);
                Ok(())
            }
            ReceiverAction::Send(message) => {
                let channel = self.link.channel;
                Ok(self.wire.send(channel, &message).await?)
            }
        }
    }

    /// The client gave up the whole backup, or only this stream of it.
    fn give_up_backup(&mut self, why: String) {
        let Some(attachment) = self.link.attachment.take() else {
            return;
        };
        if attachment.place() == BackupPart::Control {
            let text = format!("its client gave it up: {why}");
            let error = Error::connection(ErrorCode::Abandoned, text, "");
            let running = Arc::clone(attachment.running());
            // Removing files takes its time.
            aside("backup", move || {
                running.end(&error);
            });
        }
    }

    async fn give_backup(&mut self, job: BackupJob) -> Result<(), End> {
        while let Ok(report) = self.link.inbox.try_recv() {
            // It may end with more to do, but never gives another job.
            Box::pin(self.backup_reported(report)).await?;
        }
        if let Some(worker) = &self.link.worker {
            worker.give(job).await;
        }
        // While the disk was slow the peer may well have spoken; it just was not read.
        self.heard();
        Ok(())
    }
}
