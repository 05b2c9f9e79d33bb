//! Pages of a set that an old data directory does not have, asked for and taken apart as they come.
//! Never believes where the receiver says that a page belongs. Invariant: nothing is written that was not asked for, and
//! what has arrived is not asked for again.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use walmgr_protocol::limits::{WANTED_DIGESTS_MAX, WANTED_FILES_MAX};
use walmgr_protocol::message::fetch::{GetPages, GetSet, WantedPages};
use walmgr_protocol::names::RelativePath;
use walmgr_protocol::patch::PAGE_BYTES;
use walmgr_protocol::session::fetch::FetchRequest;

use super::kept::PageKeeper;
use super::stream::Continued;
use super::tree::{NewTree, failed, refused};
use crate::error::{CommandError, Result};
use crate::master::fetch::Sink;
use crate::output::progress::Counters;
use crate::tar::{EntryKind, TarReader, TarStep};

/// A file of which pages are missing.
pub(super) struct MissingPages {
    pub path: RelativePath,
    /// Its number among all that are kept; `None` for one that is written where it will lie.
    pub kept_as: Option<u32>,
    /// Where what is missing begins and ends.
    pub offset: u64,
    pub end: u64,
    /// What there is of it from there on.
    pub digests: VecDeque<u64>,
    /// Where what was asked for ends.
    pub asked_end: u64,
}

impl MissingPages {
    /// Nothing before this is missing any more.
    fn go_to(&mut self, offset: u64) {
        let pages = (offset.saturating_sub(self.offset)) / PAGE_BYTES;
        let pages = usize::try_from(pages).unwrap_or(usize::MAX);
        self.digests.drain(..pages.min(self.digests.len()));
        self.offset = offset.max(self.offset);
    }

    /// Asks for as much of it as so many digests are room for.
    fn ask(&mut self, digests_max: usize) -> WantedPages {
        self.asked_end = match self.digests.len() > digests_max {
            true => self.end.min(self.offset + digests_max as u64 * PAGE_BYTES),
            false => self.end,
        };
        WantedPages {
            path: self.path.clone(),
            offset: self.offset,
            len: self.asked_end.saturating_sub(self.offset),
            digests: self.digests.iter().take(digests_max).copied().collect(),
        }
    }
}

/// Takes pages. Lives through as many connections as they need.
pub(super) struct PageSink {
    tree: NewTree,
    /// What has not arrived.
    missing: VecDeque<MissingPages>,
    /// How many of these the request names.
    asked: usize,
    tar: TarReader,
    /// Where the data goes that comes next.
    open: Option<OpenRun>,
    /// The file that was written last.
    file: Option<(RelativePath, File)>,
    /// Where pages are kept until the old directory may be touched.
    kept: Option<PageKeeper>,
    /// What came of each file that was written, in ascending order.
    written: HashMap<RelativePath, Vec<Range<u64>>>,
    taken_bytes: u64,
    brought_bytes: u64,
    counters: Arc<Counters>,
}

struct OpenRun {
    offset: u64,
    end: u64,
}

impl PageSink {
    pub(super) fn new(
        tree: NewTree,
        missing: Vec<MissingPages>,
        kept: Option<PageKeeper>,
        counters: Arc<Counters>,
    ) -> PageSink {
        PageSink {
            tree,
            missing: missing.into(),
            asked: 0,
            tar: TarReader::default(),
            open: None,
            file: None,
            kept,
            written: HashMap::new(),
            taken_bytes: 0,
            brought_bytes: 0,
            counters,
        }
    }

    /// Whether nothing is missing any more.
    pub(super) fn is_done(&self) -> bool {
        self.missing.is_empty()
    }

    /// How many bytes of files have come.
    pub(super) const fn brought_bytes(&self) -> u64 {
        self.brought_bytes
    }

    /// What came of each file that was written, in ascending order.
    pub(super) fn into_written(self) -> HashMap<RelativePath, Vec<Range<u64>>> {
        self.written
    }

    /// All that was asked for has come: what did not, is there already.
    pub(super) fn answered(&mut self) -> Result<()> {
        self.tar
            .finish()
            .map_err(|fault| CommandError::retry("take pages of the set apart").because(fault))?;
        for _ in 0..self.asked {
            match self.missing.front_mut() {
                Some(front) if front.asked_end < front.end => front.go_to(front.asked_end),
                _ => drop(self.missing.pop_front()),
            }
        }
        self.asked = 0;
        Ok(())
    }

