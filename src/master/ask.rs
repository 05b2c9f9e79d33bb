//! Requests about the archive that are answered at once: setup, status, list.
//! Never uploads. Each call is one connection, introduced, asked, and closed.

use walmgr_protocol::message::{List, ListRequest, Message, Overview, SetupDone};
use walmgr_protocol::names::{SegmentName, WalFileName, WalSegmentSize};

use crate::config::MasterConfig;
use crate::error::{CommandError, Result};
use crate::master::cluster::ClusterFacts;
use crate::transport::connect::{Connection, ReceiverTarget, answered_with, refused};

/// A connection for questions.
pub struct Asking<'a> {
    config: &'a MasterConfig,
    connection: Connection,
}

impl<'a> Asking<'a> {
    /// Connects to the receiver that the settings name.
    pub async fn connect(config: &'a MasterConfig, facts: &ClusterFacts) -> Result<Self> {
        let connection = ReceiverTarget::from_config(config)?
            .connect(facts.cluster, facts.timeline)
            .await?;
        Ok(Asking { config, connection })
    }

    /// Connects for one who only asks, and may have lost the cluster's files.
    pub async fn connect_to_read(
        config: &'a MasterConfig,
        facts: Option<&ClusterFacts>,
    ) -> Result<Self> {
        let connection = ReceiverTarget::from_config(config)?
            .connect_to_read(facts.map(|facts| facts.cluster))
            .await?;
        Ok(Asking { config, connection })
    }

    /// Binds the archive to the cluster of the introduction.
    pub async fn set_up(&mut self) -> Result<SetupDone> {
        match self.ask(&Message::Setup).await? {
            Message::SetupDone(done) => Ok(done),
            other => Err(answered_with(&self.config.slave, other.kind())),
        }
    }

    /// What the standby holds and how it fares.
    pub async fn overview(&mut self) -> Result<Overview> {
        match self.ask(&Message::OverviewRequest).await? {
            Message::Overview(overview) => Ok(*overview),
            other => Err(answered_with(&self.config.slave, other.kind())),
        }
    }

    /// Whether a finished segment is in the archive.
    pub async fn holds(&mut self, segment: SegmentName, size: WalSegmentSize) -> Result<bool> {
        let wanted = WalFileName::Segment(segment);
        let before = segment
            .number(size)
            .and_then(|number| number.checked_sub(1));
        let after = before.map(|number| {
            WalFileName::Segment(SegmentName::from_number(segment.timeline(), number, size))
        });
        let list = self.list(ListRequest { after, limit: 1 }).await?;
        Ok(list
            .entries
            .first()
            .is_some_and(|(name, _)| *name == wanted))
    }

    /// Ends the connection in good order.
    pub async fn close(self) {
        self.connection.wire.goodbye().await;
    }

    async fn list(&mut self, request: ListRequest) -> Result<List> {
        match self.ask(&Message::ListRequest(request)).await? {
            Message::List(list) => Ok(list),
            other => Err(answered_with(&self.config.slave, other.kind())),
        }
    }

    /// The answer within `push_timeout`: a receiver that is stuck must not hold a person up for good.
    async fn ask(&mut self, question: &Message) -> Result<Message> {
        let (slave, deadline) = (&self.config.slave, self.config.push_timeout);
        let late = || {
            let question = question.name();
            CommandError::retry(format!(
                "{slave} did not answer {question} within push_timeout = {deadline:?}"
            ))
            .hint("look at the receiver's log on the standby")
        };
        match tokio::time::timeout(deadline, self.exchange(question)).await {
            Ok(answered) => answered,
            Err(_) => Err(late()),
        }
    }

    async fn exchange(&mut self, question: &Message) -> Result<Message> {
        let wire = &mut self.connection.wire;
        wire.send(0, question).await?;
        match wire.next().await?.message {
            Message::Error(error) => Err(refused(&self.config.slave, "refused", error)),
            answer => Ok(answer),
        }
    }
}
