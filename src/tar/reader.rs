//! A tar stream read as it arrives: bytes in, entries out; no file is touched.
//! Never guesses what a header may mean and never holds more than one header. Invariant: however the
//! stream is cut into pieces, the same entries and the same bytes come out.
//!
//! The formats are POSIX ustar and pax (IEEE Std 1003.1, `pax`, "ustar Interchange Format" and
//! "pax Header Block"), and GNU's base-256 numbers and long names (the GNU tar manual, "Basic Tar
//! Format"), as far as `pg_basebackup`'s server writes them (`src/port/tar.c`) or needs them.
//!
//! The crates that read tar pull from a reader, take long names of any length into memory, accept
//! headers that two programs understand in two ways, and make links and devices unless told not to.
//! Here bytes are pushed by a peer who may be hostile, and what remains of the format when all
//! that is refused is this file. What two readers could understand differently is refused:
//! bytes behind a NUL in a name, numbers that are neither octal nor base-256, sizes that disagree,
//! repeated or unknown pax keywords, everything sparse.

use walmgr_protocol::limits::{PATH_BYTES_MAX, TAR_EXTENDED_BYTES_MAX};
pub(crate) use walmgr_protocol::message::backup::TAR_OFFSET_KEYWORD as OFFSET_KEYWORD;
use walmgr_protocol::names::RelativePath;
use walmgr_protocol::patch::TAR_PATCH_KEYWORD;

/// Headers and padding come in blocks of this size.
pub const BLOCK_BYTES: usize = 512;

/// The largest number eleven octal digits can hold; a larger size needs pax or base-256.
const OCTAL_SIZE_MAX: u64 = (1 << 33) - 1;

/// A file or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TarEntry {
    /// Where it belongs.
    pub path: RelativePath,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is; nothing else is ever taken out of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Bytes of it in this stream.
        size: u64,
        /// Where they belong; anything but 0 continues a file of an earlier stream.
        offset: u64,
    },
    /// What a regular file has that the same file of an older set has not.
    Patch {
        /// Bytes of the patch in this stream.
        size: u64,
        /// The length of the file that comes of it.
        len: u64,
    },
}

/// What comes next in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TarStep<'a> {
    /// An entry begins; a file's content follows, unless its size is 0.
    Entry(TarEntry),
    /// Content of the file that began last; never empty.
    Data(&'a [u8]),
    /// The file that began last is complete.
    FileEnd,
    /// All input is used up.
    NeedMore,
}

/// Why a stream is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the archive is refused at byte {offset}: {why}")]
pub struct TarFault {
    /// Where the header or block that is refused begins in the stream.
    pub offset: u64,
    /// What is wrong with it.
    pub why: String,
}

/// Where in the stream the reader is.
#[derive(Debug)]
enum TarState {
    /// In a header, of which this many bytes are there.
    Header(usize),
    /// In an extended header's content; its kind, and how many bytes and then padding are missing.
    Extended(Extended, u64, u64),
    /// In a file's content; bytes and then padding missing.
    Data(u64, u64),
    /// Behind a file's content, before its padding; `FileEnd` has been said.
    Padding(u64),
    /// Behind one block of zeros, which one more must follow; bytes of that one so far.
    Ending(usize),
    /// Behind the end; only zeros may follow.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extended {
    Pax,
    LongName,
}

/// What an extended header says about the entry behind it.
#[derive(Debug, Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    size: Option<u64>,
    offset: Option<u64>,
    patched_len: Option<u64>,
    /// An extended header came, even if it said nothing.
    is_open: bool,
}

/// The reader. After a fault it must not be used again.
pub(crate) struct TarReader {
    state: TarState,
    header: [u8; BLOCK_BYTES],
    extended: Vec<u8>,
    overrides: Overrides,
    /// Bytes taken in.
    position: u64,
    /// Where the current header begins.
    begin: u64,
}

impl Default for TarReader {
    fn default() -> Self {
        TarReader {
            state: TarState::Header(0),
            header: [0; BLOCK_BYTES],
            extended: Vec::new(),
            overrides: Overrides::default(),
            position: 0,
            begin: 0,
        }
    }
}

