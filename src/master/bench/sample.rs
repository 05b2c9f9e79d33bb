//! What is sent: WAL of this master, or a file that somebody names.
//! Never more of it in memory than a few segments. Invariant: it is never empty, and packs as what it came from.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use walmgr_protocol::message::ClusterIdentity;
use walmgr_protocol::names::WalFileName;

use crate::config::MasterConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::pg::layout;

/// The most that is read: two segments of the usual size, more than any cache of a processor holds.
const BYTES_MAX: u64 = 32 << 20;

/// Bytes to send, again and again.
pub(super) struct RepeatedBytes {
    /// What it is, for people.
    pub name: String,
    pub bytes: Vec<u8>,
}

impl RepeatedBytes {
    /// Appends `len` bytes from a place in the endless repetition of the sample.
    pub(super) fn append(&self, mut offset: u64, mut len: usize, out: &mut Vec<u8>) {
        while len > 0 {
            let at = usize::try_from(offset % self.bytes.len() as u64).unwrap_or_default();
            let piece = &self.bytes[at..];
            let piece = &piece[..piece.len().min(len)];
            out.extend_from_slice(piece);
            offset += piece.len() as u64;
            len -= piece.len();
        }
    }
}

/// Reads the file that was named, or the newest WAL.
pub(super) fn read(
    config: &MasterConfig,
    file: Option<&Path>,
    cluster: ClusterIdentity,
) -> Result<RepeatedBytes> {
    if let Some(path) = file {
        let mut bytes = Vec::new();
        read_into(path, &mut bytes)?;
        if bytes.is_empty() {
            let text = format!("{} is empty: there is nothing to send", path.display());
            return Err(
                CommandError::usage(text).hint("name a file with content, or leave --file out")
            );
        }
        let name = path.display().to_string();
        return Ok(RepeatedBytes { name, bytes });
    }
    let folder = config.master_data.join(layout::PG_WAL);
    let mut segments: Vec<WalFileName> = Vec::new();
    for entry in std::fs::read_dir(&folder).at(Kind::Retry, "read", &folder)? {
        let entry = entry.at(Kind::Retry, "read", &folder)?;
        let is_whole = || {
            let found = entry.metadata();
            found.is_ok_and(|found| found.len() == cluster.segment_size.bytes())
        };
        let name = entry.file_name().to_str().map(str::parse);
        if let Some(Ok(name @ WalFileName::Segment(_))) = name
            && is_whole()
        {
            segments.push(name);
        }
    }
    segments.sort_unstable();
    let mut bytes = Vec::new();
    // Those in front were written; the last ones are recycled and will be.
    for segment in &segments {
        if bytes.len() as u64 >= BYTES_MAX {
            break;
        }
        let path = folder.join(segment.to_string());
        match read_into(&path, &mut bytes) {
            // PostgreSQL has recycled it meanwhile.
            Err(_) if !path.exists() => {}
            read => read?,
        }
    }
    if bytes.is_empty() {
        let text = format!("{} holds no WAL that could be sent", folder.display());
        return Err(CommandError::retry(text).hint("name a file: --file FILE"));
    }
    let name = format!("WAL of {}", config.master_data.display());
    Ok(RepeatedBytes { name, bytes })
}

fn read_into(path: &Path, bytes: &mut Vec<u8>) -> Result<()> {
    let file = File::open(path).at(Kind::Retry, "open", path)?;
    let room = BYTES_MAX.saturating_sub(bytes.len() as u64);
    let read = file.take(room).read_to_end(bytes);
    read.map(drop).at(Kind::Retry, "read", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_goes_round_and_round() {
        let sample = RepeatedBytes {
            name: String::new(),
            bytes: b"abc".to_vec(),
        };
        let mut out = Vec::new();
        sample.append(2, 5, &mut out);
        assert_eq!(out, b"cabca");
    }
}
