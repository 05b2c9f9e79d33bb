//! The configuration files that a server reads and that lie beside its data directory.
//! Never takes a key, or a file that has an effect outside PostgreSQL. Invariant: what the configuration refers to and
//! is not taken is named.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use walmgr_protocol::limits::{CONFIG_FILE_BYTES_MAX, CONFIG_FILES_MAX};
use walmgr_protocol::names::RelativePath;

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::conf::foreign::is_outside_postgresql;
use crate::pg::conf::{self, PieceKind, ServerSettings};
use crate::pg::layout;
use crate::pg::sql::Session;

/// A configuration file beside the data directory: its name, where it is, and what is in it.
pub(crate) type BroughtConfig = (RelativePath, PathBuf, Bytes);

/// The setting that names the file which all others are found from.
const MAIN_SETTING: &str = "config_file";

/// The files that settings name.
const NAMED: [&str; 3] = [MAIN_SETTING, "hba_file", "ident_file"];

/// Where a server has its configuration files: a setting, and the file that it names.
pub(crate) type ConfigPlaces = Vec<(&'static str, PathBuf)>;

/// Asks a server where its files are. Whoever may not see a setting is told what is missing.
pub(crate) async fn places_of_server(session: &Session, notes: &mut Vec<String>) -> ConfigPlaces {
    let mut places = Vec::new();
    for setting in NAMED {
        match session.show(setting).await {
            Ok(path) => places.push((setting, PathBuf::from(path))),
            Err(error) => notes.push(format!("{setting} is not backed up: {error}")),
        }
    }
    places
}

/// Where a server that cannot be asked has its files, as far as its settings say.
pub(crate) fn places_of_settings(settings: &ServerSettings, data: &Path) -> ConfigPlaces {
    let main = settings.config_file().to_path_buf();
    let beside = main.parent().unwrap_or(data).to_path_buf();
    let named = |setting: &'static str, usual: &str| {
        let named = settings.value(setting).filter(|name| !name.is_empty());
        // A relative name begins in the folder that `-D` leads to.
        let path = beside.join(named.unwrap_or_else(|| usual.to_owned()));
        path.exists().then_some((setting, path))
    };
    let others = [
        named("hba_file", layout::HBA_CONF),
        named("ident_file", layout::IDENT_CONF),
    ];
    let others: Vec<_> = others.into_iter().flatten().collect();
    [(MAIN_SETTING, main)].into_iter().chain(others).collect()
}

/// The configuration files that the server reads and that are not in its data directory. What cannot be
/// taken along is named.
pub(crate) fn take_along(
    data_directory: &Path,
    places: ConfigPlaces,
    notes: &mut Vec<String>,
) -> Result<Vec<BroughtConfig>> {
    let data = std::fs::canonicalize(data_directory);
    let data = data.at(Kind::Config, "look at", data_directory)?;
    let is_inside = |path: &Path| std::fs::canonicalize(path).is_ok_and(|it| it.starts_with(&data));
    let mut configs: Vec<BroughtConfig> = Vec::new();
    let mut main = None;
    for (setting, path) in places {
        if !is_inside(&path) {
            let name = PathBuf::from(path.file_name().unwrap_or_default());
            take(&mut configs, &path, &name, setting, notes);
        }
        if setting == MAIN_SETTING {
            main = Some(path);
        }
    }
    let Some(main) = main else {
        return Ok(configs);
    };
    for piece in conf::pieces(&main, data_directory)? {
        let is_known = configs.iter().any(|(_, path, _)| *path == piece.path);
        if is_known || is_inside(&piece.path) || !piece.path.exists() {
            continue;
        }
        let home = main.parent().unwrap_or(&data);
        match (piece.kind, piece.path.strip_prefix(home)) {
            // A folder such as `conf.d`, and no deeper: the standby makes no others.
            (PieceKind::Settings | PieceKind::Access, Ok(name))
                if name.components().count() <= 2 =>
            {
                take(&mut configs, &piece.path, name, &piece.setting, notes);
            }
            (PieceKind::Key, _) => notes.push(format!(
                "not in the backup: {piece}: keys are never backed up; copy it by hand to the \
                restored server"
            )),
            _ => notes.push(format!(
                "not in the backup: {piece}: copy it by hand to the restored server"
            )),
        }
    }
    Ok(configs)
}

/// Takes a file along under this name, or notes why not.
fn take(
    configs: &mut Vec<BroughtConfig>,
    path: &Path,
    name: &Path,
    setting: &str,
    notes: &mut Vec<String>,
) {
    let file_name = name.file_name().unwrap_or_default().to_string_lossy();
    let shown = path.display();
    if is_outside_postgresql(&file_name) {
        let why = format!("{setting} is not backed up: {shown} is not named *.conf");
        notes.push(why);
    } else if configs.len() >= CONFIG_FILES_MAX {
        notes.push(format!(
            "{setting} is not backed up: {shown} comes after the first {CONFIG_FILES_MAX} files"
        ));
    } else {
        match read_config(path, name) {
            Ok(found) => configs.push(found),
            Err(error) => notes.push(format!("{setting} is not backed up: {error}")),
        }
    }
}

fn read_config(path: &Path, name: &Path) -> Result<BroughtConfig> {
    use std::os::unix::ffi::OsStrExt;
    let name = RelativePath::new(name.as_os_str().as_bytes())
        .map_err(|error| CommandError::config("name a configuration file").because(error))?;
    let metadata = std::fs::metadata(path).at(Kind::Config, "look at", path)?;
    if metadata.len() > CONFIG_FILE_BYTES_MAX {
        let (path, most) = (path.display(), CONFIG_FILE_BYTES_MAX);
        return Err(CommandError::config(format!(
            "{path} has more than {most} bytes"
        )));
    }
    let content = files::read(path).at(Kind::Config, "read", path)?;
    Ok((name, path.to_path_buf(), content.into()))
}