impl TarReader {
    /// The next thing in the stream. What it is made of is taken from `input`.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<TarStep<'a>, TarFault> {
        loop {
            match self.state {
                TarState::Data(0, padding) => {
                    self.state = TarState::Padding(padding);
                    return Ok(TarStep::FileEnd);
                }
                TarState::Padding(0) => self.state = TarState::Header(0),
                TarState::Extended(kind, 0, 0) => {
                    self.state = TarState::Header(0);
                    self.read_extended(kind)?;
                }
                _ if input.is_empty() => return Ok(TarStep::NeedMore),
                TarState::Data(left, padding) => {
                    let data = self.take(input, left);
                    self.state = TarState::Data(left - data.len() as u64, padding);
                    return Ok(TarStep::Data(data));
                }
                TarState::Padding(left) => {
                    let taken = self.take_zeros(input, left)?;
                    self.state = TarState::Padding(left - taken);
                }
                TarState::Extended(kind, left, padding) => {
                    self.state = self.extend(kind, left, padding, input)?;
                }
                TarState::Header(filled) => {
                    if let Some(entry) = self.fill_header(filled, input)? {
                        return Ok(TarStep::Entry(entry));
                    }
                }
                TarState::Ending(seen) => {
                    let taken = self.take_zeros(input, (BLOCK_BYTES - seen) as u64)?;
                    // It is no longer than a block.
                    let seen = seen + usize::try_from(taken).unwrap_or(BLOCK_BYTES);
                    self.state = match seen {
                        BLOCK_BYTES => TarState::Ended,
                        seen => TarState::Ending(seen),
                    };
                }
                TarState::Ended => {
                    self.take_zeros(input, u64::MAX)?;
                }
            }
        }
    }

    /// Fails unless the stream came to its end.
    pub(crate) fn finish(&self) -> Result<(), TarFault> {
        match self.state {
            TarState::Ended => Ok(()),
            _ => Err(TarFault {
                offset: self.position,
                why: "it ends before its end".to_owned(),
            }),
        }
    }

    /// How many bytes were taken in.
    pub(crate) const fn position(&self) -> u64 {
        self.position
    }

    fn take<'a>(&mut self, input: &mut &'a [u8], most: u64) -> &'a [u8] {
        let count = usize::try_from(most).map_or(input.len(), |most| most.min(input.len()));
        let (taken, rest) = input.split_at(count);
        *input = rest;
        self.position += count as u64;
        taken
    }

    /// Padding hides nothing: whoever reads it differently finds zeros.
    fn take_zeros(&mut self, input: &mut &[u8], most: u64) -> Result<u64, TarFault> {
        let offset = self.position;
        let taken = self.take(input, most);
        if let Some(at) = taken.iter().position(|byte| *byte != 0) {
            let offset = offset + at as u64;
            let why = "there is something where zeros have to be".to_owned();
            return Err(TarFault { offset, why });
        }
        Ok(taken.len() as u64)
    }

    fn refuse<T>(&self, why: impl Into<String>) -> Result<T, TarFault> {
        Err(TarFault {
            offset: self.begin,
            why: why.into(),
        })
    }

    fn extend(
        &mut self,
        kind: Extended,
        left: u64,
        padding: u64,
        input: &mut &[u8],
    ) -> Result<TarState, TarFault> {
        if left > 0 {
            let taken = self.take(input, left);
            self.extended.extend_from_slice(taken);
            return Ok(TarState::Extended(kind, left - taken.len() as u64, padding));
        }
        let taken = self.take_zeros(input, padding)?;
        Ok(TarState::Extended(kind, 0, padding - taken))
    }

    fn fill_header(
        &mut self,
        filled: usize,
        input: &mut &[u8],
    ) -> Result<Option<TarEntry>, TarFault> {
        if filled == 0 {
            self.begin = self.position;
        }
        let taken = self.take(input, (BLOCK_BYTES - filled) as u64);
        let end = filled + taken.len();
        self.header[filled..end].copy_from_slice(taken);
        self.state = TarState::Header(end);
        if end < BLOCK_BYTES {
            return Ok(None);
        }
        self.read_header()
    }

    fn read_header(&mut self) -> Result<Option<TarEntry>, TarFault> {
        let header = self.header;
        if header.iter().all(|byte| *byte == 0) {
            if self.overrides.is_open {
                return self.refuse("an extended header is followed by no entry");
            }
            self.state = TarState::Ending(0);
            return Ok(None);
        }
        check_sum(&header).or_else(|why| self.refuse(why))?;
        let is_gnu = match &header[257..265] {
            b"ustar\x0000" => false,
            b"ustar  \0" => true,
            _ => return self.refuse("it is neither ustar nor GNU tar"),
        };
        // GNU keeps times and the maps of sparse files where ustar has the prefix of the name.
        if is_gnu && header[345..].iter().any(|byte| *byte != 0) {
            return self
                .refuse("a GNU header has fields that only sparse or incremental ones need");
        }
        let size = number(&header[124..136]).or_else(|why| self.refuse(why))?;
        match header[156] {
            b'x' => self.begin_extended(Extended::Pax, size, TAR_EXTENDED_BYTES_MAX),
            // With the NUL at its end.
            b'L' => self.begin_extended(Extended::LongName, size, PATH_BYTES_MAX + 1),
            b'0' | 0 => self.begin_file(&header, size).map(Some),
            b'5' => self.begin_directory(&header, size).map(Some),
            other => self.refuse(format!("it holds {}", type_name(other))),
        }
    }

    fn begin_extended(
        &mut self,
        kind: Extended,
        size: u64,
        size_max: usize,
    ) -> Result<Option<TarEntry>, TarFault> {
        if self.overrides.is_open {
            return self.refuse("one extended header follows another");
        }
        if size > size_max as u64 {
            return self.refuse(format!("an extended header of {size} bytes"));
        }
        self.overrides.is_open = true;
        self.extended.clear();
        self.state = TarState::Extended(kind, size, padding(size));
        Ok(None)
    }

    fn read_extended(&mut self, kind: Extended) -> Result<(), TarFault> {
        let content = std::mem::take(&mut self.extended);
        let read = match kind {
            Extended::Pax => read_pax(&content, &mut self.overrides),
            Extended::LongName => read_long_name(&content, &mut self.overrides),
        };
        self.extended = content;
        read.or_else(|why| self.refuse(why))
    }

    fn begin_file(&mut self, header: &[u8; BLOCK_BYTES], size: u64) -> Result<TarEntry, TarFault> {
        let overrides = std::mem::take(&mut self.overrides);
        let size = match overrides.size {
            None => size,
            // Only a size that does not fit the header may be missing there.
            Some(real) if real == size || (real > OCTAL_SIZE_MAX && size == 0) => real,
            Some(real) => {
                return self.refuse(format!("its header says {size} bytes and pax says {real}"));
            }
        };
        let offset = overrides.offset.unwrap_or(0);
        if offset
            .checked_add(size)
            .is_none_or(|end| end > i64::MAX as u64)
        {
            return self.refuse(format!("a file of {size} bytes at {offset}"));
        }
        let path = self.path(header, overrides.path)?;
        self.state = TarState::Data(size, padding(size));
        let kind = match overrides.patched_len {
            None => EntryKind::File { size, offset },
            Some(len) if offset == 0 && i64::try_from(len).is_ok() => {
                EntryKind::Patch { size, len }
            }
            Some(len) => return self.refuse(format!("a patch at {offset} for {len} bytes")),
        };
        Ok(TarEntry { path, kind })
    }

    fn begin_directory(
        &mut self,
        header: &[u8; BLOCK_BYTES],
        size: u64,
    ) -> Result<TarEntry, TarFault> {
        let overrides = std::mem::take(&mut self.overrides);
        let has_size = size != 0 || overrides.size.is_some_and(|size| size != 0);
        if has_size || overrides.offset.is_some() || overrides.patched_len.is_some() {
            return self.refuse("a directory with content");
        }
        let path = match overrides.path {
            Some(path) => path,
            None => name(header).or_else(|why| self.refuse(why))?,
        };
        // Directories are written with a slash behind them; files never are.
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        let path = self.path(header, Some(path))?;
        self.state = TarState::Padding(0);
        let kind = EntryKind::Directory;
        Ok(TarEntry { path, kind })
    }

    fn path(
        &self,
        header: &[u8; BLOCK_BYTES],
        given: Option<Vec<u8>>,
    ) -> Result<RelativePath, TarFault> {
        let bytes = match given {
            Some(bytes) => bytes,
            None => name(header).or_else(|why| self.refuse(why))?,
        };
        RelativePath::new(&bytes).or_else(|error| self.refuse(error.to_string()))
    }
}

