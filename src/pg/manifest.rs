//! `backup_manifest`, which `pg_verifybackup` and `pg_combinebackup` read: every file of a backup
//! with its length and checksum. Never opens a file. Invariant: no entry is handed out of a
//! manifest whose own checksum is wrong.
//!
//! The format is the documentation's chapter "Backup Manifest Format"; how it is laid out in lines,
//! an entry each, is `src/backend/backup/backup_manifest.c` (`replication/` up to 14). Only that
//! layout is read, because all servers write it and a line has a bound.

mod digest;
mod scan;

use std::io::{self, Write};

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;
use jiff::civil::DateTime;
use serde_json::{Map, Value};

use walmgr_protocol::limits::{PATH_BYTES_MAX, SET_ENTRIES_MAX};
use walmgr_protocol::names::{Lsn, RelativePath, SystemId, TimelineId};

pub(crate) use digest::{ListedDigest, sha_of};
pub(crate) use scan::{Scan, Scanned};

/// Longest line of an entry: the longest path with every byte as `\u0000`, and the other fields.
const LINE_BYTES_MAX: usize = 6 * PATH_BYTES_MAX + 1024;

/// Most lines of WAL ranges; there is one for each timeline that passes while a backup runs.
const WAL_RANGES_MAX: usize = 1024;

const TIME_FORMAT: &str = "%Y-%m-%d %H:%M:%S GMT";
const BETWEEN: &[u8] = b"],\n\"WAL-Ranges\": [\n";
const CHECKSUM_KEY: &[u8] = b"\"Manifest-Checksum\": \"";

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its path as PostgreSQL sees it: files of tablespaces are below `pg_tblspc/OID`.
    pub path: RelativePath,
    /// Its length in bytes.
    pub size: u64,
    /// When it was changed last, in seconds since 1970.
    pub last_modified: i64,
    /// `None` when the manifest was made without checksums.
    pub checksum: Option<Checksum>,
}

impl FileEntry {
    /// Its CRC-32C, if that is the checksum it has.
    pub const fn crc32c(&self) -> Option<u32> {
        match self.checksum {
            Some(Checksum::Crc32c(crc32c)) => Some(crc32c),
            _ => None,
        }
    }
}

/// The checksum of a file (`src/include/common/checksum_helper.h`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// What walmgr writes, and `pg_basebackup` unless told otherwise.
    Crc32c(u32),
    /// SHA-2 of the length that the digest has: 28, 32, 48 or 64 bytes.
    Sha(Box<[u8]>),
}

/// WAL that a recovery of the backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// On this timeline,
    pub timeline: TimelineId,
    /// from here
    pub start: Lsn,
    /// up to here.
    pub end: Lsn,
}

impl WalRange {
    /// The timeline and the place where it ends.
    pub fn ends_at(&self) -> (TimelineId, Lsn) {
        (self.timeline, self.end)
    }
}

/// Writes a manifest, an entry after the other.
pub struct ManifestWriter<W> {
    out: W,
    digest: Context,
    has_files: bool,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins the manifest of a cluster of this major version: version 1 up to 16, then 2, which
    /// names the cluster.
    pub fn new(out: W, major: u8, system_id: SystemId) -> io::Result<Self> {
        let mut writer = ManifestWriter {
            out,
            digest: Context::new(&SHA256),
            has_files: false,
        };
        let version = if major >= 17 { 2 } else { 1 };
        let head = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n");
        writer.put(head.as_bytes())?;
        if version == 2 {
            writer.put(format!("\"System-Identifier\": {},\n", system_id.0).as_bytes())?;
        }
        writer.put(b"\"Files\": [")?;
        Ok(writer)
    }

    /// Adds a file; the order does not matter.
    pub fn add(&mut self, file: &FileEntry) -> io::Result<()> {
        let mut line = String::from(if self.has_files { ",\n{ " } else { "\n{ " });
        self.has_files = true;
        match std::str::from_utf8(file.path.as_bytes()) {
            Ok(path) => line.push_str(&format!("\"Path\": {}", Value::from(path))),
            Err(_) => {
                let path = hexadecimal(file.path.as_bytes());
                line.push_str(&format!("\"Encoded-Path\": \"{path}\""));
            }
        }
        let (size, modified) = (file.size, time_text(file.last_modified));
        line.push_str(&format!(
            ", \"Size\": {size}, \"Last-Modified\": \"{modified}\""
        ));
        if let Some(checksum) = &file.checksum {
            let (algorithm, digest) = match checksum {
                // pg_verifybackup compares the bytes of the number as they lie in memory.
                Checksum::Crc32c(crc32c) => ("CRC32C".into(), hexadecimal(&crc32c.to_ne_bytes())),
                Checksum::Sha(digest) => (format!("SHA{}", digest.len() * 8), hexadecimal(digest)),
            };
            line.push_str(&format!(
                ", \"Checksum-Algorithm\": \"{algorithm}\", \"Checksum\": \"{digest}\""
            ));
        }
        line.push_str(" }");
        self.put(line.as_bytes())
    }

