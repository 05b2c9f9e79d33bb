//! A server's line in `~/.pgpass`, added and taken out: text to text, and the file around it.
//! Never changes another line, and never prints a password. Invariant: once a line was added, libpq finds its password
//! for that server, since it stands before every other line that fits.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::geteuid;

use super::password::of_line;
use super::{Conninfo, FILE_MAX_BYTES};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;

/// What streaming replication has as the database, in `.pgpass` as in `pg_hba.conf`.
const REPLICATION: &str = "replication";

/// Whoever else edits the file needs no longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// libpq reads whole lines since 13, but no password is that long.
const PASSWORD_BYTES_MAX: usize = 4 << 10;

/// What a line is for: host, port, database, user.
type PasswordFields = [String; 4];

/// The lines of a server to stream from, one for each spelling of each of its hosts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PasswordLines {
    file: PathBuf,
    fields: Vec<PasswordFields>,
}

/// What was done to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PasswordEdit {
    /// It was as it had to be.
    Unchanged,
    /// It was replaced.
    Changed,
}

impl PasswordLines {
    /// Those of the servers that this connection string names, for streaming.
    pub(crate) fn of(conninfo: &Conninfo) -> Result<PasswordLines> {
        let file = conninfo.password_file.clone();
        let file = file.ok_or_else(|| CommandError::config("this user has no home for .pgpass"))?;
        let mut fields: Vec<PasswordFields> = Vec::new();
        for place in &conninfo.places {
            let [hosts, ports, databases, users] = conninfo.wanted(place, REPLICATION);
            for host in hosts {
                let line = [&host, &ports[0], &databases[0], &users[0]].map(String::clone);
                if line.iter().any(|field| field.contains(['\n', '\r', '\0'])) {
                    let doing = "a line break in a connection string cannot stand in .pgpass";
                    return Err(CommandError::config(doing));
                }
                if !fields.contains(&line) {
                    fields.push(line);
                }
            }
        }
        Ok(PasswordLines { file, fields })
    }

    /// The file.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// The lines without what is secret.
    pub(crate) fn in_words(&self) -> String {
        let line = |fields: &PasswordFields| format!("{}:***", written(fields));
        let lines: Vec<String> = self.fields.iter().map(line).collect();
        lines.join(", ")
    }

    /// Has the file give this password to the servers.
    pub(crate) fn add(&self, password: &[u8]) -> Result<PasswordEdit> {
        check_password(password)?;
        self.edit(|text| {
            let added = |text: Vec<u8>, fields| with_line(&text, fields, password);
            self.fields.iter().fold(text.to_vec(), added)
        })
    }

    /// Takes the servers' own lines out, and no other that fits them as well.
    pub(crate) fn remove(&self) -> Result<PasswordEdit> {
        self.edit(|text| {
            let removed = |text: Vec<u8>, fields| without_line(&text, fields);
            self.fields.iter().fold(text.to_vec(), removed)
        })
    }

    /// The fields of each line as the file has them, and the whole line with this password.
    pub(super) fn each_written(&self, password: &[u8]) -> Vec<(String, Vec<u8>)> {
        let written = |fields| (written(fields), line_of(fields, password));
        self.fields.iter().map(written).collect()
    }

    /// The fields of each line as the file has them.
    pub(crate) fn each_fields(&self) -> Vec<String> {
        self.fields.iter().map(written).collect()
    }

    fn edit(&self, change: impl Fn(&[u8]) -> Vec<u8>) -> Result<PasswordEdit> {
        edit(&self.file, change)
    }
}

/// The lines of a file of passwords, without their ends; none where there is no file.
pub(super) fn lines_in(file: &Path) -> Result<Vec<Vec<u8>>> {
    let text = match super::read_file(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.at(Kind::Config, "read", file)?,
    };
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines.map(<[u8]>::to_vec).collect())
}

pub(super) fn edit(file: &Path, change: impl Fn(&[u8]) -> Vec<u8>) -> Result<PasswordEdit> {
    let _alone = files::lock_folder_of(file, PATIENCE)?;
    let text = match std::fs::metadata(file) {
        Ok(found) if found.uid() != geteuid().as_raw() => {
            let owner = files::user_name(found.uid());
            let owner = owner.unwrap_or_else(|| format!("user {}", found.uid()));
            return Err(CommandError::config(format!(
                "{} belongs to {owner}, whose file it is to change",
                file.display()
            )));
        }
        Ok(_) => super::read_file(file).at(Kind::Config, "read", file)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).at(Kind::Config, "examine", file),
    };
    let edited = change(&text);
    if edited.len() as u64 > FILE_MAX_BYTES {
        let doing = format!("{} would be too long", file.display());
        return Err(CommandError::config(doing));
    }
    if edited == text {
        return Ok(PasswordEdit::Unchanged);
    }
    // libpq ignores a file that others may read, and its successor gets the mode that it has.
    if file.exists() {
        rustix::fs::chmod(file, Mode::from_raw_mode(0o600))
            .map_err(std::io::Error::from)
            .at(Kind::Config, "close to others", file)?;
    }
    files::replace(file, &edited, 0o600).at(Kind::Config, "write", file)?;
    Ok(PasswordEdit::Changed)
}

