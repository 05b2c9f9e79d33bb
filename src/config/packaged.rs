//! Where the package has settings and units, and so what is typed for them.
//! Never starts anything. Invariant: a unit is named only where systemd runs and has it.

use std::path::Path;

/// The folder of the settings that the package's units read.
const FOLDER: &str = "/etc/walmgr";

/// Whether systemd manages this host, sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// Where a package, or an administrator, puts units.
const UNIT_FOLDERS: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Whether a unit of the package would read this file.
pub(crate) fn is_packaged(ini: &Path) -> bool {
    ini.parent() == Some(Path::new(FOLDER))
}

/// What stands before `walmgr` in a line for this file, or its sibling on the other host.
pub(crate) fn typed_before(ini: &Path) -> String {
    let user = uzers::get_current_username().filter(|user| user != "root");
    match user.filter(|_| is_packaged(ini)) {
        Some(user) => format!("sudo -u {} ", user.display()),
        None => String::new(),
    }
}

/// What stands before `walmgr` in a line that may need root, and that does the rest as the owner of the file.
pub(crate) fn typed_by_root_before(ini: &Path) -> &'static str {
    match is_packaged(ini) && !rustix::process::geteuid().is_root() {
        true => "sudo ",
        false => "",
    }
}

/// The unit that runs `daemon` with this file, where there is one.
pub(crate) fn unit(daemon: &str, ini: &Path) -> Option<String> {
    unit_below(Path::new("/"), daemon, ini)
}

/// What enables and starts a unit, as a user types it.
pub(crate) fn enabling(unit: &str) -> [&str; 5] {
    ["sudo", "systemctl", "enable", "--now", unit]
}

/// The line that has `daemon` run with this file: its unit's where there is one, in the background elsewhere.
pub(crate) fn starting(daemon: &str, ini: &Path) -> String {
    match unit(daemon, ini) {
        Some(unit) => enabling(&unit).join(" "),
        None => format!("{}walmgr {} {daemon} -d", typed_before(ini), ini.display()),
    }
}

fn unit_below(root: &Path, daemon: &str, ini: &Path) -> Option<String> {
    let name = ini.file_stem()?.to_str()?;
    // Anything else would have to be escaped, systemd-escape(1), and a dash would become a slash there.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
    let is_plain = name.bytes().all(is_plain) && ini.extension().is_some_and(|end| end == "ini");
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let template = format!("walmgr-{daemon}@.service");
    let is_there = UNIT_FOLDERS
        .iter()
        .any(|folder| below(folder).join(&template).exists());
    (is_plain && is_packaged(ini) && below(BOOTED).is_dir() && is_there)
        .then(|| format!("walmgr-{daemon}@{name}.service"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_named_only_where_systemd_runs_and_has_it() {
        let root = tempfile::tempdir().unwrap();
        let ini = Path::new("/etc/walmgr/standby.ini");
        let unit = |ini: &Path| unit_below(root.path(), "receiver", ini);
        let folder = root.path().join("usr/lib/systemd/system");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("walmgr-receiver@.service"), "").unwrap();
        assert_eq!(unit(ini), None);
        std::fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
        assert_eq!(unit(ini).unwrap(), "walmgr-receiver@standby.service");
        for other in [
            "/var/lib/standby.ini",
            "/etc/walmgr/a b.ini",
            "/etc/walmgr/clusters.d/a.ini",
            "/etc/walmgr/x.conf",
        ] {
            assert_eq!(unit(Path::new(other)), None, "{other}");
        }
        assert_eq!(unit_below(root.path(), "syncdaemon", ini), None);
    }
}