    /// Ends the manifest with its own checksum and hands the output back.
    pub fn finish(mut self, ranges: &[WalRange]) -> io::Result<W> {
        self.put(b"\n")?;
        self.put(BETWEEN)?;
        for (index, range) in ranges.iter().enumerate() {
            let before = if index > 0 { ",\n" } else { "" };
            let (timeline, start, end) = (range.timeline.number(), range.start, range.end);
            let line = format!(
                "{before}{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \
                 \"End-LSN\": \"{end}\" }}"
            );
            self.put(line.as_bytes())?;
        }
        self.put(b"\n],\n")?;
        let digest = hexadecimal(self.digest.finish().as_ref());
        self.out.write_all(CHECKSUM_KEY)?;
        self.out.write_all(format!("{digest}\"}}\n").as_bytes())?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.out.write_all(bytes)
    }
}

/// Why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestFault {
    /// Cut, or no manifest at all.
    #[error("it does not end with its checksum")]
    End,
    /// Changed since it was written.
    #[error("its checksum is not that of its lines")]
    Checksum,
    /// Of a version that no supported server writes.
    #[error("its first lines are not those of a manifest of version 1 or 2")]
    Head,
    /// Its parts are not where they belong.
    #[error("its files are not followed by its WAL ranges")]
    Parts,
    /// Something in a line.
    #[error("entry {number} of its {part}: {why}")]
    Line {
        /// `files` or `WAL ranges`.
        part: &'static str,
        /// Counted from 1.
        number: usize,
        /// What is wrong.
        why: String,
    },
}

/// Reads a manifest: an iterator over its files, none of which is in memory twice.
#[derive(Debug)]
pub struct Reader<'a> {
    system_id: Option<SystemId>,
    wal_ranges: Vec<WalRange>,
    files: ManifestLines<'a>,
}

impl<'a> Reader<'a> {
    /// Checks the checksum of the whole, and reads everything but the files.
    pub fn new(bytes: &'a [u8]) -> Result<Self, ManifestFault> {
        let checked = checked(bytes)?;
        let (system_id, rest) = head(checked).ok_or(ManifestFault::Head)?;
        let at = rest.windows(BETWEEN.len()).rposition(|it| it == BETWEEN);
        let (files, ranges) = rest.split_at(at.ok_or(ManifestFault::Parts)?);
        let ranges = ranges[BETWEEN.len()..].strip_suffix(b"],\n");
        let lines = ManifestLines {
            part: "WAL ranges",
            rest: ranges.ok_or(ManifestFault::Parts)?,
            number: 0,
            number_max: WAL_RANGES_MAX,
        };
        Ok(Reader {
            system_id,
            wal_ranges: lines
                .map(|line| line?.wal_range())
                .collect::<Result<_, _>>()?,
            files: ManifestLines {
                part: "files",
                rest: files,
                number: 0,
                number_max: SET_ENTRIES_MAX,
            },
        })
    }

    /// Which cluster the backup is of; only version 2 says it.
    pub const fn system_id(&self) -> Option<SystemId> {
        self.system_id
    }

    /// The WAL that a recovery of the backup needs.
    pub fn wal_ranges(&self) -> &[WalRange] {
        &self.wal_ranges
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<FileEntry, ManifestFault>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.files.next()?.and_then(|line| line.file()))
    }
}

/// The file that a line of a manifest lists; `None` for a line of another kind. Only for a manifest whose
/// checksum was found right.
pub(crate) fn entry_in(line: &[u8]) -> Option<Result<FileEntry, ManifestFault>> {
    let is_file = [&b"{ \"Path\": "[..], b"{ \"Encoded-Path\": "];
    if !is_file.iter().any(|head| line.starts_with(head)) {
        return None;
    }
    Some(ManifestObject::of(line, "files", 0).and_then(ManifestObject::file))
}

