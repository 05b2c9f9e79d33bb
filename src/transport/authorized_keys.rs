//! The receiver's list of the keys it knows: one `SHA256:... NAME [rights]` a line.
//! Never reads a list that somebody else could have written. Invariant: a fingerprint and a name
//! stand in it once at most, so that what a name may do has one answer and `revoke` leaves nothing.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;

use super::identity::Fingerprint;

/// Longest list that is read: some two thousand keys, few enough to compare each with each.
const FILE_BYTES_MAX: u64 = 128 << 10;

/// Longest name of a key: it stands in every line of the log about this peer.
const NAME_BYTES_MAX: usize = 64;

/// A change of the list takes milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Every right, in the order they are written in.
const RIGHTS: [Right; 4] = [Right::Push, Right::Backup, Right::Read, Right::Failover];

/// One thing that a holder of a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// Add WAL files and records.
    Push,
    /// Add backup sets.
    Backup,
    /// Fetch WAL and backup sets.
    Read,
    /// Have readers follow a timeline that leaves another before its acknowledged end.
    Failover,
}

impl fmt::Display for Right {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Right::Push => "push",
            Right::Backup => "backup",
            Right::Read => "read",
            Right::Failover => "failover",
        })
    }
}

/// What the holder of a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Add WAL files and records.
    pub push: bool,
    /// Add backup sets.
    pub backup: bool,
    /// Fetch WAL and backup sets.
    pub read: bool,
    /// Decide where a timeline ends, as a member of a cluster that chooses its leader by itself has to.
    pub failover: bool,
}

impl Default for Rights {
    /// What a master needs from day to day.
    fn default() -> Self {
        Rights::DAILY
    }
}

impl Rights {
    /// What a master needs from day to day, and what a peer has on a plain connection.
    pub(crate) const DAILY: Rights = Rights {
        push: true,
        backup: true,
        read: true,
        failover: false,
    };

    const NONE: Rights = Rights {
        push: false,
        backup: false,
        read: false,
        failover: false,
    };

    /// Whether its holder may ask how the archive stands. Whoever adds something has to know that
    /// as well as whoever fetches.
    pub(crate) const fn any(self) -> bool {
        self.push || self.backup || self.read
    }

    /// Whether this right is among them.
    pub(crate) const fn has(self, right: Right) -> bool {
        match right {
            Right::Push => self.push,
            Right::Backup => self.backup,
            Right::Read => self.read,
            Right::Failover => self.failover,
        }
    }

    /// Whether these are all there are in `others`, or more.
    pub(crate) fn cover(self, others: Rights) -> bool {
        RIGHTS
            .iter()
            .all(|right| self.has(*right) || !others.has(*right))
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for right in RIGHTS.iter().filter(|right| self.has(**right)) {
            write!(out, "{separator}{right}")?;
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for Rights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut rights = Rights::NONE;
        for word in text.split(',') {
            let granted = match word {
                "push" => &mut rights.push,
                "backup" => &mut rights.backup,
                "read" => &mut rights.read,
                "failover" => &mut rights.failover,
                _ => {
                    return Err(format!(
                        "{word:?} is not a right; the rights are push, backup, read and failover, separated \
                        by commas without spaces"
                    ));
                }
            };
            if std::mem::replace(granted, true) {
                return Err(format!("the right {word} is given twice"));
            }
        }
        if rights.failover && !rights.push {
            return Err(
                "the right failover is about what push adds: give push,failover".to_owned(),
            );
        }
        Ok(rights)
    }
}

/// One key of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuthorizedKey {
    /// Of the key its holder must prove.
    pub fingerprint: Fingerprint,
    /// What the operator calls its holder: letters, digits, `.`, `_`, `-` and `@`.
    pub name: String,
    /// What its holder may do.
    pub rights: Rights,
}

impl fmt::Display for AuthorizedKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {}", self.fingerprint, self.name, self.rights)
    }
}

/// A line that does not say who may do what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub(crate) struct BadLine {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

impl BadLine {
    pub(super) fn of(&self, path: &Path) -> CommandError {
        let place = format!("{}, line {}: {}", path.display(), self.line, self.why);
        CommandError::config(place)
    }
}

/// What became of a key that was to be authorized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authorized {
    /// It has a line of its own now.
    New,
    /// Exactly this line was there.
    Already,
    /// It was there with these rights.
    InsteadOf(Rights),
}

