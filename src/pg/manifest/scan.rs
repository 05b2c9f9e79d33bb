//! A manifest gone through as it is read: its own checksum, the entries of a few files, the lengths of all, and the
//! last WAL range.
//! Never holds more than a line of it. Invariant: no entry is handed out of a manifest whose own
//! checksum is wrong.

use aws_lc_rs::digest::{Context, SHA256};

use super::{
    CHECKSUM_KEY, FileEntry, LINE_BYTES_MAX, ManifestFault, ManifestObject, WalRange, hexadecimal,
};

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Scanned {
    /// The entries that were wanted, in the manifest's order.
    pub entries: Vec<FileEntry>,
    /// The last WAL range, which ends where the backup did.
    pub last_range: Option<WalRange>,
    /// The lengths of all files.
    pub files_bytes: u64,
}

/// A manifest that is being read from its beginning.
pub(crate) struct Scan<'a> {
    wanted: &'a [&'a str],
    digest: Context,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    lines: usize,
    found: Vec<FileEntry>,
    last_range: Option<WalRange>,
    files_bytes: u64,
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
            files_bytes: 0,
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

    /// What was found, behind the last byte of a manifest whose own checksum is right.
    pub(crate) fn finish(self) -> Result<Scanned, ManifestFault> {
        match self.is_sound {
            Some(true) if self.line.is_empty() => Ok(Scanned {
                entries: self.found,
                last_range: self.last_range,
                files_bytes: self.files_bytes,
            }),
            Some(false) => Err(ManifestFault::Checksum),
            Some(true) | None => Err(ManifestFault::End),
        }
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
        self.files_bytes = self.files_bytes.saturating_add(length_in(line));
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

/// The length of the file that a line lists, without reading the rest of it: a set may have a million files.
/// No name contains the key, since its quotation marks have backslashes in front of them there.
fn length_in(line: &[u8]) -> u64 {
    const KEY: &[u8] = b"\"Size\": ";
    let at = line.windows(KEY.len()).position(|piece| piece == KEY);
    let digits = at.map_or(&[][..], |at| &line[at + KEY.len()..]);
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number: u64, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use walmgr_protocol::names::{Lsn, SystemId, TimelineId};

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
        scan.finish().map(|scanned| scanned.entries)
    }

    #[test]
    fn the_lengths_of_all_files_are_added_up_whatever_their_names_are() {
        let mut writer = ManifestWriter::new(Vec::new(), 15, SystemId(7)).unwrap();
        for (name, size) in [("a", 3), ("\"Size\": 5, \"Size\": 9", 40), ("b", 1 << 40)] {
            let entry = FileEntry {
                path: name.parse().unwrap(),
                size,
                last_modified: 0,
                checksum: None,
            };
            writer.add(&entry).unwrap();
        }
        let range = WalRange {
            timeline: TimelineId::FIRST,
            start: Lsn(0x28),
            end: Lsn(0x100),
        };
        let manifest = writer.finish(&[range]).unwrap();
        let mut scan = Scan::new(&[]);
        scan.feed(&manifest).unwrap();
        let scanned = scan.finish().unwrap();
        assert_eq!(scanned.files_bytes, 43 + (1 << 40));
        assert_eq!(scanned.last_range, Some(range));
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