/// What the checksum covers, if it is right.
fn checked(bytes: &[u8]) -> Result<&[u8], ManifestFault> {
    let body = bytes.strip_suffix(b"\"}\n").ok_or(ManifestFault::End)?;
    let line = body.iter().rposition(|byte| *byte == b'\n');
    let (checked, line) = body.split_at(line.ok_or(ManifestFault::End)? + 1);
    let expected = line.strip_prefix(CHECKSUM_KEY).and_then(from_hexadecimal);
    let expected = expected.ok_or(ManifestFault::End)?;
    let mut digest = Context::new(&SHA256);
    digest.update(checked);
    match digest.finish().as_ref() == expected || cfg!(fuzzing) {
        true => Ok(checked),
        false => Err(ManifestFault::Checksum),
    }
}

fn head(bytes: &[u8]) -> Option<(Option<SystemId>, &[u8])> {
    let rest = bytes.strip_prefix(b"{ \"PostgreSQL-Backup-Manifest-Version\": ")?;
    let (system_id, rest) = match rest.strip_prefix(b"1,\n") {
        Some(rest) => (None, rest),
        None => {
            let rest = rest.strip_prefix(b"2,\n\"System-Identifier\": ")?;
            let end = rest.iter().take(21).position(|byte| *byte == b',')?;
            let number = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
            (Some(SystemId(number)), rest[end..].strip_prefix(b",\n")?)
        }
    };
    Some((system_id, rest.strip_prefix(b"\"Files\": [\n")?))
}

/// The lines of a list: a comma behind each but the last.
#[derive(Debug)]
struct ManifestLines<'a> {
    part: &'static str,
    rest: &'a [u8],
    number: usize,
    number_max: usize,
}

impl Iterator for ManifestLines<'_> {
    type Item = Result<ManifestObject, ManifestFault>;

    fn next(&mut self) -> Option<Self::Item> {
        // A list without lines keeps the end of its last one.
        if self.rest.is_empty() || self.number == 0 && self.rest == b"\n" {
            return None;
        }
        self.number += 1;
        let line = self.take();
        if line.is_err() {
            self.rest = &[];
        }
        Some(line)
    }
}

impl ManifestLines<'_> {
    fn take(&mut self) -> Result<ManifestObject, ManifestFault> {
        let refuse = |why: String| ManifestFault::Line {
            part: self.part,
            number: self.number,
            why,
        };
        if self.number > self.number_max {
            return Err(refuse(format!("expected at most {}", self.number_max)));
        }
        let longest = &self.rest[..self.rest.len().min(LINE_BYTES_MAX)];
        let end = longest.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| refuse(format!("expected at most {LINE_BYTES_MAX} bytes")))?;
        let (line, rest) = (&self.rest[..end], &self.rest[end + 1..]);
        let object = match (line.strip_suffix(b","), rest.is_empty()) {
            (Some(object), false) => object,
            (None, true) => line,
            _ => return Err(refuse("a comma too many or too few".to_owned())),
        };
        let fields = serde_json::from_slice(object).map_err(|error| refuse(error.to_string()))?;
        let (part, number) = (self.part, self.number);
        self.rest = rest;
        Ok(ManifestObject {
            part,
            number,
            fields,
        })
    }
}

/// One object, of which fields are taken until none is left.
struct ManifestObject {
    part: &'static str,
    number: usize,
    fields: Map<String, Value>,
}

impl ManifestObject {
    /// A line with its end, and with the comma that follows it unless it is the last.
    fn of(line: &[u8], part: &'static str, number: usize) -> Result<ManifestObject, ManifestFault> {
        let object = line.strip_suffix(b"\n").unwrap_or(line);
        let object = object.strip_suffix(b",").unwrap_or(object);
        let fields = serde_json::from_slice(object);
        let fields = fields.map_err(|error| ManifestFault::Line {
            part,
            number,
            why: error.to_string(),
        })?;
        Ok(ManifestObject {
            part,
            number,
            fields,
        })
    }

