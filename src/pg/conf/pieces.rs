//! The files that a server's configuration is made of: what it includes, and what it names by path.
//! Never asks a server, and never reads a key. Invariant: a file is listed whether it is there or not, with
//! the file that names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use super::effective::{DEPTH_MAX, files_of};
use super::foreign::FILE_BYTES_MAX;
use super::line::{self};
use super::{is_on, lines};
use crate::error::Result;
use crate::files;
use crate::pg::layout;

/// Files of one configuration; more are neither listed nor read.
const PIECES_MAX: usize = 1_000;

/// What a file is to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceKind {
    /// Settings.
    Settings,
    /// It says who may come in, or who is who.
    Access,
    /// A certificate, a list of revoked ones, parameters.
    Certificate,
    /// A secret key.
    Key,
}

/// A file that a configuration is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where it is.
    pub path: PathBuf,
    /// What names it: a setting, `include`, or `@file`.
    pub setting: String,
    /// The file that names it.
    pub named_in: PathBuf,
    /// What it is.
    pub kind: PieceKind,
    /// Whether the server starts without it.
    is_optional: bool,
}

impl Piece {
    /// Whether the server will not start for want of it.
    pub(crate) fn is_missing(&self) -> bool {
        !self.is_optional && std::fs::metadata(&self.path).is_err()
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, named_in) = (self.path.display(), self.named_in.display());
        write!(out, "{path} ({} in {named_in})", self.setting)
    }
}

/// Settings that name a file, and what that is. The server reads those of TLS only with `ssl = on`.
const PATHS: [(&str, PieceKind); 8] = [
    ("hba_file", PieceKind::Access),
    ("ident_file", PieceKind::Access),
    ("ssl_cert_file", PieceKind::Certificate),
    ("ssl_key_file", PieceKind::Key),
    ("ssl_ca_file", PieceKind::Certificate),
    ("ssl_crl_file", PieceKind::Certificate),
    ("ssl_dh_params_file", PieceKind::Certificate),
    ("krb_server_keyfile", PieceKind::Key),
];

/// What the files are where nothing else is said, in the data directory.
const DEFAULTS: [(&str, &str); 4] = [
    ("hba_file", layout::HBA_CONF),
    ("ident_file", layout::IDENT_CONF),
    ("ssl_cert_file", "server.crt"),
    ("ssl_key_file", "server.key"),
];

/// The files that a server with this `config_file` reads, but for that one itself.
pub(crate) fn pieces(config_file: &Path, data: &Path) -> Result<Vec<Piece>> {
    pieces_in(&HostFiles, config_file, data)
}

/// Makes the folders below `data` that `include_dir` names and that are not there, and answers with them: a set holds no empty
/// one, as Debian's `conf.d` is, and without it the server would not start.
pub(crate) fn make_missing_folders(config_file: &Path, data: &Path) -> Result<Vec<PathBuf>> {
    let pieces = pieces(config_file, data)?.into_iter();
    let is_inside = |path: &Path| {
        let below = path.strip_prefix(data);
        below.is_ok_and(|below| {
            below
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
        })
    };
    let absent = pieces.filter(|piece| piece.setting == "include_dir" && piece.is_missing());
    let mut made = Vec::new();
    for piece in absent.filter(|piece| is_inside(&piece.path)) {
        // A link that leads nowhere is somebody's.
        if piece.path.symlink_metadata().is_err() && !made.contains(&piece.path) {
            files::make_directory(&piece.path)?;
            made.push(piece.path);
        }
    }
    Ok(made)
}

fn pieces_in(source: &dyn PieceSource, config_file: &Path, data: &Path) -> Result<Vec<Piece>> {
    let mut search = Pieces {
        source,
        data,
        found: Vec::new(),
        seen: BTreeSet::new(),
        listed: BTreeSet::new(),
        values: BTreeMap::new(),
    };
    search.settings(config_file, 0)?;
    search.settings(&data.join(layout::AUTO_CONF), 0)?;
    search.named_by_path(config_file)?;
    Ok(search.found)
}

/// Where files are looked for: a fuzzer must not read this host's.
trait PieceSource {
    /// The text of a file that can be read.
    fn text(&self, path: &Path) -> Option<Vec<u8>>;
    /// The files of a folder, in the order in which they are included; `None` where there is no folder.
    fn folder(&self, path: &Path) -> Option<Result<Vec<PathBuf>>>;
    /// Where it really is.
    fn resolved(&self, path: &Path) -> PathBuf;
}

struct HostFiles;

impl PieceSource for HostFiles {
    fn text(&self, path: &Path) -> Option<Vec<u8>> {
        let is_file = path.is_file();
        is_file
            .then(|| files::read_at_most(path, FILE_BYTES_MAX).ok())
            .flatten()
    }

    fn folder(&self, path: &Path) -> Option<Result<Vec<PathBuf>>> {
        path.is_dir().then(|| files_of(path))
    }

    fn resolved(&self, path: &Path) -> PathBuf {
        files::resolved(path)
    }
}

/// Texts in place of files, which of them depends on the name; folders begin with `d`.
struct Texts<'a>(Vec<&'a [u8]>);

