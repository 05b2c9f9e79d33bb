//! What a server is set to, without asking it: by its command line, its files and what they include.
//! Never asks it: one that answers is asked instead, by whoever can. Invariant: everybody who needs a setting of a
//! server that does not answer gets it here, so nobody looks at fewer files than PostgreSQL does.
//!
//! | where the main file is, the first that holds | |
//! |---|---|
//! | `config_file`, or the `-D` of another directory, on its last command line | `postmaster.opts` |
//! | the folder that walmgr's own settings name | `slave_config_dir`, `master_config` |
//! | the file below `/etc/postgresql` that has this `data_directory` | Debian and its kin, before a first start |
//! | the data directory | |

use std::path::{Path, PathBuf};

use super::command_line::CommandLine;
use super::{last_setter, value};
use crate::error::Result;
use crate::files;
use crate::pg::layout;
use crate::pg::sql_settings::COMMAND_LINE;

/// No system takes a longer command line.
const OPTIONS_BYTES_MAX: u64 = 2 << 20;

/// Where Debian's `pg_createcluster` puts settings: `VERSION/NAME/postgresql.conf`.
const DEBIAN: &str = "/etc/postgresql";

/// What a parameter is set to, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetTo {
    /// Its value.
    pub value: String,
    /// The file and line, or the command line, for a sentence.
    pub place: String,
}

/// What a server that is not asked is set to.
#[derive(Debug, Clone)]
pub(crate) struct ServerSettings {
    config_file: PathBuf,
    data: PathBuf,
    line: CommandLine,
}

impl ServerSettings {
    /// Those of the server on this data directory. `configured` is its main file by walmgr's own settings.
    pub(crate) fn of(data: &Path, configured: Option<&Path>) -> ServerSettings {
        let line = read_line(data);
        let given = elsewhere_by_line(data, &line);
        let is_told = given.is_some() || starts_inside(data, &line);
        let config_file = given
            .or_else(|| {
                configured
                    .filter(|path| !is_told && path.exists())
                    .map(Path::to_path_buf)
            })
            .or_else(|| in_debian(Path::new(DEBIAN), data).filter(|_| !is_told));
        ServerSettings {
            config_file: config_file.unwrap_or_else(|| data.join(layout::MAIN_CONF)),
            data: data.to_path_buf(),
            line,
        }
    }

    /// Those that a server will have on a directory that is being prepared in `staging` and goes to `home`, where
    /// another may have been: what that one was started with, the next is likely to be.
    pub(crate) fn of_next(
        staging: &Path,
        home: &Path,
        configured: Option<&Path>,
    ) -> ServerSettings {
        let line = read_line(home);
        let config_file = (configured.map(Path::to_path_buf))
            .or_else(|| elsewhere_by_line(home, &line))
            .or_else(|| in_debian(Path::new(DEBIAN), home).filter(|_| !starts_inside(home, &line)));
        ServerSettings {
            config_file: config_file.unwrap_or_else(|| staging.join(layout::MAIN_CONF)),
            data: staging.to_path_buf(),
            line,
        }
    }

    /// These settings once what is in `staging` lies at `home`.
    #[must_use]
    pub(crate) fn moved(&self, staging: &Path, home: &Path) -> ServerSettings {
        let inside = self.config_file.strip_prefix(staging);
        ServerSettings {
            config_file: inside.map_or_else(|_| self.config_file.clone(), |name| home.join(name)),
            data: home.to_path_buf(),
            line: self.line.clone(),
        }
    }

    /// The file that it reads first.
    pub(crate) fn config_file(&self) -> &Path {
        &self.config_file
    }

    /// Where `ALTER SYSTEM` writes.
    pub(crate) fn automatic(&self) -> PathBuf {
        self.data.join(layout::AUTO_CONF)
    }

    /// What a parameter is set to; `None` where it has its default. A file that cannot be read is an error, as
    /// the server would not start with it either.
    pub(crate) fn read(&self, name: &str) -> Result<Option<SetTo>> {
        if let Some(value) = self.line.value(name) {
            return Ok(Some(SetTo {
                value: value.to_owned(),
                place: COMMAND_LINE.to_owned(),
            }));
        }
        let setter = last_setter(&self.config_file, &self.data, name)?;
        Ok(setter.map(|setter| SetTo {
            place: format!("{}, line {}", setter.file.display(), setter.line),
            value: setter.value,
        }))
    }

    /// What sets this and to which value; a file that cannot be read counts as if it set nothing.
    pub(crate) fn get(&self, name: &str) -> Option<SetTo> {
        self.read(name).unwrap_or_else(|error| {
            tracing::debug!("{name} is not known: {error}");
            None
        })
    }

    /// Whether the server may load libraries when it starts, which a record of a resource manager from 128 on
    /// needs; `true` also where what it will read is not here.
    pub(crate) fn may_load_libraries(&self) -> bool {
        let is_brought = self.data.join(super::brought::FOLDER).exists();
        if is_brought || !self.config_file.exists() {
            return true;
        }
        match self.read("shared_preload_libraries") {
            Ok(set) => set.is_some_and(|set| !set.value.trim().is_empty()),
            Err(_) => true,
        }
    }

    /// The value alone.
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        self.get(name).map(|set| set.value)
    }
}

fn read_line(data: &Path) -> CommandLine {
    let text = files::read_at_most(&data.join(layout::POSTMASTER_OPTS), OPTIONS_BYTES_MAX);
    text.map(|text| CommandLine::parse(&text))
        .unwrap_or_default()
}

