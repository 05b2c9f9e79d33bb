//! Which of a server's files sets a parameter last, through includes and `ALTER SYSTEM`.
//! Never asks the server: it answers for the next start too. Invariant: files are read in the
//! order of `ParseConfigFile` (`src/backend/utils/misc/guc.c`), and the last line wins.

use std::path::{Path, PathBuf};

use super::line::{self, ConfSetting};
use super::lines;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::layout;

/// `CONF_FILE_MAX_DEPTH`, of settings and of lists of users alike.
pub(super) const DEPTH_MAX: usize = 10;

/// The line that decides what a parameter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setter {
    /// The file it stands in.
    pub file: PathBuf,
    /// The line's number, from 1.
    pub line: usize,
    /// What it sets the parameter to.
    pub value: String,
}

/// The last line that sets `name` in `config_file`, in the files it includes, or in
/// `postgresql.auto.conf` of the data directory, which `ALTER SYSTEM` writes and which beats all.
///
/// A server started with `-c name=value` obeys that instead: see [`super::ServerSettings`].
pub fn last_setter(config_file: &Path, data: &Path, name: &str) -> Result<Option<Setter>> {
    search(config_file, None, data, name)
}

/// The last line that sets `name` outside `postgresql.auto.conf`: the one that counts after `ALTER SYSTEM RESET`.
pub(crate) fn last_setter_beneath(
    config_file: &Path,
    data: &Path,
    name: &str,
) -> Result<Option<Setter>> {
    Ok(SettingSearch::beneath(config_file, None, data, name)?.found)
}

/// The line that will set `name` last once `config_file` has this text, whatever it has now.
pub(crate) fn last_setter_after(
    config_file: &Path,
    text: &[u8],
    data: &Path,
    name: &str,
) -> Result<Option<Setter>> {
    search(config_file, Some(text), data, name)
}

fn search(
    config_file: &Path,
    text: Option<&[u8]>,
    data: &Path,
    name: &str,
) -> Result<Option<Setter>> {
    let mut search = SettingSearch::beneath(config_file, text, data, name)?;
    let automatic = data.join(layout::AUTO_CONF);
    if automatic.exists() {
        search.file(&automatic, 0)?;
    }
    Ok(search.found)
}

struct SettingSearch<'a> {
    name: String,
    data: &'a Path,
    edited: Option<(&'a Path, &'a [u8])>,
    found: Option<Setter>,
}

impl<'a> SettingSearch<'a> {
    /// What the main file and all that it includes set.
    fn beneath(
        config_file: &'a Path,
        text: Option<&'a [u8]>,
        data: &'a Path,
        name: &str,
    ) -> Result<SettingSearch<'a>> {
        let mut search = SettingSearch {
            name: name.to_ascii_lowercase(),
            data,
            edited: text.map(|text| (config_file, text)),
            found: None,
        };
        search.file(config_file, 0)?;
        Ok(search)
    }

    fn file(&mut self, path: &Path, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            let doing = format!("{} is included more than {DEPTH_MAX} deep", path.display());
            return Err(CommandError::config(doing));
        }
        let text = match self.edited {
            Some((edited, text)) if edited == path => text.to_vec(),
            _ => files::read(path).at(Kind::Config, "read", path)?,
        };
        for (index, text) in lines(&text).enumerate() {
            let Some(setting) = line::setting(text) else {
                continue;
            };
            if self.directive(path, &setting, depth)? || setting.name != self.name {
                continue;
            }
            self.found = Some(Setter {
                file: path.to_path_buf(),
                line: index + 1,
                value: String::from_utf8_lossy(&setting.value).into_owned(),
            });
        }
        Ok(())
    }

    fn directive(&mut self, path: &Path, setting: &ConfSetting, depth: usize) -> Result<bool> {
        let target = || self.beside(path, &setting.value);
        match setting.name.as_str() {
            "include" => self.file(&target(), depth + 1)?,
            "include_if_exists" => {
                let target = target();
                if target.exists() {
                    self.file(&target, depth + 1)?;
                }
            }
            "include_dir" => {
                for file in files_of(&target())? {
                    self.file(&file, depth + 1)?;
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Relative names start at the folder of the file that includes (`AbsoluteConfigLocation`).
    fn beside(&self, path: &Path, value: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let name = Path::new(std::ffi::OsStr::from_bytes(value));
        path.parent().unwrap_or(self.data).join(name)
    }
}

/// `*.conf` without hidden files, sorted by bytes (`GetConfFilesInDir`).
pub(super) fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).at(Kind::Config, "read", folder)? {
        let entry = entry.at(Kind::Config, "read", folder)?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(b".") || !name.ends_with(b".conf") || entry.path().is_dir() {
            continue;
        }
        files.push(entry.path());
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_file_in_reading_order_wins() {
        let data = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = data.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let conf = write(
            "postgresql.conf",
            "a = 1\nb = 1\nc = 1\nd = 1\ninclude 'one.conf'\nb = 2\ninclude_dir = 'conf.d'\n\
             include_if_exists 'none.conf'\n",
        );
        write("one.conf", "a = one\nb = one\n");
        write("conf.d/2.conf", "c = second\n");
        write("conf.d/1.conf", "c = first\n");
        write("conf.d/.3.conf", "c = hidden\n");
        write("conf.d/4.confx", "c = other\n");
        let automatic = write("postgresql.auto.conf", "# Do not edit\nd = 'auto'\n");
        let last = |name: &str| last_setter(&conf, data.path(), name).unwrap();
        let setter = |file: &Path, line, value: &str| {
            Some(Setter {
                file: file.to_path_buf(),
                line,
                value: value.into(),
            })
        };
        assert_eq!(last("A"), setter(&data.path().join("one.conf"), 1, "one"));
        assert_eq!(last("b"), setter(&conf, 6, "2"));
        assert_eq!(
            last("c"),
            setter(&data.path().join("conf.d/2.conf"), 1, "second")
        );
        assert_eq!(last("d"), setter(&automatic, 2, "auto"));
        let beneath = last_setter_beneath(&conf, data.path(), "d").unwrap();
        assert_eq!(beneath, setter(&conf, 4, "1"));
        assert_eq!(last("e"), None);
    }

    #[test]
    fn missing_includes_and_circles_are_errors_that_name_the_file() {
        let data = tempfile::tempdir().unwrap();
        let conf = data.path().join("postgresql.conf");
        std::fs::write(&conf, "include 'postgresql.conf'\n").unwrap();
        let circle = last_setter(&conf, data.path(), "a").unwrap_err();
        assert!(circle.to_string().contains("10 deep"), "{circle}");
        std::fs::write(&conf, "include 'none.conf'\n").unwrap();
        let missing = last_setter(&conf, data.path(), "a").unwrap_err();
        assert!(missing.to_string().contains("none.conf"), "{missing}");
    }
}
