//! `choose NAME`: shows what is kept of a name besides what readers follow, and lets a person decide.
//! Never decides by itself, and without `--take` changes nothing. Invariant: what goes out of its place is kept,
//! so whoever took the wrong one takes the other again.
//!
//! | of NAME there is | `--take` |
//! |---|---|
//! | another file, `NAME.differs` | exchanges the two in one step. The receiver has to be stopped: it might be telling a master that the one that goes is stored |
//! | a file that is set apart | has readers follow it. The receiver may run |
//! | a history that counts only because a key brought it | settles that: its parent's stream is refused from here on |

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize};

use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::store::differs::{DIFFERS_SUFFIX, take_apart, take_differing};
use crate::store::{Reader, RealDisk, StoreError, Told};
use crate::wal::record::RecordInfo;
use crate::wal::scan::{Scanner, Step};

const PIECE_BYTES: usize = 256 << 10;

/// Shows what there is, and takes it.
pub fn run(config: &StandbyConfig, options: &Options, name: WalFileName, take: bool) -> Result<()> {
    let folder = &config.completed_wals;
    let archive = Reader::open(folder, Arc::new(RealDisk))
        .map_err(|error| failed("open the archive", &error))?;
    let choosing = |error: StoreError| failed(&format!("choose {name}"), &error);
    if archive.differing().map_err(choosing)?.contains(&name) {
        let choice = Choice {
            archive: &archive,
            folder,
            name,
        };
        output::print(&choice.describe()?)?;
        if !take {
            return output::print(&format!("choose {name} --take exchanges them"));
        }
        if options.not_really {
            return output::not_really(&format!("exchange {name} and {name}{DIFFERS_SUFFIX}"));
        }
        take_differing(folder, Arc::new(RealDisk), name).map_err(|error| {
            let is_locked = matches!(error, StoreError::Locked { .. });
            let hint = "stop the receiver first (`receiver -s`) and start it again behind this";
            let refused = choosing(error);
            if is_locked {
                refused.hint(hint)
            } else {
                refused
            }
        })?;
        return output::print(&format!(
            "{name} is what was offered; what was stored is {name}{DIFFERS_SUFFIX} now"
        ));
    }
    let told = archive.apart().map_err(choosing)?;
    let Some(told) = told.into_iter().find(|told| told.name == name) else {
        if let WalFileName::History(timeline) = name
            && let Some(by) = archive.claims().map_err(choosing)?.remove(&timeline)
        {
            return settle(folder, options, timeline, &by, take);
        }
        return Err(CommandError::retry(format!(
            "there is nothing to choose about {name}: it is not set apart, and no other one is kept"
        )));
    };
    output::print(&apart_text(&told))?;
    if !take {
        return output::print(&format!("choose {name} --take has readers follow it"));
    }
    if options.not_really {
        return output::not_really(&format!("have readers follow {name}"));
    }
    take_apart(folder, Arc::new(RealDisk), name).map_err(choosing)?;
    output::print(&format!("{name} counts from here on"))
}

/// A timeline that readers follow, and nobody but a key says that there is one.
fn settle(
    folder: &Path,
    options: &Options,
    timeline: TimelineId,
    by: &str,
    take: bool,
) -> Result<()> {
    let name = WalFileName::History(timeline);
    output::print(&format!(
        "{name} is followed because {} brought it: no boot on this host opened timeline {timeline}. Readers \
         leave it if the timeline that it left goes on further.",
        output::escaped(by)
    ))?;
    if !take {
        return output::print(&format!("choose {name} --take has them stay"));
    }
    if options.not_really {
        return output::not_really(&format!("settle timeline {timeline}"));
    }
    take_apart(folder, Arc::new(RealDisk), name)
        .map_err(|error| failed(&format!("choose {name}"), &error))?;
    output::print(&format!("timeline {timeline} is settled from here on"))
}

fn apart_text(told: &Told) -> String {
    let by = output::escaped(&told.by);
    format!(
        "{} is set apart, and no reader follows it: {}. It came from {by}.",
        told.name, told.why
    )
}

/// Two files of one name.
struct Choice<'a> {
    archive: &'a Reader,
    folder: &'a Path,
    name: WalFileName,
}

