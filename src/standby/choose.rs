//! `choose NAME`: shows what is kept of a name besides what readers follow, and lets a person decide.
//! Never decides by itself, and without `--take` changes nothing. Invariant: what goes out of its place is kept,
//! so whoever took the wrong one takes the other again.
//!
//! | of NAME there is | `--take` |
//! |---|---|
//! | another file, `NAME.differs` or `NAME.displaced` | puts it in the place of the stored one, which is kept as `NAME.displaced`. Of several, the one whose own name is typed. The receiver has to be stopped: it might be telling a master that the one that goes is stored |
//! | a file that is set apart | has readers follow it. The receiver may run |
//! | a history that counts only because a key brought it | settles that: its parent's stream is refused from here on |

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use walmgr_protocol::names::{
    InvalidName, Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize,
};

use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::Options;
use crate::output;
use crate::store::beside::{Beside, CopyName};
use crate::store::differs::take_apart;
use crate::store::displaced::take_copy;
use crate::store::{ApartNote, ArchiveReader, RealDisk, StoreError, Stored};
use crate::wal::joint::Joint;
use crate::wal::scan::Scanner;
use crate::wal::through::Through;

const PIECE_BYTES: usize = 256 << 10;

/// What stood behind `choose`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct ChooseArgs {
    /// The WAL file, or the name of what is kept beside it
    #[arg(value_name = "NAME")]
    pub name: ChosenFile,
    /// Put it in its place; what was there is kept
    #[arg(long)]
    pub take: bool,
}

/// A WAL file, or one of the files that are kept beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChosenFile {
    /// By its name alone.
    File(WalFileName),
    /// One that is kept beside it, by its own name.
    Copy(CopyName),
}

impl FromStr for ChosenFile {
    type Err = InvalidName;

    fn from_str(text: &str) -> std::result::Result<Self, InvalidName> {
        match CopyName::parse(text) {
            Some(copy) if copy.kind != Beside::Damaged => Ok(ChosenFile::Copy(copy)),
            _ => text.parse().map(ChosenFile::File),
        }
    }
}

/// Shows what there is, and takes it.
pub(crate) fn run(config: &StandbyConfig, options: &Options, arguments: &ChooseArgs) -> Result<()> {
    let (chosen, take) = (&arguments.name, arguments.take);
    let folder = &config.completed_wals;
    let archive = ArchiveReader::open(folder, Arc::new(RealDisk))
        .map_err(|error| failed("open the archive", &error))?;
    let name = match chosen {
        ChosenFile::File(name) => *name,
        ChosenFile::Copy(copy) => copy.name,
    };
    let choosing = |error: StoreError| failed(&format!("choose {name}"), &error);
    let copies = archive.beside().map_err(choosing)?.remove(&name);
    if let Some(copies) = copies {
        let choice = Choice {
            archive: &archive,
            name,
        };
        output::print(&choice.describe(&copies)?)?;
        return take_one(folder, options, (chosen, &copies), take);
    }
    if let ChosenFile::Copy(copy) = chosen {
        return Err(CommandError::retry(format!("there is no {copy}")));
    }
    let told = archive.apart().map_err(choosing)?;
    let Some(told) = told.into_iter().find(|told| told.name == name) else {
        if let WalFileName::History(timeline) = name
            && let Some(by) = archive.claims().map_err(choosing)?.remove(&timeline)
        {
            return settle(folder, options, timeline, &by, take);
        }
        return Err(CommandError::retry(format!(
            "there is nothing to choose about {name}: it is not set apart, and there is no other \
            file of this name"
        )));
    };
    output::print(&apart_text(&told))?;
    if !take {
        return output::print(&format!("choose {name} --take lets readers follow it"));
    }
    if options.not_really {
        return output::not_really(&format!("let readers follow {name}"));
    }
    take_apart(folder, Arc::new(RealDisk), name).map_err(choosing)?;
    output::print(&format!("readers follow {name} from now on"))
}

/// Puts one of several files in the place of the stored one, if a person said which.
fn take_one(
    folder: &Path,
    options: &Options,
    (chosen, copies): (&ChosenFile, &[CopyName]),
    take: bool,
) -> Result<()> {
    let copy = match (chosen, copies) {
        (ChosenFile::Copy(copy), _) if copies.contains(copy) => copy,
        (ChosenFile::Copy(copy), _) => {
            return Err(CommandError::retry(format!("there is no {copy}")));
        }
        (ChosenFile::File(_), [only]) => only,
        (ChosenFile::File(name), _) => {
            let lines = copies.iter().map(|copy| format!("choose {copy} --take"));
            let lines = lines.collect::<Vec<_>>().join("`, `");
            let said = format!("{} other files are kept beside {name}", copies.len());
            return match take {
                true => Err(CommandError::usage(said).hint(format!("say which one: `{lines}`"))),
                false => output::print(&format!("{said}; `{lines}` puts that file in its place")),
            };
        }
    };
    let name = copy.name;
    if !take {
        return output::print(&format!(
            "choose {copy} --take puts {copy} in the place of {name}, which is kept"
        ));
    }
    if options.not_really {
        return output::not_really(&format!("put {copy} in the place of {name}"));
    }
    let kept = take_copy(folder, Arc::new(RealDisk), copy).map_err(|error| {
        let is_locked = matches!(error, StoreError::Locked { .. });
        let hint = "stop the receiver first (`receiver -s`) and start it again afterwards";
        let refused = failed(&format!("choose {name}"), &error);
        if is_locked {
            refused.hint(hint)
        } else {
            refused
        }
    })?;
    output::print(&format!(
        "{copy} is now stored as {name}; the file that was stored is now {kept}"
    ))
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
        "Readers follow {name} because {} sent it; no boot on this host opened timeline \
        {timeline}. They leave it if the WAL of the old timeline extends further.",
        output::escaped(by)
    ))?;
    if !take {
        return output::print(&format!("choose {name} --take makes them stay"));
    }
    if options.not_really {
        return output::not_really(&format!("settle timeline {timeline}"));
    }
    take_apart(folder, Arc::new(RealDisk), name)
        .map_err(|error| failed(&format!("choose {name}"), &error))?;
    output::print(&format!("timeline {timeline} is settled from now on"))
}

