//! Whether what was fetched is what was asked for.
//! Never looks at the files one by one: they are compared with the manifest as they come. Invariant: a set of another cluster
//! than this master's is refused.

use super::place::RestorePlace;
use super::stream::RemoteSet;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::backup_label::BackupLabel;
use crate::pg::{control, layout};

impl RemoteSet<'_> {
    /// Whether what came is the set that was described, of the cluster that this master is of.
    pub(super) fn check(&self, place: &RestorePlace) -> Result<()> {
        let data = &place.prepared;
        let wrong = |why: String| Err(CommandError::retry(format!("what was fetched {why}")));
        let path = data.join(layout::BACKUP_LABEL);
        let label = files::read(&path).at(Kind::Retry, "read", &path)?;
        match BackupLabel::parse(&label) {
            Ok(label) if label.start == self.described.label.start => {}
            Ok(label) => return wrong(format!("is another set: it begins at {}", label.start)),
            Err(fault) => return wrong(format!("has no good backup_label: {fault}")),
        }
        let path = data.join(place.control_name());
        let found = control::read_file(&path)?;
        if let Some(facts) = self.facts
            && found.system_id != facts.cluster.system_id
        {
            let (own, found) = (facts.cluster.system_id, found.system_id);
            return Err(CommandError::new(
                Kind::ForeignCluster,
                format!("the set is of the cluster {found}, this master's is {own}"),
            ));
        }
        Ok(())
    }
}