/// A main file outside the data directory that the command line leads to. A relative one is not known: nobody
/// wrote down where the server was started.
fn elsewhere_by_line(data: &Path, line: &CommandLine) -> Option<PathBuf> {
    let by_file = line.value("config_file").map(PathBuf::from);
    let by_folder = line
        .directory
        .as_ref()
        .map(|folder| Path::new(folder).join(layout::MAIN_CONF));
    let path = by_file
        .or(by_folder)
        .filter(|path| path.is_absolute() && path.exists())?;
    (!is_same(path.parent()?, data)).then_some(path)
}

/// Whether the command line says that the main file is in the data directory.
fn starts_inside(data: &Path, line: &CommandLine) -> bool {
    let folder = line
        .directory
        .as_deref()
        .filter(|_| line.value("config_file").is_none());
    folder.is_some_and(|folder| is_same(Path::new(folder), data))
}

fn in_debian(root: &Path, data: &Path) -> Option<PathBuf> {
    let folders = |path: &Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let clusters = folders(root)
        .into_iter()
        .flat_map(|version| folders(&version));
    let mut files = clusters.map(|cluster| cluster.join(layout::MAIN_CONF));
    files.find(|file| {
        let text = files::read(file).unwrap_or_default();
        let home = value(&text, "data_directory");
        home.is_some_and(|home| is_same(Path::new(&home), data))
    })
}

fn is_same(one: &Path, other: &Path) -> bool {
    files::resolved(one) == files::resolved(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(home: &Path, name: &str, text: &str) -> PathBuf {
        let path = home.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn the_command_line_wins_and_the_last_file_after_it() {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        write(&data, layout::MAIN_CONF, "a = inside\n");
        let main = write(
            home.path(),
            "etc/postgresql.conf",
            "a = outside\nb = 1\ninclude_dir 'conf.d'\n",
        );
        let included = write(home.path(), "etc/conf.d/x.conf", "b = 2\nc = 3\n");
        write(&data, layout::AUTO_CONF, "c = 4\n");
        let options = format!(
            "postgres \"-D\" \"{}\" \"-c\" \"config_file={}\" \"--d=5\"\n",
            data.display(),
            main.display()
        );
        write(&data, layout::POSTMASTER_OPTS, &options);
        let settings = ServerSettings::of(&data, None);
        assert_eq!(settings.config_file(), main);
        for (name, value, place) in [
            ("a", "outside", format!("{}, line 1", main.display())),
            ("b", "2", format!("{}, line 1", included.display())),
            (
                "c",
                "4",
                format!("{}, line 1", settings.automatic().display()),
            ),
            ("d", "5", COMMAND_LINE.to_owned()),
        ] {
            let value = value.to_owned();
            assert_eq!(settings.get(name), Some(SetTo { value, place }), "{name}");
        }
        assert_eq!(settings.get("e"), None);
        std::fs::remove_file(&included).unwrap();
        write(home.path(), "etc/postgresql.conf", "include 'none'\n");
        assert!(settings.read("a").is_err() && settings.get("a").is_none());
    }

    #[test]
    fn the_main_file_is_where_the_server_was_led() {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        let inside = write(&data, layout::MAIN_CONF, "");
        let configured = write(home.path(), "own/postgresql.conf", "");
        let folder = write(home.path(), "etc/postgresql.conf", "");
        let main = |line: &str, configured: Option<&Path>| {
            write(&data, layout::POSTMASTER_OPTS, line);
            ServerSettings::of(&data, configured).config_file
        };
        let by_folder = |path: &Path| format!("postgres \"-D\" \"{}\"\n", path.display());
        assert_eq!(main("", None), inside);
        assert_eq!(main("", Some(&configured)), configured);
        assert_eq!(main(&by_folder(&data), Some(&configured)), inside);
        assert_eq!(
            main(&by_folder(folder.parent().unwrap()), Some(&configured)),
            folder
        );
        assert_eq!(
            main(&by_folder(Path::new("etc")), None),
            inside,
            "nobody knows from where"
        );

        write(&data, layout::POSTMASTER_OPTS, &by_folder(&data));
        let staging = home.path().join("staging");
        let next = |configured| ServerSettings::of_next(&staging, &data, configured).config_file;
        assert_eq!(next(None), staging.join(layout::MAIN_CONF));
        let moved = ServerSettings::of_next(&staging, &data, None).moved(&staging, &data);
        assert_eq!(
            (moved.config_file(), moved.automatic()),
            (&*inside, data.join(layout::AUTO_CONF))
        );
        assert_eq!(next(Some(&configured)), configured);
        write(
            &data,
            layout::POSTMASTER_OPTS,
            &by_folder(folder.parent().unwrap()),
        );
        assert_eq!(next(None), folder);
    }

    #[test]
    fn debians_file_is_the_one_with_this_data_directory() {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("main");
        std::fs::create_dir(&data).unwrap();
        let etc = home.path().join("etc");
        assert_eq!(in_debian(&etc, &data), None);
        write(
            &etc,
            "15/other/postgresql.conf",
            "data_directory = '/srv/other'\n",
        );
        let line = format!("data_directory = '{}/.'\n", data.display());
        let main = write(&etc, "15/main/postgresql.conf", &line);
        assert_eq!(in_debian(&etc, &data), Some(main));
    }
}