/// The password in a file that has it on its first line.
pub(crate) fn password_in(file: &Path) -> Result<Vec<u8>> {
    let text = super::read_file(file).at(Kind::Config, "read", file)?;
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let password = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
    let found = check_password(&password);
    found.map_err(|error| {
        let hint = format!("write the password on the first line of {}", file.display());
        error.hint(hint)
    })?;
    Ok(password)
}

fn check_password(password: &[u8]) -> Result<()> {
    let wrong = match password {
        [] => "the password is empty",
        _ if password.len() > PASSWORD_BYTES_MAX => "the password is too long",
        _ if password.iter().any(|byte| b"\n\r\0".contains(byte)) => {
            "the password has a byte that cannot stand in .pgpass"
        }
        _ => return Ok(()),
    };
    Err(CommandError::config(wrong))
}

/// The text in which a line gives this password to the server; unchanged if it does already.
fn with_line(text: &[u8], fields: &PasswordFields, password: &[u8]) -> Vec<u8> {
    let wanted = fields.each_ref().map(|field| vec![field.clone()]);
    let mut lines = lines_of(text);
    let fits = |line: &&[u8]| of_line(line, &wanted);
    if lines.iter().find_map(fits).as_deref() == Some(password) {
        return text.to_vec();
    }
    let mut line = line_of(fields, password);
    line.push(b'\n');
    let before = lines
        .iter()
        .position(|line| of_line(line, &wanted).is_some());
    lines.retain(|line| !is_line_of(line, fields));
    // What went from before it were lines of the same server, and that was the first of all.
    let at = before.unwrap_or(lines.len()).min(lines.len());
    let (first, last) = lines.split_at(at);
    let mut edited = first.concat();
    if !edited.is_empty() && !edited.ends_with(b"\n") {
        edited.push(b'\n');
    }
    edited.extend(line);
    edited.extend(last.concat());
    edited
}

fn line_of(fields: &PasswordFields, password: &[u8]) -> Vec<u8> {
    let mut line = written(fields).into_bytes();
    line.push(b':');
    line.extend(escaped(password));
    line
}

/// The text without the lines that are this server's alone.
fn without_line(text: &[u8], fields: &PasswordFields) -> Vec<u8> {
    let mut lines = lines_of(text);
    lines.retain(|line| !is_line_of(line, fields));
    lines.concat()
}

/// With their ends.
fn lines_of(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').collect()
}

/// Whether a line has these fields; one with a `*` has others.
fn is_line_of(line: &[u8], fields: &PasswordFields) -> bool {
    let mut rest = line;
    for field in fields {
        let mut found = Vec::new();
        let mut is_any = rest.starts_with(b"*:");
        loop {
            match rest {
                [b'\\', letter, left @ ..] => {
                    found.push(*letter);
                    rest = left;
                }
                [b':', left @ ..] => {
                    rest = left;
                    break;
                }
                [letter, left @ ..] => {
                    found.push(*letter);
                    rest = left;
                }
                [] => return false,
            }
        }
        is_any |= found != field.as_bytes();
        if is_any {
            return false;
        }
    }
    !line.starts_with(b"#")
}

/// The four fields as a line has them.
fn written(fields: &PasswordFields) -> String {
    let field = |field: &String| match field.as_str() {
        // A bare one would stand for everything.
        "*" => "\\*".to_owned(),
        field => String::from_utf8_lossy(&escaped(field.as_bytes())).into_owned(),
    };
    fields.each_ref().map(field).join(":")
}

