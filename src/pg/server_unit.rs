//! The unit by which systemd runs a server, and how root has such a server restarted.
//! Never restarts a server behind systemd's back: it would take the server for ended. Invariant: what is named is a unit
//! of the system, never a session of a user.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{CommandError, Result};
use crate::files;
use crate::pg::data_directory::DataDirectory;

/// Whether systemd manages this host, sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// A line for each tree of control groups; a host has a dozen.
const CGROUP_BYTES_MAX: u64 = 64 << 10;

/// The unit of the server that runs on this data directory; `None` for a server that somebody started himself.
pub(crate) fn unit_of(data: &Path) -> Option<String> {
    if !Path::new(BOOTED).is_dir() {
        return None;
    }
    let server = DataDirectory::open(data).ok()?.running().ok()??;
    let path = format!("/proc/{}/cgroup", server.pid);
    let text = files::read_at_most(Path::new(&path), CGROUP_BYTES_MAX).ok()?;
    unit_in(&String::from_utf8_lossy(&text))
}

/// systemd's own tree is the one of its name, or that of the second version of control groups.
fn unit_in(text: &str) -> Option<String> {
    let trees = text.lines().filter_map(|line| {
        let (_, tree_and_path) = line.split_once(':')?;
        let (tree, path) = tree_and_path.split_once(':')?;
        ["", "name=systemd"].contains(&tree).then_some(path)
    });
    let of_system = |path: &&str| !path.contains("/user.slice") && !path.contains("/user@");
    let mut units = trees
        .filter(of_system)
        .filter_map(|path| path.rsplit('/').next());
    let is_unit = |name: &&str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"@.-_:\\".contains(&byte);
        name.len() > ".service".len() && name.ends_with(".service") && name.bytes().all(plain)
    };
    units.find(is_unit).map(str::to_owned)
}

/// Has systemd restart it, which root alone may ask for.
pub(crate) fn restart(unit: &str) -> Result<()> {
    let mut systemctl = Command::new("systemctl");
    systemctl.args(["restart", unit]).stdin(Stdio::null());
    let ended = systemctl.status();
    let ended = ended.map_err(|error| CommandError::retry("call systemctl").because(error))?;
    match ended.success() {
        true => Ok(()),
        false => Err(CommandError::retry(format!(
            "`systemctl restart {unit}` failed ({ended}); `journalctl -u {unit}` says why; \
             postgresql.conf is already edited"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_193_only_a_unit_of_the_system_is_taken_for_one() {
        let unit = "/system.slice/system-postgresql.slice/postgresql@15-main.service";
        for text in [
            format!("0::{unit}\n"),
            format!("3:cpu,cpuacct:/\n1:name=systemd:{unit}\n0::/\n"),
        ] {
            assert_eq!(unit_in(&text).unwrap(), "postgresql@15-main.service");
        }
        for text in [
            "",
            "0::/",
            "0::/user.slice/user-1000.slice/session-2.scope",
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/postgresql.service",
            "1:cpu:/system.slice/postgresql.service",
            "0::/system.slice/docker-12ab.scope",
            "0::/system.slice/.service",
            "0::/system.slice/a b;c.service",
            "no line",
        ] {
            assert_eq!(unit_in(text), None, "{text}");
        }
    }
}
