//! `pg_service.conf`: the options that stand behind a `service=`.
//! Never follows one service to another, as libpq does not. Invariant: a service that is asked for
//! and not found is an error, not a connection to somewhere else.

use std::path::{Path, PathBuf};

use super::options::{Given, give};
use super::{Environment, read_file};

/// Where packages put the file that holds for everybody: Debian's place, Red Hat's, PostgreSQL's own.
const SYSTEM_FOLDERS: [&str; 4] = [
    "/etc/postgresql-common",
    "/etc/pgsql",
    "/etc/sysconfig/pgsql",
    "/usr/local/pgsql/etc",
];

/// Adds what the service says and nobody else has said.
pub(super) fn fill_in(given: &mut Given, environment: &Environment) -> Result<(), String> {
    let Some(service) = named(given, environment, "service") else {
        return Ok(());
    };
    let mut looked_in = Vec::new();
    for (file, must_exist) in files(given, environment) {
        let text = match read_file(&file) {
            Ok(text) => text,
            Err(error) if must_exist => {
                return Err(format!(
                    "service={service}: read {}: {error}",
                    file.display()
                ));
            }
            Err(_) => continue,
        };
        let text = String::from_utf8_lossy(&text);
        if section(&text, &service, given)
            .map_err(|(line, wrong)| format!("{}, line {line}: {wrong}", file.display()))?
        {
            return Ok(());
        }
        looked_in.push(file.display().to_string());
    }
    Err(match looked_in.is_empty() {
        true => format!(
            "service={service}: there is neither ~/.pg_service.conf nor a pg_service.conf of the \
            system"
        ),
        false => format!("service={service} is not in {}", looked_in.join(" nor in ")),
    })
}

fn named(given: &Given, environment: &Environment, name: &str) -> Option<String> {
    let written = given.get(name).cloned().filter(|value| !value.is_empty());
    let variable = super::options::find(name).map_or("", |option| option.variable);
    written.or_else(|| environment.variable(variable).map(str::to_owned))
}

fn files(given: &Given, environment: &Environment) -> Vec<(PathBuf, bool)> {
    let mut files = Vec::new();
    match named(given, environment, "servicefile") {
        Some(file) => files.push((PathBuf::from(file), true)),
        None => {
            files.extend((environment.home()).map(|home| (home.join(".pg_service.conf"), false)))
        }
    }
    let folders: Vec<&Path> = match environment.variable("PGSYSCONFDIR") {
        Some(folder) => vec![Path::new(folder)],
        None => SYSTEM_FOLDERS.iter().map(Path::new).collect(),
    };
    files.extend(
        folders
            .into_iter()
            .map(|folder| (folder.join("pg_service.conf"), false)),
    );
    files
}

/// Whether the text has the section; `parseServiceFile` (`src/interfaces/libpq/fe-connect.c`).
pub(super) fn section(
    text: &str,
    service: &str,
    given: &mut Given,
) -> Result<bool, (usize, String)> {
    let mut found = false;
    for (index, line) in text.lines().enumerate() {
        let at = |wrong: String| (index + 1, wrong);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if found {
                break;
            }
            found = name.strip_suffix(']') == Some(service);
            continue;
        }
        if !found {
            continue;
        }
        if line.starts_with("ldap") {
            return Err(at("a service from LDAP is not supported".to_owned()));
        }
        let Some((name, value)) = line.split_once('=') else {
            // Behind the first word may be a password.
            let word = line.split([' ', '\t', ':']).next().unwrap_or_default();
            return Err(at(format!("expected name=value, found {word:?} without =")));
        };
        if matches!(name, "service" | "servicefile") {
            return Err(at(format!("{name} does not work inside of a service")));
        }
        if !given.contains_key(name) {
            give(given, name, value.to_owned()).map_err(at)?;
        }
    }
    Ok(found)
}
