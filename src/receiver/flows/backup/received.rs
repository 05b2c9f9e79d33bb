//! The parts of a backup set that are not files of the server: its label, its manifest, configuration files.
//! Never keeps more of a part than was announced. Invariant: what passes [`Received::check`] is what was
//! announced, byte for byte.

use walmgr_protocol::limits::CONFIG_FILES_MAX;
use walmgr_protocol::message::backup::{Part, PartName};
use walmgr_protocol::message::{Error, ErrorCode};
use walmgr_protocol::names::RelativePath;

use crate::receiver::cluster::running::Running;

/// The parts of a set as they arrived, with what was announced of each.
#[derive(Default)]
pub(crate) struct Received(pub Vec<(Part, Vec<u8>)>);

impl Received {
    /// Begins a part, whose bytes follow. Each is bounded by what was announced, kinds do not repeat,
    /// and a manifest is no longer than that of the files that have arrived.
    pub(crate) fn begin(&mut self, part: Part, running: &Running) -> Result<(), Error> {
        if self.0.iter().any(|(known, _)| known.name == part.name) {
            let text = format!("{:?} comes twice", part.name);
            return Err(Error::channel(ErrorCode::Misbehaved, text, ""));
        }
        let too_large = |text: String| Err(Error::channel(ErrorCode::TooLarge, text, ""));
        if part.name == PartName::Manifest {
            let most = running.manifest_bytes_max()?;
            if part.size > most {
                return too_large(format!(
                    "the backup_manifest has {} bytes, where that of the files that arrived has {most} \
                     at most",
                    part.size
                ));
            }
        }
        let is_config = |name: &PartName| matches!(name, PartName::Config(_));
        let configs = self.0.iter().filter(|(part, _)| is_config(&part.name));
        if is_config(&part.name) && configs.count() >= CONFIG_FILES_MAX {
            return too_large(format!("more than {CONFIG_FILES_MAX} configuration files"));
        }
        // Exactly what was announced: a buffer that grows by doubling takes twice as much.
        let announced = usize::try_from(part.size).unwrap_or(0);
        self.0.push((part, Vec::with_capacity(announced)));
        Ok(())
    }

    /// Takes the next bytes of the part that was begun last; `false` when there is none.
    pub(crate) fn append(&mut self, raw: &[u8]) -> bool {
        match self.0.last_mut() {
            Some((_, content)) => {
                content.extend_from_slice(raw);
                true
            }
            None => false,
        }
    }

    /// Refuses parts that are not what was announced.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let is_whole = |(part, content): &(Part, Vec<u8>)| {
            content.len() as u64 == part.size && crc32fast::hash(content) == part.crc32
        };
        if let Some((part, _)) = self.0.iter().find(|received| !is_whole(received)) {
            let text = format!("{:?} is not what was announced", part.name);
            return Err(Error::channel(ErrorCode::Mismatch, text, ""));
        }
        Ok(())
    }

    /// The part of this name, if it came.
    pub(crate) fn find(&self, name: &PartName) -> Option<&[u8]> {
        let found = self.0.iter().find(|(part, _)| part.name == *name);
        found.map(|(_, content)| content.as_slice())
    }

    /// The part of this name, without which there is no backup.
    pub(crate) fn need(&self, name: &PartName) -> Result<&[u8], Error> {
        self.find(name).ok_or_else(|| {
            let text = format!("the backup came without its {name:?}");
            Error::channel(ErrorCode::Mismatch, text, "")
        })
    }

    /// Every configuration file.
    pub(crate) fn configs(&self) -> impl Iterator<Item = (&RelativePath, &[u8])> {
        self.0
            .iter()
            .filter_map(|(part, content)| match &part.name {
                PartName::Config(path) => Some((path, content.as_slice())),
                _ => None,
            })
    }
}