impl Choice<'_> {
    fn describe(&self) -> Result<String> {
        let (stored, offered) = (self.path(""), self.path(DIFFERS_SUFFIX));
        let mut text = format!("{}: {}\n", self.name, self.difference(&stored, &offered)?);
        let by = self.archive.differing_by(self.name);
        let by = by.map_err(|error| failed("read who brought it", &error))?;
        let by = match by.as_str() {
            "" => "nobody knows who brought it; the receiver's log may".to_owned(),
            by => format!("offered by {}", output::escaped(by)),
        };
        let stored_by = match self.archive.brought_by(self.name) {
            Some(by) => format!("brought by {}, and there first", output::escaped(&by)),
            None => "it was there first; the receiver's log tells who brought it".to_owned(),
        };
        text.push_str(&format!(
            "  stored   {}: {stored_by}{}\n",
            self.name,
            self.chains(&stored)?
        ));
        text.push_str(&format!(
            "  offered  {}{DIFFERS_SUFFIX}: {by}{}",
            self.name,
            self.chains(&offered)?
        ));
        Ok(text)
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}{suffix}", self.name))
    }

    /// Where two files begin to differ.
    fn difference(&self, one: &Path, other: &Path) -> Result<String> {
        let (first, second) = (open(one)?, open(other)?);
        let (mut left, mut right) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
        let mut offset = 0;
        loop {
            let ours = read_full(&first, &mut left, offset).at(Kind::Retry, "read", one)?;
            let theirs = read_full(&second, &mut right, offset).at(Kind::Retry, "read", other)?;
            let common = ours.min(theirs);
            let differs = (0..common).find(|at| left[*at] != right[*at]);
            match differs {
                Some(at) => offset += at as u64,
                None if ours == theirs && ours > 0 => {
                    offset += ours as u64;
                    continue;
                }
                None if ours == theirs => return Ok("the two are the same".to_owned()),
                None => offset += common as u64,
            }
            break;
        }
        let start = self
            .segment()
            .and_then(|segment| segment.start(self.size()));
        Ok(match start {
            Some(start) => {
                let lsn = Lsn(start.0 + offset);
                format!("the two differ from byte {offset} on, which is {lsn}")
            }
            None => format!("the two differ from byte {offset} on"),
        })
    }

    /// Which of its neighbours a segment goes together with.
    fn chains(&self, path: &Path) -> Result<String> {
        let Some(segment) = self.segment() else {
            return Ok(String::new());
        };
        let number = segment.number(self.size()).unwrap_or_default();
        let neighbour = |number: u64| {
            let name = SegmentName::from_number(segment.timeline(), number, self.size());
            let path = self.folder.join(name.to_string());
            (name, path)
        };
        let not = |chains: bool| if chains { "" } else { "not " };
        let mut text = String::new();
        if let Some((name, before)) = number.checked_sub(1).map(neighbour)
            && before.exists()
        {
            let chains = self.chain((number - 1, &before), path)?;
            text.push_str(&format!("; {name} does {}lead to it", not(chains)));
        }
        let (name, behind) = neighbour(number + 1);
        if behind.exists() {
            let chains = self.chain((number, path), &behind)?;
            text.push_str(&format!("; it does {}lead to {name}", not(chains)));
        }
        Ok(text)
    }

    /// Whether the records of one segment go on in the next.
    fn chain(&self, (number, first): (u64, &Path), second: &Path) -> Result<bool> {
        let size = self.size();
        let boundary = Lsn((number + 1) * size.bytes());
        let mut scanner = Scanner::new(Lsn(number * size.bytes()), size);
        for path in [first, second] {
            let file = open(path)?;
            let mut piece = vec![0; PIECE_BYTES];
            let mut offset = 0;
            'file: loop {
                let read = read_full(&file, &mut piece, offset).at(Kind::Retry, "read", path)?;
                offset += read as u64;
                if read == 0 {
                    break;
                }
                let mut input = &piece[..read];
                loop {
                    match scanner.advance(&mut input) {
                        Step::Record(RecordInfo { lsn, .. }) if lsn >= boundary => return Ok(true),
                        Step::Record(record) if record.is_switch() => {
                            // Nothing behind it means anything.
                            scanner = Scanner::new(boundary, size).following(record.lsn);
                            break 'file;
                        }
                        Step::Record(_) => {}
                        Step::NeedMore => break,
                        Step::EndOfWal(_) | Step::Invalid { .. } => return Ok(false),
                    }
                }
            }
        }
        // One record fills all of the second.
        Ok(true)
    }

    fn segment(&self) -> Option<SegmentName> {
        match self.name {
            WalFileName::Segment(segment) => Some(segment),
            _ => None,
        }
    }

    fn size(&self) -> WalSegmentSize {
        self.archive.binding().segment_size
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).at(Kind::Retry, "open", path)
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

fn failed(doing: &str, error: &StoreError) -> CommandError {
    CommandError::new(error.kind(), doing).because(error)
}