    fn file(mut self) -> Result<FileEntry, ManifestFault> {
        let path = match (self.optional("Path")?, self.optional("Encoded-Path")?) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(encoded)) => from_hexadecimal(encoded.as_bytes())
                .ok_or_else(|| self.refuse("its Encoded-Path is not hexadecimal"))?,
            _ => return Err(self.refuse("expected either Path or Encoded-Path")),
        };
        let path = RelativePath::new(&path).map_err(|error| self.refuse(error))?;
        let size = self.number("Size")?;
        let modified = self.text("Last-Modified")?;
        let last_modified = time_of(&modified)
            .ok_or_else(|| self.refuse(format!("its Last-Modified is {modified:?}")))?;
        let checksum = match self.optional("Checksum-Algorithm")? {
            None => None,
            Some(algorithm) => Some(self.checksum(&algorithm)?),
        };
        let entry = FileEntry {
            path,
            size,
            last_modified,
            checksum,
        };
        self.ensure_empty().map(|()| entry)
    }

    fn checksum(&mut self, algorithm: &str) -> Result<Checksum, ManifestFault> {
        let text = self.text("Checksum")?;
        let digest = from_hexadecimal(text.as_bytes());
        let digest = digest.ok_or_else(|| self.refuse("its Checksum is not hexadecimal"))?;
        let sha_bytes = match algorithm {
            "CRC32C" => {
                let bytes = <[u8; 4]>::try_from(digest);
                let bytes = bytes.map_err(|_| self.refuse("its CRC32C is not 4 bytes long"))?;
                return Ok(Checksum::Crc32c(u32::from_ne_bytes(bytes)));
            }
            "SHA224" => 28,
            "SHA256" => 32,
            "SHA384" => 48,
            "SHA512" => 64,
            _ => return Err(self.refuse(format!("unknown algorithm {algorithm:?}"))),
        };
        match digest.len() == sha_bytes {
            true => Ok(Checksum::Sha(digest.into())),
            false => Err(self.refuse(format!("its {algorithm} is not {sha_bytes} bytes long"))),
        }
    }

    fn wal_range(mut self) -> Result<WalRange, ManifestFault> {
        let timeline = u32::try_from(self.number("Timeline")?).ok();
        let timeline = timeline.and_then(TimelineId::new);
        let range = WalRange {
            timeline: timeline.ok_or_else(|| self.refuse("there is no such timeline"))?,
            start: self.lsn("Start-LSN")?,
            end: self.lsn("End-LSN")?,
        };
        self.ensure_empty().map(|()| range)
    }

    fn lsn(&mut self, key: &str) -> Result<Lsn, ManifestFault> {
        let text = self.text(key)?;
        text.parse().map_err(|error| self.refuse(error))
    }

    fn number(&mut self, key: &str) -> Result<u64, ManifestFault> {
        let value = self.fields.remove(key);
        let number = value.as_ref().and_then(Value::as_u64);
        number.ok_or_else(|| self.refuse(format!("expected {key} with a number")))
    }

    fn text(&mut self, key: &str) -> Result<String, ManifestFault> {
        let text = self.optional(key)?;
        text.ok_or_else(|| self.refuse(format!("it has no {key}")))
    }

    fn optional(&mut self, key: &str) -> Result<Option<String>, ManifestFault> {
        match self.fields.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.refuse(format!("expected {key} with a text"))),
        }
    }

    fn ensure_empty(&self) -> Result<(), ManifestFault> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.refuse(format!("unknown key {key:?}"))),
        }
    }

    fn refuse(&self, why: impl std::fmt::Display) -> ManifestFault {
        ManifestFault::Line {
            part: self.part,
            number: self.number,
            why: why.to_string(),
        }
    }
}

/// A time no calendar has is that of a file nobody dated.
fn time_text(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime(TIME_FORMAT).to_string()
}