/// The whole list, comments and blank lines included.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuthorizedKeys {
    lines: Vec<KeyLine>,
}

#[derive(Debug, Clone)]
struct KeyLine {
    text: String,
    key: Option<AuthorizedKey>,
}

impl AuthorizedKeys {
    /// Reads the list; a file that is not there is a list of nobody.
    ///
    /// Refuses a file that belongs to another user or that group or others can write.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let Some(content) = read_list(path)? else {
            return Ok(Self::default());
        };
        text_of(&content).and_then(Self::parse).map_err(|bad| {
            bad.of(path)
                .hint("a line is: SHA256:... NAME [push,backup,read,failover]")
        })
    }

    /// Reads a list from memory.
    pub(crate) fn parse(text: &str) -> Result<Self, BadLine> {
        let mut list = AuthorizedKeys::default();
        for (index, text) in text.split_terminator('\n').enumerate() {
            let bad = |why: String| BadLine {
                line: index + 1,
                why,
            };
            let key = parse_line(text).map_err(bad)?;
            if let Some(key) = &key {
                list.refuse_duplicate(key).map_err(bad)?;
            }
            list.lines.push(KeyLine {
                text: text.to_owned(),
                key,
            });
        }
        Ok(list)
    }

    /// The entry of this key.
    pub(crate) fn lookup(&self, fingerprint: &Fingerprint) -> Option<&AuthorizedKey> {
        self.keys().find(|key| key.fingerprint == *fingerprint)
    }

    /// Every key, in the order of the file.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &AuthorizedKey> {
        self.lines.iter().filter_map(|line| line.key.as_ref())
    }

    /// Adds a key, or gives a known one other rights.
    ///
    /// A fingerprint under another name, or a name of another key, is an error: the operator
    /// revokes it first, so that no old key stays behind unnoticed.
    pub(crate) fn authorize(
        &mut self,
        fingerprint: Fingerprint,
        name: &str,
        rights: Rights,
    ) -> Result<Authorized> {
        let name = parse_name(name).map_err(CommandError::usage)?;
        let key = AuthorizedKey {
            fingerprint,
            name,
            rights,
        };
        for line in &mut self.lines {
            let Some(known) = &line.key else { continue };
            if (known.fingerprint, &known.name) == (key.fingerprint, &key.name) {
                let before = known.rights;
                if before == rights {
                    return Ok(Authorized::Already);
                }
                line.text = key.to_string();
                line.key = Some(key);
                return Ok(Authorized::InsteadOf(before));
            }
        }
        self.refuse_duplicate(&key).map_err(|why| {
            let known = self.keys().find(|known| known.fingerprint == fingerprint);
            let old = known.map_or(&key.name, |known| &known.name);
            CommandError::config(why).hint(format!("run `walmgr STANDBY.ini revoke {old}` first"))
        })?;
        self.lines.push(KeyLine {
            text: key.to_string(),
            key: Some(key),
        });
        Ok(Authorized::New)
    }

    /// Removes the key of this name and returns it.
    pub(crate) fn revoke(&mut self, name: &str) -> Option<AuthorizedKey> {
        let named = |line: &KeyLine| line.key.as_ref().is_some_and(|key| key.name == name);
        let index = self.lines.iter().position(named)?;
        self.lines.remove(index).key
    }

    /// Writes the list in one step: a receiver that reads it meanwhile sees the old or the new.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        files::replace(path, self.to_string().as_bytes(), 0o600).at_setting("write", path)
    }

    /// Until the answer is dropped, nobody else who asks may change the list: of two who read it,
    /// add a line and write it, one would lose the other's.
    pub(crate) fn lock(path: &Path) -> Result<File> {
        files::lock_folder_of(path, LOCK_PATIENCE)
    }

    fn refuse_duplicate(&self, key: &AuthorizedKey) -> Result<(), String> {
        for known in self.keys() {
            if known.fingerprint == key.fingerprint {
                let (fingerprint, name) = (known.fingerprint, &known.name);
                return Err(format!("{fingerprint} is authorized already, as {name}"));
            }
            if known.name == key.name {
                let (fingerprint, name) = (known.fingerprint, &known.name);
                return Err(format!("{name} is the name of another key, {fingerprint}"));
            }
        }
        Ok(())
    }
}

