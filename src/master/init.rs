//! `init` on the master: a first ini file from what is found on the host, the identity, and what to
//! type next. Never overwrites a file, never changes the server.

use std::path::{Path, PathBuf};

use crate::config::{self, Config, packaged, sample};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::{InitArgs, Options};
use crate::pg::data_directory::DataDirectory;
use crate::pg::layout;
use crate::pg::programs;
use crate::{files, identity, output};

/// Below it Debian keeps data directories as VERSION/NAME.
const DEBIAN_DATA: &str = "/var/lib/postgresql";

/// Writes `ini`, creates the key, and says what comes next.
pub(crate) fn run(ini: &Path, options: &Options, typed: &InitArgs) -> Result<()> {
    let ini = std::path::absolute(ini).at(Kind::Config, "find", ini)?;
    let text = sample::master_ini(&facts(typed)?)?;
    if options.not_really {
        return output::not_really(&format!("write {}:\n{text}", ini.display()));
    }
    files::create_settings(&ini, &text)?;
    let Config::Master(config) = config::load(&ini, &options.overrides)? else {
        return Err(CommandError::config(
            "the file that was written is no master's",
        ));
    };
    let fingerprint = identity::ensure(&config.tls, &config.job_name)?;
    let pin = if config.slave_fingerprint.is_none() {
        "\nFirst set slave_fingerprint in this file to the fingerprint that `walmgr STANDBY.ini \
        identity` prints on the standby."
    } else {
        ""
    };
    let standby_ini = match packaged::is_packaged(&ini) {
        // By the name that the guide gives it.
        true => "/etc/walmgr/standby.ini",
        false => "STANDBY.ini",
    };
    let before = packaged::typed_before(&ini);
    let root = packaged::typed_by_root_before(&ini);
    let (ini, name) = (ini.display(), &config.job_name);
    output::print(&format!(
        "Wrote {ini} for the cluster in {}.{pin}\n\
         Type on the standby:\n\n    \
         {before}walmgr {standby_ini} authorize {fingerprint} {name}\n\n\
         and then here (it restarts PostgreSQL if archiving was off; without --restart you do):\n\n    \
         {root}walmgr {ini} setup --restart",
        config.master_data.display(),
    ))
}

/// What can be found out about the cluster without asking it.
fn facts(typed: &InitArgs) -> Result<sample::InitMaster> {
    let pgdata = match &typed.pgdata {
        Some(path) => std::path::absolute(path).at(Kind::Config, "find", path)?,
        None => find_pgdata()?,
    };
    let data = DataDirectory::open(&pgdata)?;
    let slave = typed.slave.clone().ok_or_else(|| {
        CommandError::usage("init needs to know where the standby is")
            .hint("add --slave HOST:PORT, with the port that its receiver listens on")
    })?;
    let conninfo = data.running()?.map(|server| {
        let host = server
            .socket_directory
            .map(|path| format!("host={} ", path.display()));
        let port = server.port.map(|port| format!("port={port} "));
        format!(
            "{}{}dbname=postgres",
            host.unwrap_or_default(),
            port.unwrap_or_default()
        )
    });
    let master_bin = programs::folder_of(&data);
    Ok(sample::InitMaster {
        slave,
        slave_fingerprint: typed.slave_fingerprint.clone(),
        master_db: conninfo,
        master_config: config_file(&pgdata),
        restart_example: Some(restart_command(&pgdata)),
        master_bin,
        pgdata,
    })
}

/// Debian's servers are restarted by version and name, any other by its data directory.
pub(super) fn restart_command(pgdata: &Path) -> String {
    let below = pgdata.strip_prefix(DEBIAN_DATA).ok();
    let mut words = below.into_iter().flat_map(Path::iter);
    match (words.next(), words.next(), words.next()) {
        (Some(version), Some(name), None) => {
            let (version, name) = (version.to_string_lossy(), name.to_string_lossy());
            format!("pg_ctlcluster {version} {name} restart")
        }
        // With `master_bin` the shell finds it there.
        _ => format!("pg_ctl -D '{}' -w restart", pgdata.display()),
    }
}

/// Debian keeps it below `/etc`, under the version and name of the data directory's path.
fn config_file(pgdata: &Path) -> Option<PathBuf> {
    if pgdata.join(layout::MAIN_CONF).exists() {
        return None;
    }
    let below = pgdata.strip_prefix(DEBIAN_DATA).ok()?;
    let path = Path::new("/etc/postgresql")
        .join(below)
        .join(layout::MAIN_CONF);
    path.exists().then_some(path)
}

pub(super) fn find_pgdata() -> Result<PathBuf> {
    let hint = "add --pgdata DIR; `SHOW data_directory` tells it";
    if let Some(pgdata) = std::env::var_os("PGDATA").filter(|pgdata| !pgdata.is_empty()) {
        return Ok(PathBuf::from(pgdata));
    }
    let mut found = Vec::new();
    // Debian's layout: /var/lib/postgresql/VERSION/CLUSTER.
    for version in subdirectories(Path::new(DEBIAN_DATA)) {
        found.extend(
            subdirectories(&version)
                .into_iter()
                .filter(|path| path.join(layout::PG_VERSION).exists()),
        );
    }
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(CommandError::usage("no data directory was found").hint(hint)),
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            let doing = format!("several data directories were found: {}", names.join(", "));
            Err(CommandError::usage(doing).hint(hint))
        }
    }
}

fn subdirectories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect()
}