fn escaped(text: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text {
        if b":\\".contains(byte) {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

/// What must hold for every file, for [`crate::pg::fuzzing`].
pub(super) fn check_edits(text: &[u8]) {
    let fields = ["x", "5432", REPLICATION, "a:b\\c"].map(str::to_owned);
    let wanted = fields.each_ref().map(|field| vec![field.clone()]);
    let password: &[u8] = b"s:e\\cret";
    let added = with_line(text, &fields, password);
    let found = lines_of(&added)
        .into_iter()
        .find_map(|line| of_line(line, &wanted));
    assert_eq!(found.as_deref(), Some(password));
    assert_eq!(with_line(&added, &fields, password), added);
    let removed = without_line(&added, &fields);
    assert_eq!(without_line(&removed, &fields), removed);
    let others = |text: &[u8]| -> Vec<Vec<u8>> {
        let lines = lines_of(text)
            .into_iter()
            .filter(|line| !is_line_of(line, &fields));
        let bare = |line: &[u8]| line.strip_suffix(b"\n").unwrap_or(line).to_vec();
        lines.map(bare).collect()
    };
    assert_eq!(others(&removed), others(text), "another line changed");
    assert_eq!(others(&added), others(text), "another line changed");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::super::{Environment, parse};
    use super::*;

    fn fields() -> PasswordFields {
        ["db1", "5432", REPLICATION, "rep"].map(str::to_owned)
    }

    fn added(text: &str) -> String {
        String::from_utf8(with_line(text.as_bytes(), &fields(), b"new")).unwrap()
    }

    #[test]
    fn a_line_is_added_replaced_or_left_and_others_stay() {
        let own = "db1:5432:replication:rep:new\n";
        for (before, after) in [
            ("", own.to_owned()),
            ("a:1:b:c:d\n", format!("a:1:b:c:d\n{own}")),
            ("a:1:b:c:d", format!("a:1:b:c:d\n{own}")),
            (own, own.to_owned()),
            ("db1:5432:replication:rep:old\n", own.to_owned()),
            (
                "#x\ndb1:5432:replication:rep:old\r\n\nz:1:b:c:d\n",
                format!("#x\n{own}\nz:1:b:c:d\n"),
            ),
            // One that fits everything, and has another password, would be found first.
            (
                "a:1:b:c:d\n*:*:*:*:old\nz:1:b:c:d",
                format!("a:1:b:c:d\n{own}*:*:*:*:old\nz:1:b:c:d"),
            ),
            ("*:*:*:rep:new\n", "*:*:*:rep:new\n".to_owned()),
            (
                "*:*:*:*:old\ndb1:5432:replication:rep:new\n",
                format!("{own}*:*:*:*:old\n"),
            ),
            (
                "#db1:5432:replication:rep:old\n",
                format!("#db1:5432:replication:rep:old\n{own}"),
            ),
        ] {
            assert_eq!(added(before), after, "{before:?}");
            assert_eq!(added(&after), after, "{before:?}");
        }
    }

    #[test]
    fn only_the_servers_own_lines_are_taken_out() {
        let text = "a:1:b:c:d\ndb1:5432:replication:rep:x\n*:*:*:*:y\n#db1:5432:replication:rep:x\n\
            db1:5432:replication:re\\p:x\ndb1:5432:app:rep:x\ndb1:5432:replication";
        let left = without_line(text.as_bytes(), &fields());
        assert_eq!(
            String::from_utf8(left).unwrap(),
            "a:1:b:c:d\n*:*:*:*:y\n#db1:5432:replication:rep:x\ndb1:5432:app:rep:x\ndb1:5432:replication"
        );
    }

    #[test]
    fn the_other_fields_come_from_the_connection_string() {
        let home = tempfile::tempdir().unwrap();
        let environment =
            Environment::default().with_variable("HOME", home.path().to_str().unwrap());
        let lines = |text: &str| {
            let conninfo = parse(text, &environment).unwrap();
            PasswordLines::of(&conninfo).unwrap()
        };
        let both = lines("host=db1,::1 port=5433 user=re:p dbname=app");
        assert_eq!(
            both.in_words(),
            "db1:5433:replication:re\\:p:***, \\:\\:1:5433:replication:re\\:p:***"
        );
        assert_eq!(both.file(), home.path().join(".pgpass"));
        let file = lines("postgresql://rep@db1/app?passfile=/x/pass");
        assert_eq!(file.file(), Path::new("/x/pass"));
        assert_eq!(file.in_words(), "db1:5432:replication:rep:***");
    }

    #[test]
    fn fault_168_the_file_is_private_whole_and_another_users_stays() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("dotfiles");
        let link = home.path().join(".pgpass");
        std::fs::write(&file, "a:1:b:c:d\n").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let lines = PasswordLines {
            file: link.clone(),
            fields: vec![fields()],
        };
        assert_eq!(lines.add(b"new").unwrap(), PasswordEdit::Changed);
        assert_eq!(lines.add(b"new").unwrap(), PasswordEdit::Unchanged);
        assert!(
            link.is_symlink(),
            "the link stays, and what it leads to is replaced"
        );
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, "a:1:b:c:d\ndb1:5432:replication:rep:new\n");
        assert_eq!(lines.remove().unwrap(), PasswordEdit::Changed);
        assert_eq!(lines.remove().unwrap(), PasswordEdit::Unchanged);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a:1:b:c:d\n");
        for wrong in [&b""[..], b"a\nb", b"a\0"] {
            assert!(lines.add(wrong).is_err());
        }
        std::fs::remove_file(&link).unwrap();
        std::fs::create_dir(&link).unwrap();
        let error = lines.add(b"new").unwrap_err().to_string();
        assert!(error.contains("it is not a file"), "{error}");
    }

    #[test]
    fn two_that_add_at_once_lose_no_line() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".pgpass");
        std::thread::scope(|scope| {
            for number in 0..16 {
                let file = file.clone();
                scope.spawn(move || {
                    let mut fields = fields();
                    fields[0] = format!("db{number}");
                    let lines = PasswordLines {
                        file,
                        fields: vec![fields],
                    };
                    lines.add(b"x").unwrap();
                });
            }
        });
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 16);
    }

    proptest! {
        #[test]
        fn any_file_satisfies_the_fuzz_body(text in r"([x*#:5432\\abc\nreplication]{0,12}|x:5432:replication:a\\:b\\\\c:x\n?|\*:\*:\*:\*:q\n){0,6}") {
            check_edits(text.as_bytes());
        }
    }
}