impl PieceSource for Texts<'_> {
    fn text(&self, path: &Path) -> Option<Vec<u8>> {
        let name = path.file_name()?.as_encoded_bytes();
        let sum: usize = name.iter().map(|letter| usize::from(*letter)).sum();
        let text = match name {
            b"postgresql.conf" => self.0.first(),
            b"pg_hba.conf" => self.0.last(),
            _ => self.0.get(sum % (self.0.len() + 1)),
        };
        text.map(|text| text.to_vec())
    }

    fn folder(&self, path: &Path) -> Option<Result<Vec<PathBuf>>> {
        let is_folder = path.file_name()?.as_encoded_bytes().starts_with(b"d");
        is_folder.then(|| Ok(vec![path.join("a.conf"), path.join("b.conf")]))
    }

    fn resolved(&self, path: &Path) -> PathBuf {
        path.to_path_buf()
    }
}

/// A configuration of these texts, parted by zero bytes, for [`crate::pg::fuzzing`].
pub(in crate::pg) fn pieces_in_texts(bytes: &[u8]) -> Result<Vec<Piece>> {
    let texts = Texts(bytes.split(|byte| *byte == 0).collect());
    let data = Path::new("/srv/data");
    let found = pieces_in(&texts, &data.join(layout::MAIN_CONF), data)?;
    assert!(found.len() <= PIECES_MAX);
    Ok(found)
}

struct Pieces<'a> {
    source: &'a dyn PieceSource,
    data: &'a Path,
    found: Vec<Piece>,
    /// What was read, and what was listed, by where it really is: a circle of names has no end.
    seen: BTreeSet<PathBuf>,
    listed: BTreeSet<PathBuf>,
    /// The last value of each setting, and the file that has it.
    values: BTreeMap<String, (String, PathBuf)>,
}