/// The name in a header, with its prefix.
fn name(header: &[u8; BLOCK_BYTES]) -> Result<Vec<u8>, String> {
    let name = text(&header[..100])?;
    let prefix = text(&header[345..500])?;
    Ok(match prefix {
        b"" => name.to_vec(),
        prefix => [prefix, name].join(&b'/'),
    })
}

/// A field up to its first NUL; behind that there may be nothing.
fn text(field: &[u8]) -> Result<&[u8], String> {
    let end = field.iter().position(|byte| *byte == 0);
    let (text, rest) = field.split_at(end.unwrap_or(field.len()));
    if rest.iter().any(|byte| *byte != 0) {
        return Err("a name goes on behind its end".to_owned());
    }
    Ok(text)
}

fn check_sum(header: &[u8; BLOCK_BYTES]) -> Result<(), String> {
    let expected = number(&header[148..156])?;
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    // The checksum counts as spaces while it is computed.
    let found = sum(&header[..148]) + 8 * u64::from(b' ') + sum(&header[156..]);
    match found == expected || cfg!(fuzzing) {
        true => Ok(()),
        false => Err(format!("its checksum is {found}, expected {expected}")),
    }
}

/// Octal digits with spaces before and spaces or NULs behind them, or base-256 behind a byte 0x80.
fn number(field: &[u8]) -> Result<u64, String> {
    let wrong = || format!("{:?} is no number", field.escape_ascii().to_string());
    if field[0] == 0x80 {
        return field[1..].iter().try_fold(0_u64, |number, byte| {
            let shifted = number.checked_mul(256).ok_or_else(wrong)?;
            Ok(shifted | u64::from(*byte))
        });
    }
    let begin = field.iter().position(|byte| *byte != b' ').unwrap_or(0);
    let digits = &field[begin..];
    let end = digits.iter().position(|byte| !matches!(byte, b'0'..=b'7'));
    let (digits, rest) = digits.split_at(end.unwrap_or(digits.len()));
    if digits.is_empty() || rest.iter().any(|byte| !matches!(byte, b' ' | 0)) {
        return Err(wrong());
    }
    // Twelve digits have 36 bits.
    Ok(digits
        .iter()
        .fold(0, |number, digit| number << 3 | u64::from(digit - b'0')))
}

const fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}

/// Records of `LENGTH KEYWORD=VALUE\n`, where LENGTH counts the whole record.
fn read_pax(mut content: &[u8], overrides: &mut Overrides) -> Result<(), String> {
    let mut seen: Vec<&[u8]> = Vec::new();
    while !content.is_empty() {
        let (record, rest) = pax_record(content).ok_or("a pax record is malformed")?;
        content = rest;
        let equals = record.iter().position(|byte| *byte == b'=');
        let (keyword, value) = record.split_at(equals.ok_or("a pax record has no value")?);
        let value = &value[1..];
        if seen.contains(&keyword) {
            return Err("a pax keyword is repeated".to_owned());
        }
        seen.push(keyword);
        let decimal = || decimal(value).ok_or("a pax number is malformed");
        match keyword {
            b"path" => overrides.path = Some(value.to_vec()),
            b"size" => overrides.size = Some(decimal()?),
            _ if keyword == OFFSET_KEYWORD.as_bytes() => overrides.offset = Some(decimal()?),
            _ if keyword == TAR_PATCH_KEYWORD.as_bytes() => {
                overrides.patched_len = Some(decimal()?);
            }
            // A set's files belong to whoever runs the receiver, and no decision looks at times.
            b"mtime" | b"atime" | b"ctime" | b"uid" | b"gid" | b"uname" | b"gname" | b"comment" => {
            }
            _ => return Err(format!("the pax keyword {}", keyword.escape_ascii())),
        }
    }
    Ok(())
}

fn pax_record(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = content.iter().take(8).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&content[..space])?).ok()?;
    let (record, rest) = content.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    Some((record, rest))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = digits.iter().all(u8::is_ascii_digit);
    let text = plain.then(|| std::str::from_utf8(digits).ok()).flatten()?;
    text.parse().ok()
}

fn read_long_name(content: &[u8], overrides: &mut Overrides) -> Result<(), String> {
    let name = content.strip_suffix(b"\0").unwrap_or(content);
    overrides.path = Some(name.to_vec());
    Ok(())
}

fn type_name(type_flag: u8) -> String {
    let name = match type_flag {
        b'1' => "a hard link",
        b'2' => "a symbolic link",
        b'3' => "a character device",
        b'4' => "a block device",
        b'6' => "a FIFO",
        b'7' => "a contiguous file",
        b'g' => "a global pax header",
        b'K' => "a long link name",
        b'S' => "a sparse file",
        other => return format!("an entry of type {:?}", char::from(other)),
    };
    name.to_owned()
}