fn apart_text(told: &ApartNote) -> String {
    let by = output::escaped(&told.by);
    format!(
        "{} is set apart, and no reader follows it: {}. {by} sent it.",
        told.name, told.why
    )
}

/// Two files of one name.
struct Choice<'a> {
    archive: &'a ArchiveReader,
    name: WalFileName,
}

impl Choice<'_> {
    fn describe(&self, copies: &[CopyName]) -> Result<String> {
        let stored = self.name.to_string();
        let stored_by = match self.archive.brought_by(self.name) {
            Some(by) => format!("brought by {}", output::escaped(&by)),
            None => "the receiver's log says who sent it".to_owned(),
        };
        let mut text = format!(
            "  stored     {}: {stored_by}{}",
            self.name,
            self.chains(&stored)?
        );
        for copy in copies {
            let kept = copy.to_string();
            let by = self.archive.copy_by(copy);
            let by = by.map_err(|error| failed("read who sent it", &error))?;
            let (what, verb) = match copy.kind {
                Beside::Differs => ("offered  ", "offered"),
                Beside::Displaced | Beside::Damaged => ("displaced", "brought"),
            };
            let by = match by.as_str() {
                "" => "unknown sender; the receiver's log may name it".to_owned(),
                by => format!("{verb} by {}", output::escaped(by)),
            };
            let changed = match self.archive.copy_is_changed(copy) {
                Ok(Some(why)) => format!("; it differs from the acknowledged file: {why}"),
                _ => String::new(),
            };
            text.push_str(&format!(
                "\n  {what}  {copy}: {by}; {}{}{changed}",
                self.difference(&stored, &kept)?,
                self.chains(&kept)?
            ));
        }
        Ok(text)
    }

    /// The stored file, or a copy, that has this name.
    fn open(&self, text: &str) -> Result<Stored> {
        let found = self.archive.find_beside(self.name, text);
        let found = found.map_err(|error| failed(&format!("open {text}"), &error))?;
        found.ok_or_else(|| CommandError::retry(format!("there is no {text}")))
    }

    /// Where two files begin to differ.
    fn difference(&self, one: &str, other: &str) -> Result<String> {
        let (first, second) = (self.open(one)?, self.open(other)?);
        let (mut left, mut right) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
        let mut offset = 0;
        let read = |file: &Stored, text: &str, buffer: &mut [u8], offset| {
            (file.read_at(buffer, offset)).at(Kind::Retry, "read", Path::new(text))
        };
        loop {
            let ours = read(&first, one, &mut left, offset)?;
            let theirs = read(&second, other, &mut right, offset)?;
            let common = ours.min(theirs);
            let differs = (0..common).find(|at| left[*at] != right[*at]);
            match differs {
                Some(at) => offset += at as u64,
                None if ours == theirs && ours > 0 => {
                    offset += ours as u64;
                    continue;
                }
                None if ours == theirs => return Ok("the two files are the same".to_owned()),
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
                format!("the two files differ from byte {offset} on, which is {lsn}")
            }
            None => format!("the two files differ from byte {offset} on"),
        })
    }

    /// Which of its neighbours a segment goes together with.
    fn chains(&self, text: &str) -> Result<String> {
        let Some(segment) = self.segment() else {
            return Ok(String::new());
        };
        let number = segment.number(self.size()).unwrap_or_default();
        let neighbour = |number: u64| {
            let name = SegmentName::from_number(segment.timeline(), number, self.size());
            let stat = self.archive.stat(WalFileName::Segment(name)).ok()?;
            stat.map(|_| (name, name.to_string()))
        };
        let not = |chains: bool| if chains { "" } else { "not " };
        let mut said = String::new();
        if let Some((name, before)) = number.checked_sub(1).and_then(neighbour) {
            let chains = self.chain((name, &before), (segment, text))?;
            said.push_str(&format!("; {name} does {}continue into it", not(chains)));
        }
        if let Some((name, behind)) = neighbour(number + 1) {
            let chains = self.chain((segment, text), (name, &behind))?;
            said.push_str(&format!("; it does {}continue into {name}", not(chains)));
        }
        Ok(said)
    }

    /// Whether the records of one segment go on in the next.
    fn chain(
        &self,
        (first, text): (SegmentName, &str),
        (second, next): (SegmentName, &str),
    ) -> Result<bool> {
        let size = self.size();
        let scanner = Scanner::new(first.start(size).unwrap_or_default(), size);
        let mut through = Through::new(scanner, first, size);
        self.each_piece(text, |piece| through.update(piece))?;
        let Some(scanner) = through.finish().out() else {
            return Ok(false);
        };
        let mut joint = Joint::new(scanner, second);
        self.each_piece(next, |piece| joint.update(piece))?;
        Ok(joint.finish(size).is_ok())
    }

    /// Hands a file to `each` piece by piece, until it has seen enough.
    fn each_piece(&self, text: &str, each: impl FnMut(&[u8]) -> bool) -> Result<()> {
        let read = self.open(text)?.read_unchecked(each);
        read.map_err(|error| failed(&format!("read {text}"), &error))
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

fn failed(doing: &str, error: &StoreError) -> CommandError {
    CommandError::new(error.kind(), doing).because(error)
}