impl Pieces<'_> {
    fn settings(&mut self, path: &Path, depth: usize) -> Result<()> {
        let Some(text) = self.text(path, depth) else {
            return Ok(());
        };
        for text in lines(&text) {
            let Some(setting) = line::setting(text) else {
                continue;
            };
            let value = String::from_utf8_lossy(&setting.value).into_owned();
            let target = path.parent().unwrap_or(self.data).join(&value);
            match setting.name.as_str() {
                "include" | "include_if_exists" => {
                    self.add(&target, &setting.name, path, PieceKind::Settings);
                    self.settings(&target, depth + 1)?;
                }
                "include_dir" => {
                    let Some(files) = self.source.folder(&target) else {
                        self.add(&target, "include_dir", path, PieceKind::Settings);
                        continue;
                    };
                    for file in files? {
                        self.add(&file, "include_dir", path, PieceKind::Settings);
                        self.settings(&file, depth + 1)?;
                    }
                }
                name => {
                    let set = (value, path.to_path_buf());
                    self.values.insert(name.to_owned(), set);
                }
            }
        }
        Ok(())
    }

    fn named_by_path(&mut self, config_file: &Path) -> Result<()> {
        let on = self
            .values
            .get("ssl")
            .is_some_and(|(value, _)| is_on(value));
        for (name, kind) in PATHS {
            if name.starts_with("ssl_") && !on {
                continue;
            }
            let default = DEFAULTS.iter().find(|(of, _)| *of == name);
            let set = self.values.get(name).cloned();
            let default = default.map(|(_, file)| ((*file).to_owned(), config_file.to_path_buf()));
            let Some((value, named_in)) = set.or(default).filter(|(value, _)| !value.is_empty())
            else {
                continue;
            };
            let value = value.strip_prefix("FILE:").unwrap_or(&value);
            let path = self.data.join(value);
            self.add(&path, name, &named_in, kind);
            if kind == PieceKind::Access {
                // A list of who is who may be faulty; one of who comes in ends the start.
                self.access(&path, name == "ident_file", 0)?;
            }
        }
        Ok(())
    }

    /// What a list of users includes (`tokenize_auth_file`, `src/backend/libpq/hba.c`).
    fn access(&mut self, path: &Path, is_optional: bool, depth: usize) -> Result<()> {
        let Some(text) = self.text(path, depth) else {
            return Ok(());
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        let above = path.parent().unwrap_or(self.data);
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let separates = |letter: char| letter.is_whitespace() || letter == ',';
            let mut words = line.split(separates).filter(|word| !word.is_empty());
            let first = words.clone().next().unwrap_or_default();
            if matches!(first, "include" | "include_if_exists" | "include_dir") {
                let name = words.nth(1).unwrap_or_default().trim_matches('"');
                let target = above.join(name);
                let folder = (first == "include_dir").then(|| self.source.folder(&target));
                let files = match folder.flatten() {
                    Some(files) => files?,
                    None => vec![target],
                };
                for file in files {
                    let first = if is_optional {
                        "include_if_exists"
                    } else {
                        first
                    };
                    self.add(&file, first, path, PieceKind::Access);
                    self.access(&file, is_optional, depth + 1)?;
                }
                continue;
            }
            for name in words.filter_map(|word| word.strip_prefix('@')) {
                let target = above.join(name.trim_matches('"'));
                let words = format!("@{name}");
                // Of a list that may be faulty its parts may be too.
                let setting = if is_optional {
                    "include_if_exists"
                } else {
                    &words
                };
                self.add(&target, setting, path, PieceKind::Access);
                self.access(&target, is_optional, depth + 1)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, setting: &str, named_in: &Path, kind: PieceKind) {
        // PostgreSQL starts without them, whatever then is missing.
        let optional = ["include_if_exists", "ident_file", "krb_server_keyfile"];
        let is_optional = optional.contains(&setting);
        let piece = Piece {
            path: path.to_path_buf(),
            setting: setting.to_owned(),
            named_in: named_in.to_path_buf(),
            kind,
            is_optional,
        };
        let is_new = self.listed.insert(self.source.resolved(path));
        if is_new && self.found.len() < PIECES_MAX {
            self.found.push(piece);
        }
    }

    /// A file's text, once: what cannot be read, the server or whoever looks at the list will name.
    fn text(&mut self, path: &Path, depth: usize) -> Option<Vec<u8>> {
        let may_read = depth <= DEPTH_MAX && self.seen.len() < PIECES_MAX;
        let is_new = may_read && self.seen.insert(self.source.resolved(path));
        is_new.then(|| self.source.text(path)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fault_194_only_a_folder_that_is_included_and_inside_is_made() {
        let home = tempfile::tempdir().unwrap();
        let (data, outside) = (home.path().join("data"), home.path().join("outside"));
        std::fs::create_dir(&data).unwrap();
        let conf = data.join("postgresql.conf");
        let text = format!(
            "include_dir = 'conf.d'\ninclude_dir 'conf.d'\ninclude_dir '../up'\ninclude_dir '{}'\n\
             include 'absent.conf'\ninclude_dir 'dangling'\nhba_file = 'hba'\n",
            outside.display()
        );
        std::fs::write(&conf, text).unwrap();
        std::os::unix::fs::symlink(&outside, data.join("dangling")).unwrap();
        let made = make_missing_folders(&conf, &data).unwrap();
        assert_eq!(made, [data.join("conf.d")]);
        assert!(data.join("conf.d").is_dir() && !outside.exists());
        assert!(!home.path().join("up").exists() && !data.join("hba").exists());
        assert_eq!(
            make_missing_folders(&conf, &data).unwrap(),
            [] as [PathBuf; 0]
        );
    }

    #[test]
    fn fault_135_every_file_is_found_with_what_names_it() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let conf = write(
            "etc/postgresql.conf",
            "include 'one.conf'\ninclude_dir 'conf.d'\ninclude_if_exists 'none.conf'\nssl = 'ye'\n\
             hba_file = 'hba'\ninclude_dir 'absent.d'\nssl_key_file = '/keys/server.key'\nssl_ca_file = ''\n",
        );
        write(
            "etc/one.conf",
            "ssl_cert_file = '/old'\ninclude '../deep.conf'\n",
        );
        write(
            "deep.conf",
            "include 'etc/one.conf'\nssl_cert_file = 'cert'\n",
        );
        write(
            "etc/conf.d/a.conf",
            "krb_server_keyfile = 'FILE:/keys/tab'\n",
        );
        write(
            "data/hba",
            "local all @users,\"x\" peer\ninclude \"more\"\n# include not\n",
        );
        write("data/users", "a, @more_users\n");
        let data = home.path().join("data");
        let found = pieces(&conf, &data).unwrap();
        let mut told: Vec<String> = found
            .iter()
            .map(|it| {
                let text = format!("{}{}", it, if it.is_missing() { " missing" } else { "" });
                text.replace(home.path().to_str().unwrap(), "~")
            })
            .collect();
        told.sort();
        assert_eq!(
            told,
            [
                "/keys/server.key (ssl_key_file in ~/etc/postgresql.conf) missing",
                "/keys/tab (krb_server_keyfile in ~/etc/conf.d/a.conf)",
                "~/data/cert (ssl_cert_file in ~/etc/../deep.conf) missing",
                "~/data/hba (hba_file in ~/etc/postgresql.conf)",
                "~/data/more (include in ~/data/hba) missing",
                "~/data/more_users (@more_users in ~/data/users) missing",
                "~/data/pg_ident.conf (ident_file in ~/etc/postgresql.conf)",
                "~/data/users (@users in ~/data/hba)",
                "~/etc/../deep.conf (include in ~/etc/one.conf)",
                "~/etc/absent.d (include_dir in ~/etc/postgresql.conf) missing",
                "~/etc/conf.d/a.conf (include_dir in ~/etc/postgresql.conf)",
                "~/etc/none.conf (include_if_exists in ~/etc/postgresql.conf)",
                "~/etc/one.conf (include in ~/etc/postgresql.conf)",
            ]
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_go_on_for_ever(text: Vec<u8>, hba: Vec<u8>) {
            let home = tempfile::tempdir().unwrap();
            let conf = home.path().join("postgresql.conf");
            std::fs::write(&conf, text).unwrap();
            std::fs::write(home.path().join("pg_hba.conf"), hba).unwrap();
            let _ = pieces(&conf, home.path());
        }
    }
}
