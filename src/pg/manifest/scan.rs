//! A manifest gone through as it is read: its own checksum, and the entries of a few files, and the last WAL range.
//! Never holds more than a line of it. Invariant: no entry is handed out of a manifest whose own
//! checksum is wrong.

use aws_lc_rs::digest::{Context, SHA256};

use super::{
    CHECKSUM_KEY, FileEntry, LINE_BYTES_MAX, ManifestFault, ManifestObject, WalRange, hexadecimal,
};

/// A manifest that is being read from its beginning.
pub(crate) struct Scan<'a> {
    wanted: &'a [&'a str],
    digest: Context,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    lines: usize,
    found: Vec<FileEntry>,
    last_range: Option<WalRange>,
    /// Whether the checksum is right, once it has come.
    is_sound: Option<bool>,
}

impl<'a> Scan<'a> {
    /// Looks for the entries of these paths.
    pub(crate) fn new(wanted: &'a [&'a str]) -> Self {
        Scan {
            wanted,
            digest: Context::new(&SHA256),
            line: Vec::new(),
            lines: 0,
            found: Vec::new(),
            last_range: None,
            is_sound: None,
        }
    }

    /// Takes the next bytes.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ManifestFault> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            match self.line.is_empty() {
                true => self.take(line)?,
                false => {
                    let mut whole = std::mem::take(&mut self.line);
                    whole.extend_from_slice(line);
                    self.take(&whole)?;
                }
            }
        }
        self.line.extend_from_slice(bytes);
        match self.line.len() > LINE_BYTES_MAX {
            true => Err(self.fault(format!("expected at most {LINE_BYTES_MAX} bytes"))),
            false => Ok(()),
        }
    }

    /// The entries that were wanted, in the manifest's order, behind its last byte.
    pub(crate) fn finish(self) -> Result<Vec<FileEntry>, ManifestFault> {
        match self.is_sound {
            Some(true) if self.line.is_empty() => Ok(self.found),
            Some(false) => Err(ManifestFault::Checksum),
            Some(true) | None => Err(ManifestFault::End),
        }
    }

    /// The last WAL range, behind the last byte of a manifest whose own checksum is right.
    pub(crate) fn finish_with_range(self) -> Result<Option<WalRange>, ManifestFault> {
        let range = self.last_range;
        self.finish().map(|_| range)
    }

    fn take(&mut self, line: &[u8]) -> Result<(), ManifestFault> {
        if self.is_sound.is_some() {
            return Err(ManifestFault::End);
        }
        self.lines += 1;
        if let Some(rest) = line.strip_prefix(CHECKSUM_KEY) {
            let expected = rest.strip_suffix(b"\"}\n").ok_or(ManifestFault::End)?;
            let found = hexadecimal(self.digest.clone().finish().as_ref());
            self.is_sound = Some(found.as_bytes() == expected || cfg!(fuzzing));
            return Ok(());
        }
        self.digest.update(line);
        if let Some(rest) = line.strip_prefix(b"{ \"Path\": \"")
            && let Some(end) = rest.iter().position(|byte| *byte == b'"')
            && (self.wanted.iter()).any(|wanted| wanted.as_bytes() == &rest[..end])
        {
            let entry = ManifestObject::of(line, "files", self.lines)?;
            self.found.push(entry.file()?);
        } else if line.starts_with(b"{ \"Timeline\": ") {
            let range = ManifestObject::of(line, "WAL ranges", self.lines)?;
            self.last_range = Some(range.wal_range()?);
        }
        Ok(())
    }

    fn fault(&self, why: String) -> ManifestFault {
        ManifestFault::Line {
            part: "lines",
            number: self.lines + 1,
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use walmgr_protocol::names::SystemId;

    use super::super::{Checksum, ManifestWriter};
    use super::*;

    fn manifest() -> Vec<u8> {
        let mut writer = ManifestWriter::new(Vec::new(), 17, SystemId(7)).unwrap();
        for (name, size) in [("PG_VERSION", 3), ("base/1/1", 8192), ("backup_label", 200)] {
            let entry = FileEntry {
                path: name.parse().unwrap(),
                size,
                last_modified: 0,
                checksum: Some(Checksum::Crc32c(5)),
            };
            writer.add(&entry).unwrap();
        }
        writer.finish(&[]).unwrap()
    }

    fn scan(bytes: &[u8], piece: usize) -> Result<Vec<FileEntry>, ManifestFault> {
        let wanted = ["backup_label", "PG_VERSION", "tablespace_map"];
        let mut scan = Scan::new(&wanted);
        for piece in bytes.chunks(piece) {
            scan.feed(piece)?;
        }
        scan.finish()
    }

    #[test]
    fn wanted_entries_are_found_whatever_the_pieces_are() {
        let manifest = manifest();
        for piece in [1, 7, 100, 10_000] {
            let found = scan(&manifest, piece).unwrap();
            let names: Vec<String> = found.iter().map(|file| file.path.to_string()).collect();
            assert_eq!(names, ["PG_VERSION", "backup_label"]);
            assert_eq!((found[1].size, found[1].crc32c()), (200, Some(5)));
        }
    }

    #[test]
    fn fault_107_no_flipped_bit_of_a_manifest_goes_unseen() {
        let manifest = manifest();
        for at in 0..manifest.len() * 8 {
            let mut flipped = manifest.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(scan(&flipped, 64).is_err(), "bit {at}");
        }
        assert!(scan(&manifest[..manifest.len() - 1], 64).is_err());
        assert!(scan(&[&manifest[..], b"x"].concat(), 64).is_err());
        assert!(scan(b"", 64).is_err());
    }
}