impl fmt::Display for AuthorizedKeys {
    /// The file: untouched lines byte for byte as they were read.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(out, "{}", line.text)?;
        }
        Ok(())
    }
}

/// The bytes of a list of peers; `None` for a file that is not there.
///
/// Refuses a file that belongs to another user or that group or others can write.
pub(super) fn read_list(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match files::open_at_once(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at(Kind::Config, "open", path),
    };
    refuse_foreign_hands(&file, path)?;
    let content = files::read_whole(&file, FILE_BYTES_MAX).at(Kind::Config, "read", path)?;
    content.map(Some).ok_or_else(|| {
        let text = format!("{} is longer than {FILE_BYTES_MAX} bytes", path.display());
        CommandError::config(text)
    })
}

/// A list as text, or the line that is none.
pub(super) fn text_of(content: &[u8]) -> Result<&str, BadLine> {
    std::str::from_utf8(content).map_err(|error| {
        let before = &content[..error.valid_up_to()];
        BadLine {
            line: before.split(|byte| *byte == b'\n').count(),
            why: "not UTF-8 text".to_owned(),
        }
    })
}

fn parse_line(text: &str) -> Result<Option<AuthorizedKey>, String> {
    let text = text.trim_ascii();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let mut words = text.split_ascii_whitespace();
    let fingerprint = words.next().unwrap_or_default();
    let fingerprint = fingerprint
        .parse()
        .map_err(|error| format!("{error}; found {:?}", shortened(fingerprint)))?;
    let name = words
        .next()
        .ok_or("the name after the fingerprint is missing")?;
    let name = parse_name(name)?;
    let rights = words.next().map(str::parse).transpose()?;
    if let Some(word) = words.next() {
        return Err(format!("{:?} after the rights", shortened(word)));
    }
    Ok(Some(AuthorizedKey {
        fingerprint,
        name,
        rights: rights.unwrap_or_default(),
    }))
}

fn parse_name(name: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "{:?} is no name for a key: 1 to {NAME_BYTES_MAX} letters, digits, '.', '_', '-' or '@'",
        shortened(name)
    ))
}

pub(super) fn shortened(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX).collect()
}

