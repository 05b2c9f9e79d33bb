//! What each copy of a configuration file was when its backup was sealed: `config_backup/.walmgr-checksums`.
//! Never judges a file that is not listed. Invariant: wherever a swap is cut, each file is one that the list
//! names, so a crash is never taken for damage.
//!
//! ```text
//! 89ABCDEF 812 pg_hba.conf          CRC-32 (zlib) and length in bytes of a copy
//! 0F1E2D3C 23104 postgresql.conf
//! check 01234567                    CRC-32 of the lines above
//! ```
//!
//! While files are swapped in, a name has two lines: as it was, and as it will be. A list that is absent, torn
//! or flipped says nothing, as for folders that were filled by hand.

use std::io::{self};
use std::path::{Path, PathBuf};

use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;

use crate::files;

/// The list's name. `restore` brings it nowhere.
pub const LIST_NAME: &str = ".walmgr-checksums";

/// Two lines for each of the files that a backup may bring, and room for their names.
const LIST_BYTES_MAX: u64 = 64 << 10;

/// A copy holds passwords at times.
const MODE: u32 = 0o600;

/// The copies in one folder.
#[derive(Debug)]
pub struct ConfigCopies {
    folder: PathBuf,
    lines: Vec<CopyLine>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct CopyLine {
    name: String,
    len: u64,
    crc32: u32,
}

impl CopyLine {
    fn of(name: &str, content: &[u8]) -> CopyLine {
        CopyLine {
            name: name.to_owned(),
            len: content.len() as u64,
            crc32: crc32fast::hash(content),
        }
    }
}

impl ConfigCopies {
    /// Reads the list of a folder, which need not be there.
    pub fn read(folder: &Path) -> ConfigCopies {
        let text = files::read_at_most(&folder.join(LIST_NAME), LIST_BYTES_MAX);
        ConfigCopies {
            folder: folder.to_path_buf(),
            lines: text.ok().and_then(|text| parse(&text)).unwrap_or_default(),
        }
    }

    /// What is wrong with the content of this file, as a sentence; `None` if it is the one, or not listed.
    pub fn contradicts(&self, name: &str, content: &[u8]) -> Option<String> {
        let mut lines = self
            .lines
            .iter()
            .filter(|line| line.name == name)
            .peekable();
        lines.peek()?;
        let found = CopyLine::of(name, content);
        let is_listed = lines.any(|line| *line == found);
        (!is_listed).then(|| {
            format!(
                "{} differs from its checksum in {LIST_NAME}",
                self.folder.join(name).display()
            )
        })
    }

    /// The first damage among the files that are listed.
    pub fn damage(&self) -> Option<String> {
        self.lines.iter().find_map(|line| {
            let path = self.folder.join(&line.name);
            match files::read_at_most(&path, SMALL_FILE_BYTES_MAX) {
                Ok(content) => self.contradicts(&line.name, &content),
                Err(error) => Some(format!("{} cannot be read: {error}", path.display())),
            }
        })
    }

    /// Puts a file in the place of its older copy.
    pub fn swap_in(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        let line = CopyLine::of(name, content);
        // A name that could not be read back has no line.
        let is_plain = !name.chars().any(char::is_control);
        let settled = |line: &CopyLine| line.name != name;
        if is_plain && !self.lines.is_empty() && !self.lines.contains(&line) {
            self.lines.push(line.clone());
            self.write()?;
        }
        files::replace(&path, content, MODE)?;
        self.lines.retain(settled);
        if is_plain {
            self.lines.push(line);
        }
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        self.lines.sort();
        files::replace(
            &self.folder.join(LIST_NAME),
            text(&self.lines).as_bytes(),
            MODE,
        )
    }
}

fn text(lines: &[CopyLine]) -> String {
    let lines = lines.iter();
    let mut text: String = lines
        .map(|line| format!("{:08X} {} {}\n", line.crc32, line.len, line.name))
        .collect();
    let check = crc32fast::hash(text.as_bytes());
    text += &format!("check {check:08X}\n");
    text
}

/// Sound only if every byte of it is what would be written.
fn parse(content: &[u8]) -> Option<Vec<CopyLine>> {
    let told = std::str::from_utf8(content).ok()?;
    let (above, _) = told.rsplit_once("check ")?;
    let lines = above.lines().map(|line| {
        let mut words = line.splitn(3, ' ');
        Some(CopyLine {
            crc32: u32::from_str_radix(words.next()?, 16).ok()?,
            len: words.next()?.parse().ok()?,
            name: words.next()?.to_owned(),
        })
    });
    let lines: Vec<CopyLine> = lines.collect::<Option<_>>()?;
    (text(&lines) == told).then_some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 3] = ["pg_hba.conf", "postgresql.conf", "a name with spaces"];

    fn filled() -> (tempfile::TempDir, ConfigCopies) {
        let home = tempfile::tempdir().unwrap();
        let mut copies = ConfigCopies::read(&home.path().join("kept"));
        for (at, name) in NAMES.into_iter().enumerate() {
            copies.swap_in(name, &vec![b'#'; at * 10 + 1]).unwrap();
        }
        (home, copies)
    }

    #[test]
    fn fault_107_a_copy_of_a_configuration_file_is_the_one_that_was_sealed() {
        let (_home, mut copies) = filled();
        let folder = copies.folder.clone();
        let damage = || ConfigCopies::read(&folder).damage();
        assert_eq!(damage(), None);
        copies.swap_in(NAMES[1], b"port = 5433\n").unwrap();
        assert_eq!(damage(), None);
        let path = folder.join(NAMES[1]);
        for spoilt in [&b"port = 5432\n"[..], b"port = 5433", b""] {
            std::fs::write(&path, spoilt).unwrap();
            assert!(damage().unwrap().contains(NAMES[1]), "{:?}", damage());
        }
        std::fs::remove_file(&path).unwrap();
        assert!(damage().unwrap().contains("cannot be read"));
        // What nobody listed is nobody's damage.
        assert_eq!(copies.contradicts("pg_ident.conf", b"x"), None);
        std::fs::remove_file(folder.join(LIST_NAME)).unwrap();
        assert_eq!(damage(), None);
    }

    #[test]
    fn fault_107_a_swap_that_is_cut_leaves_no_damage() {
        let (_home, mut copies) = filled();
        let folder = copies.folder.clone();
        // Cut behind the first step, which lists both, and behind the second.
        copies.lines.push(CopyLine::of(NAMES[0], b"new"));
        copies.write().unwrap();
        assert_eq!(ConfigCopies::read(&folder).damage(), None);
        std::fs::write(folder.join(NAMES[0]), "new").unwrap();
        let mut again = ConfigCopies::read(&folder);
        assert_eq!(again.damage(), None);
        again.swap_in(NAMES[0], b"newer").unwrap();
        let lines = ConfigCopies::read(&folder).lines;
        assert_eq!(lines.len(), NAMES.len());
    }

    #[test]
    fn fault_107_a_list_with_a_flipped_bit_says_nothing() {
        let (_home, copies) = filled();
        let written = text(&copies.lines).into_bytes();
        assert_eq!(parse(&written).as_ref(), Some(&copies.lines));
        for bit in 0..written.len() * 8 {
            let mut flipped = written.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&flipped), None, "bit {bit}");
        }
        for len in 0..written.len() {
            assert_eq!(parse(&written[..len]), None);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&text);
        }
    }
}