    /// An entry of the stream: it has to be of the next file, or of one behind it.
    fn begin(&mut self, path: &RelativePath, kind: EntryKind) -> Result<()> {
        let EntryKind::File { size, offset } = kind else {
            return Err(refused(path, "a directory came where pages were asked for"));
        };
        while self.asked > 0
            && self
                .missing
                .front()
                .is_some_and(|front| front.path != *path)
        {
            self.missing.pop_front();
            self.asked -= 1;
        }
        let end = offset.saturating_add(size);
        match self.missing.front().filter(|_| self.asked > 0) {
            Some(front) if front.offset <= offset && end <= front.asked_end => {}
            _ => return Err(refused(path, "pages came that were not asked for")),
        }
        self.open = Some(OpenRun { offset, end });
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let (Some(run), Some(front)) = (&mut self.open, self.missing.front_mut()) else {
            return Ok(());
        };
        let path = &front.path;
        match (front.kept_as, &mut self.kept) {
            (Some(number), Some(kept)) => {
                let written = kept.keep(number, run.offset, bytes);
                written.map_err(|error| failed("keep pages of", path, error))?;
            }
            _ => {
                if self.file.as_ref().is_none_or(|(open, _)| open != path) {
                    self.file = Some((path.clone(), self.tree.open_file(path)?));
                }
                if let Some((_, file)) = &self.file {
                    let written = file.write_all_at(bytes, run.offset);
                    written.map_err(|error| failed("write", path, error))?;
                }
                let end = run.offset + bytes.len() as u64;
                note_written(&mut self.written, path, run.offset..end);
            }
        }
        run.offset += bytes.len() as u64;
        self.brought_bytes += bytes.len() as u64;
        // Pages are asked for as a whole.
        let whole = match run.offset == run.end {
            true => run.offset.next_multiple_of(PAGE_BYTES),
            false => run.offset - run.offset % PAGE_BYTES,
        };
        front.go_to(whole);
        Ok(())
    }
}

/// A page that came in part before the connection broke comes again.
fn note_written(
    written: &mut HashMap<RelativePath, Vec<Range<u64>>>,
    path: &RelativePath,
    range: Range<u64>,
) {
    let Some(runs) = written.get_mut(path) else {
        written.insert(path.clone(), vec![range]);
        return;
    };
    match runs.last_mut() {
        Some(last) if last.start <= range.start && range.start <= last.end => {
            last.end = last.end.max(range.end);
        }
        _ => runs.push(range),
    }
}

impl Continued for PageSink {
    fn request(&mut self, of: GetSet) -> FetchRequest {
        self.tar = TarReader::default();
        self.open = None;
        let (mut files, mut left) = (Vec::new(), usize::from(WANTED_DIGESTS_MAX));
        for missing in self.missing.iter_mut().take(usize::from(WANTED_FILES_MAX)) {
            let fits = missing.digests.len() <= left;
            // One that does not fit is begun by a request of its own.
            if !fits && !files.is_empty() {
                break;
            }
            let said = missing.ask(left);
            left -= said.digests.len();
            files.push(said);
            if !fits {
                break;
            }
        }
        self.asked = files.len();
        FetchRequest::Pages(GetPages {
            start: of.start,
            timestamp: of.timestamp,
            compression: of.compression,
            files,
        })
    }

    fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }
}