fn time_of(text: &str) -> Option<i64> {
    let time = DateTime::strptime(TIME_FORMAT, text).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(time.timestamp().as_second())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hexadecimal(text: &[u8]) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_chunks::<2>();
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const RANGE: WalRange = WalRange {
        timeline: TimelineId::new(3).expect("a timeline"),
        start: Lsn(0x1_0200_0028),
        end: Lsn(0x1_0200_0100),
    };

    fn entry(path: &[u8], checksum: Option<Checksum>) -> FileEntry {
        FileEntry {
            path: RelativePath::new(path).unwrap(),
            size: path.len() as u64,
            last_modified: 1_767_323_045,
            checksum,
        }
    }

    fn write(major: u8, files: &[FileEntry], ranges: &[WalRange]) -> Vec<u8> {
        let mut writer = ManifestWriter::new(Vec::new(), major, SystemId(u64::MAX)).unwrap();
        for file in files {
            writer.add(file).unwrap();
        }
        writer.finish(ranges).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<FileEntry>, ManifestFault> {
        Reader::new(bytes)?.collect()
    }

    /// The lines with a checksum that is right.
    fn signed(lines: &str) -> Vec<u8> {
        let digest = aws_lc_rs::digest::digest(&SHA256, lines.as_bytes());
        let digest = hexadecimal(digest.as_ref());
        format!("{lines}\"Manifest-Checksum\": \"{digest}\"}}\n").into_bytes()
    }

    #[test]
    fn a_manifest_is_laid_out_as_the_server_does() {
        let files = [
            entry(b"base/5/\"q\"\n", Some(Checksum::Crc32c(0x0102_0304))),
            entry(b"a\xFF", None),
        ];
        let text = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
            { \"Path\": \"base/5/\\\"q\\\"\\n\", \"Size\": 11, \
            \"Last-Modified\": \"2026-01-02 03:04:05 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"04030201\" },\n\
            { \"Encoded-Path\": \"61ff\", \"Size\": 2, \
            \"Last-Modified\": \"2026-01-02 03:04:05 GMT\" }\n],\n\
            \"WAL-Ranges\": [\n\
            { \"Timeline\": 3, \"Start-LSN\": \"1/2000028\", \"End-LSN\": \"1/2000100\" }\n],\n";
        let written = write(16, &files, &[RANGE]);
        assert_eq!(String::from_utf8(written), String::from_utf8(signed(text)));
        let named = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\
            \"System-Identifier\": 18446744073709551615,\n\"Files\": [\n],\n\
            \"WAL-Ranges\": [\n\n],\n";
        assert_eq!(write(17, &[], &[]), signed(named));
        assert_eq!(read(&signed(named)), Ok(vec![]));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let whole = write(17, &[entry(b"x", Some(Checksum::Crc32c(1)))], &[RANGE]);
        assert!(read(&whole).is_ok());
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(read(&changed).is_err(), "byte {at}");
            assert!(read(&whole[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_no_server_writes_is_refused_under_a_right_checksum() {
        let whole = write(15, &[entry(b"x", Some(Checksum::Crc32c(1)))], &[RANGE]);
        let whole = String::from_utf8(whole).unwrap();
        let (lines, _) = whole.split_once("\"Manifest-Checksum\"").unwrap();
        assert!(read(&signed(lines)).is_ok());
        for (from, to, why) in [
            ("Version\": 1", "Version\": 3", "first lines"),
            ("\"WAL-Ranges\": [\n", "\"WAL\": [\n", "not followed"),
            (
                "\"Path\": \"x\"",
                "\"Path\": \"../x\"",
                "entry 1 of its files",
            ),
            ("\"Path\": \"x\"", "\"Path\": 7", "with a text"),
            ("\"Path\": \"x\"", "\"Encoded-Path\": \"7\"", "hexadecimal"),
            ("\"Path\": \"x\", ", "", "either Path"),
            ("\"Size\": 1", "\"Size\": -1", "Size with a number"),
            (
                "\"Size\": 1",
                "\"Size\": 1, \"More\": 1",
                "unknown key \"More\"",
            ),
            ("CRC32C", "MD5", "unknown algorithm"),
            ("CRC32C", "SHA256", "not 32 bytes long"),
            ("01000000", "010000", "not 4 bytes long"),
            ("GMT", "CET", "Last-Modified"),
            ("\" }\n],\n\"WAL", "\" },\n],\n\"WAL", "comma"),
            ("\"Timeline\": 3", "\"Timeline\": 0", "no such timeline"),
            ("1/2000028", "1-2000028", "an LSN"),
        ] {
            let fault = read(&signed(&lines.replace(from, to)))
                .unwrap_err()
                .to_string();
            assert!(fault.contains(why), "{from}: {fault}");
        }
        let long = lines.replace("\"x\"", &format!("\"{}\"", "x".repeat(LINE_BYTES_MAX)));
        let fault = read(&signed(&long)).unwrap_err().to_string();
        assert!(fault.contains("at most"), "{fault}");
        let many = write(15, &[], &[RANGE; WAL_RANGES_MAX + 1]);
        assert!(read(&many).is_err());
    }

    proptest! {
        #[test]
        fn fault_65_files_of_any_name_come_back_exactly(
            files in vec(
                (vec(1_u8..=255, 1..80), any::<u64>(), 0_i64..4_000_000_000, any::<Option<u32>>()),
                0..6,
            ),
            major in 13..=18_u8,
        ) {
            let files: Vec<FileEntry> = (files.into_iter())
                .filter_map(|(path, size, last_modified, crc32c)| Some(FileEntry {
                    path: RelativePath::new(&path).ok()?,
                    size,
                    last_modified,
                    checksum: crc32c.map(Checksum::Crc32c),
                }))
                .collect();
            let bytes = write(major, &files, &[RANGE, RANGE]);
            let reader = Reader::new(&bytes).unwrap();
            prop_assert_eq!(reader.system_id().is_some(), major >= 17);
            prop_assert_eq!(reader.wal_ranges(), [RANGE, RANGE]);
            prop_assert_eq!(read(&bytes), Ok(files));
        }
    }
}