/// Asks the open file, so that nothing can be swapped in between. A symlink is followed: what
/// counts is who can write what it leads to.
fn refuse_foreign_hands(file: &File, path: &Path) -> Result<()> {
    let metadata = file.metadata().at(Kind::Config, "examine", path)?;
    let path = path.display();
    let we = rustix::process::geteuid().as_raw();
    if !metadata.is_file() {
        return Err(CommandError::config(format!(
            "{path} is not a regular file"
        )));
    }
    if metadata.uid() != we && metadata.uid() != 0 {
        let owner = metadata.uid();
        let text = format!("{path} belongs to user {owner}, but walmgr runs as user {we}");
        return Err(CommandError::config(text)
            .hint("run walmgr as the file's owner, or give the file to walmgr's user"));
    }
    if metadata.mode() & 0o022 != 0 {
        let mode = metadata.mode() & 0o7777;
        let text = format!("{path} can be written by others (mode {mode:04o})");
        return Err(CommandError::config(text)
            .hint(format!("check its lines, then run `chmod go-w {path}`")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fingerprint(byte: u8) -> Fingerprint {
        Fingerprint([byte; 32])
    }

    fn why(text: &str) -> BadLine {
        AuthorizedKeys::parse(text).unwrap_err()
    }

    #[test]
    fn a_line_without_rights_may_push_back_up_and_read() {
        let text = format!("{} db1\n{} ops backup", fingerprint(1), fingerprint(2));
        let list = AuthorizedKeys::parse(&text).unwrap();
        let master = list.lookup(&fingerprint(1)).unwrap();
        assert_eq!(
            (master.name.as_str(), master.rights),
            ("db1", Rights::default())
        );
        let ops = list.lookup(&fingerprint(2)).unwrap().rights;
        assert_eq!(ops.to_string(), "backup");
        assert!(list.lookup(&fingerprint(3)).is_none());
    }

    #[test]
    fn rewriting_keeps_comments_blanks_and_spacing() {
        let before = format!(
            "# masters\r\n\n  {}\tdb1   push,read  \n# old: db2\n{} db3 read\n",
            fingerprint(1),
            fingerprint(3)
        );
        let mut list = AuthorizedKeys::parse(&before).unwrap();
        assert_eq!(list.to_string(), before);
        let added = list.authorize(fingerprint(4), "db4", Rights::default());
        assert_eq!(added.unwrap(), Authorized::New);
        assert_eq!(list.revoke("db3").unwrap().fingerprint, fingerprint(3));
        let line = |byte| format!("{} db{byte}", fingerprint(byte));
        let after = before.replace(&format!("{} read\n", line(3)), "")
            + &format!("{} push,backup,read\n", line(4));
        assert_eq!(list.to_string(), after);
        assert!(list.revoke("db3").is_none());
    }

    #[test]
    fn authorizing_again_may_change_the_rights_and_nothing_else() {
        let text = format!("# one\n{} db1\n# two\n", fingerprint(1));
        let mut list = AuthorizedKeys::parse(&text).unwrap();
        let rights = Rights::default();
        let again = list.authorize(fingerprint(1), "db1", rights).unwrap();
        assert_eq!(again, Authorized::Already);
        assert_eq!(list.to_string(), text);
        let renamed = list.authorize(fingerprint(1), "db2", rights).unwrap_err();
        let renamed = renamed.to_string();
        assert!(
            renamed.contains("is authorized already, as db1"),
            "{renamed}"
        );
        assert!(renamed.contains("revoke db1` first"), "{renamed}");
        assert!(list.authorize(fingerprint(2), "db1", rights).is_err());
        assert!(list.authorize(fingerprint(2), "db 2", rights).is_err());
        let fewer = "push,read".parse().unwrap();
        let changed = list.authorize(fingerprint(1), "db1", fewer).unwrap();
        assert_eq!(changed, Authorized::InsteadOf(rights));
        let after = format!("# one\n{} db1 push,read\n# two\n", fingerprint(1));
        assert_eq!(list.to_string(), after);
    }

    #[test]
    fn a_bad_line_is_named_with_file_and_number() {
        let one = fingerprint(1);
        let two = fingerprint(2);
        assert_eq!(why("# a\n\nSHA256:short db1").line, 3);
        assert!(why(&format!("{one}")).why.contains("name"));
        assert!(why(&format!("{one} d/b")).why.contains("no name"));
        assert!(
            why(&format!("{one} db1 write"))
                .why
                .contains("push, backup, read and failover")
        );
        assert!(
            why(&format!("{one} db1 push,,read"))
                .why
                .contains("not a right")
        );
        assert!(why(&format!("{one} db1 push,push")).why.contains("twice"));
        assert!(
            why(&format!("{one} db1 push read"))
                .why
                .contains("after the rights")
        );
        let duplicate = why(&format!("{one} db1\n{one} db2"));
        assert_eq!(duplicate.line, 2);
        assert!(duplicate.why.contains("as db1"));
        assert!(
            why(&format!("{one} db1\n{two} db1"))
                .why
                .contains("another key")
        );

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorized_keys");
        std::fs::write(&path, b"# a\n# \xff\n").unwrap();
        let error = AuthorizedKeys::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("authorized_keys, line 2: not UTF-8"),
            "{error}"
        );
    }

    #[test]
    fn a_fifo_as_list_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorized_keys");
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
        let refusal = read_list(&path).unwrap_err().to_string();
        assert!(refusal.contains("not a regular file"), "{refusal}");
    }

    #[test]
    fn a_saved_list_is_private_and_loads_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorized_keys");
        let mut list = AuthorizedKeys::load(&path).unwrap();
        assert_eq!(list.keys().count(), 0);
        list.authorize(fingerprint(1), "db1", Rights::default())
            .unwrap();
        list.save(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o600);
        let again = AuthorizedKeys::load(&path).unwrap();
        assert_eq!(again.to_string(), list.to_string());
    }

    #[test]
    fn fault_95_a_list_that_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorized_keys");
        for (mode, accepted) in [(0o644, true), (0o600, true), (0o620, false), (0o602, false)] {
            std::fs::write(&path, "# nobody\n").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(AuthorizedKeys::load(&path).is_ok(), accepted, "{mode:o}");
        }
        assert!(AuthorizedKeys::load(folder.path()).is_err());
    }
}
