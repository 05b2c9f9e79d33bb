//! Configuration files that a set brings in a folder of their own, as they lay beside the data directory.
//! Never replaces a `postgresql.conf` that the set has. Invariant: the folder goes last, so what is killed in
//! between is done again; what it brings is settled like everything else of a set.

use std::path::{Path, PathBuf};

use walmgr_protocol::limits::CONFIG_FILE_BYTES_MAX;

use super::foreign::is_outside_postgresql;
use super::{edit, value};
use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::pg::layout;

/// The folder in a set.
pub(crate) const FOLDER: &str = "walmgr_config";

/// Settings that name a file which goes beside the settings.
const BESIDE: [(&str, &str); 2] = [
    ("hba_file", layout::HBA_CONF),
    ("ident_file", layout::IDENT_CONF),
];

/// Mode of what is brought: it may hold passwords.
const MODE: u32 = 0o600;

/// Puts what is in the folder where a server on this data directory, which is going to lie at `home`, looks
/// for it, and removes the folder. Says what was put there.
pub(crate) fn put_in_place(data: &Path, home: &Path) -> Result<Vec<PathBuf>> {
    let folder = data.join(FOLDER);
    let mut placed = Vec::new();
    if !folder.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Ok(placed);
    }
    let main = data.join(layout::MAIN_CONF);
    let own = main.exists();
    let text = match own {
        true => Some(files::read(&main).at(Kind::Retry, "read", &main)?),
        false => small_file(&folder.join(layout::MAIN_CONF)),
    };
    if let Some(text) = text {
        let mut changes = Vec::new();
        for (setting, name) in BESIDE {
            let theirs = value(&text, setting).filter(|path| !path.is_empty());
            let named = theirs
                .as_ref()
                .map_or(name.as_ref(), |path| Path::new(path));
            let base = named.file_name().unwrap_or(name.as_ref());
            let Some(content) = small_file(&folder.join(base)) else {
                continue;
            };
            let to = data.join(name);
            // One that is there counts unless the settings led past it.
            if theirs.is_some() || !to.exists() {
                files::replace(&to, &content, MODE).at(Kind::Retry, "write", &to)?;
                placed.push(to);
            }
            if theirs.is_some() {
                changes.push((setting, home.join(name).display().to_string()));
            }
        }
        if value(&text, "data_directory").is_some() {
            // `-D` would lead on from here to the directory of the server that this is a copy of.
            changes.push(("data_directory", home.display().to_string()));
        }
        place_others(&folder, data, &mut placed)?;
        let changes = changes.iter().map(|(name, value)| (*name, value.as_str()));
        let (edited, made) = edit(&text, &changes.collect::<Vec<_>>())?;
        if !own || !made.is_empty() {
            files::replace(&main, &edited, MODE).at(Kind::Retry, "write", &main)?;
            placed.push(main);
        }
    }
    std::fs::remove_dir_all(&folder).at(Kind::Retry, "remove", &folder)?;
    Ok(placed)
}

/// What the settings include, in folders of one step.
fn place_others(folder: &Path, data: &Path, placed: &mut Vec<PathBuf>) -> Result<()> {
    for path in listed(folder)? {
        let Some(name) = path.file_name().map(PathBuf::from) else {
            continue;
        };
        let is_folder = path.symlink_metadata().is_ok_and(|found| found.is_dir());
        let (inner, to) = match is_folder {
            true => (listed(&path)?, data.join(&name)),
            false => (vec![path], data.to_path_buf()),
        };
        for from in inner {
            let name = from.file_name().unwrap_or_default();
            let to = to.join(name);
            if is_outside_postgresql(&name.to_string_lossy())
                || name == layout::MAIN_CONF
                || to.exists()
            {
                continue;
            }
            let Some(content) = small_file(&from) else {
                continue;
            };
            let above = to.parent().unwrap_or(data);
            std::fs::create_dir_all(above).at(Kind::Retry, "create", above)?;
            files::replace(&to, &content, MODE).at(Kind::Retry, "write", &to)?;
            placed.push(to);
        }
    }
    Ok(())
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).at(Kind::Retry, "list", folder)? {
        paths.push(entry.at(Kind::Retry, "list", folder)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// A file's content, unless it is a link, something else, or larger than any that is backed up.
fn small_file(path: &Path) -> Option<Vec<u8>> {
    let found = path.symlink_metadata().ok()?;
    let is_small = found.is_file() && found.len() <= CONFIG_FILE_BYTES_MAX;
    is_small.then(|| files::read(path).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(home: &Path, name: &str, text: &str) {
        let path = home.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn fault_135_what_a_set_brings_lies_where_its_settings_lead() {
        let home = tempfile::tempdir().unwrap();
        let data = home.path();
        let conf =
            "data_directory = '/main'\nhba_file = '/etc/pg/main_hba.conf'\ninclude_dir 'conf.d'\n";
        write(data, "walmgr_config/postgresql.conf", conf);
        write(data, "walmgr_config/main_hba.conf", "# theirs\n");
        write(data, "walmgr_config/conf.d/a.conf", "port = 1\n");
        write(data, "walmgr_config/conf.d/environment", "x");
        write(data, "pg_hba.conf", "# of initdb\n");
        let again = || put_in_place(data, Path::new("/home/data")).unwrap();
        again();
        let read = |name: &str| std::fs::read_to_string(data.join(name)).unwrap();
        let conf = read("postgresql.conf");
        assert!(
            conf.contains("hba_file = '/home/data/pg_hba.conf'"),
            "{conf}"
        );
        assert!(conf.contains("data_directory = '/home/data'"), "{conf}");
        assert_eq!(read("pg_hba.conf"), "# theirs\n");
        assert_eq!(read("conf.d/a.conf"), "port = 1\n");
        assert!(!data.join("conf.d/environment").exists() && !data.join(FOLDER).exists());
        assert!(again().is_empty());
        // One with settings of its own keeps them.
        write(data, "walmgr_config/postgresql.conf", "port = 2\n");
        assert!(again().is_empty());
        assert_eq!(read("postgresql.conf"), conf);
    }
}