impl Sink for PageSink {
    fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        Counters::add(&self.counters.read_bytes, bytes.len() as u64);
        self.taken_bytes += bytes.len() as u64;
        loop {
            let step = self.tar.next(&mut bytes).map_err(|fault| {
                CommandError::retry("take pages of the set apart").because(fault)
            })?;
            match step {
                TarStep::Entry(entry) => self.begin(&entry.path, entry.kind)?,
                TarStep::Data(data) => self.data(data)?,
                TarStep::FileEnd => self.open = None,
                TarStep::NeedMore => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::path::Path;

    use walmgr_protocol::names::Lsn;

    use super::*;
    use crate::pg::old_files::BLOCK_BYTES;
    use crate::tar::writer;

    fn missing(path: &str, pages: usize, known: usize) -> MissingPages {
        MissingPages {
            path: path.parse().unwrap(),
            kept_as: None,
            offset: 0,
            end: pages as u64 * PAGE_BYTES,
            digests: vec![7; known].into(),
            asked_end: 0,
        }
    }

    fn sink(root: &Path, files: Vec<MissingPages>) -> PageSink {
        let root = OwnedFd::from(File::open(root).unwrap());
        let mut tree = NewTree::new(root, Vec::new());
        for file in &files {
            let _ = tree.make_file(&file.path, file.path.file_name());
        }
        PageSink::new(tree, files, None, Arc::default())
    }

    fn asked(sink: &mut PageSink) -> Vec<(String, u64, u64, usize)> {
        let set = GetSet {
            start: Lsn(1),
            timestamp: String::new(),
            offset: 0,
            compression: 0,
        };
        let FetchRequest::Pages(pages) = sink.request(set) else {
            panic!("pages are asked for");
        };
        let said = |it: WantedPages| (it.path.to_string(), it.offset, it.len, it.digests.len());
        pages.files.into_iter().map(said).collect()
    }

    fn run(path: &str, offset: u64, bytes: &[u8]) -> Vec<u8> {
        let mut tar = Vec::new();
        writer::put_file(&mut tar, path.as_bytes(), bytes.len() as u64, offset);
        tar.extend_from_slice(bytes);
        tar.resize(tar.len() + writer::padding(bytes.len() as u64), 0);
        tar
    }

    #[test]
    fn fault_228_pages_that_were_not_asked_for_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let page = [1; BLOCK_BYTES];
        let two = || vec![missing("base/1/1", 4, 2), missing("base/1/2", 1, 0)];
        for stream in [
            run("base/1/3", 0, &page),
            run("base/1/1", 3 * PAGE_BYTES, &[page, page].concat()),
            run("base/1/1", 1 << 40, &page),
            [run("base/1/2", 0, &page), run("base/1/1", 0, &page)].concat(),
            [
                run("base/1/1", 2 * PAGE_BYTES, &page),
                run("base/1/1", 0, &page),
            ]
            .concat(),
        ] {
            let mut sink = sink(folder.path(), two());
            assert_eq!(asked(&mut sink).len(), 2);
            let error = sink.append(&stream).unwrap_err().to_string();
            assert!(error.contains("not asked for"), "{error}");
        }
        let mut tar = Vec::new();
        writer::put_directory(&mut tar, b"base/1/1");
        let mut sink = sink(folder.path(), two());
        let _ = asked(&mut sink);
        assert!(sink.append(&tar).is_err());
    }

    #[test]
    fn fault_227_what_has_arrived_is_not_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let files = vec![missing("base/1/1", 4, 4), missing("base/1/2", 3, 0)];
        let mut sink = sink(folder.path(), files);
        let first = asked(&mut sink);
        assert_eq!(first[0], ("base/1/1".to_owned(), 0, 4 * PAGE_BYTES, 4));
        // The connection breaks in the middle of the third page.
        let stream = run("base/1/1", PAGE_BYTES, &[9; 2 * BLOCK_BYTES]);
        sink.append(&stream[..stream.len() - 5000]).unwrap();
        let again = asked(&mut sink);
        assert_eq!(
            again[0],
            ("base/1/1".to_owned(), 2 * PAGE_BYTES, 2 * PAGE_BYTES, 2)
        );
        let rest = run("base/1/2", 0, &[8; 3 * BLOCK_BYTES]);
        let stream = [run("base/1/1", 2 * PAGE_BYTES, &[9; BLOCK_BYTES]), rest].concat();
        sink.append(&[&stream[..], &writer::END].concat()).unwrap();
        sink.answered().unwrap();
        assert!(sink.is_done());
        let found = std::fs::read(folder.path().join("base/1/1")).unwrap();
        assert!(found[BLOCK_BYTES..].iter().all(|byte| *byte == 9));
        assert_eq!(found.len() as u64, 3 * PAGE_BYTES);
    }

    #[test]
    fn a_long_file_is_asked_for_in_pieces_and_nothing_of_it_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let most = usize::from(WANTED_DIGESTS_MAX);
        let pages = 2 * most + 5;
        let files = vec![
            missing("base/1/1", 2, 2),
            missing("base/1/2", pages, pages),
            missing("base/1/3", 1, 0),
        ];
        let mut sink = sink(folder.path(), files);
        let mut said = Vec::new();
        while !sink.is_done() {
            let files = asked(&mut sink);
            assert!(files.iter().map(|(.., digests)| digests).sum::<usize>() <= most);
            said.extend(files);
            sink.append(&writer::END).unwrap();
            sink.answered().unwrap();
        }
        let covered = |name: &str| -> u64 {
            let of = said.iter().filter(|(path, ..)| path == name);
            of.map(|(_, _, len, _)| len / PAGE_BYTES).sum()
        };
        assert_eq!(covered("base/1/2"), pages as u64, "{said:?}");
        assert_eq!((covered("base/1/1"), covered("base/1/3")), (2, 1));
    }
}
