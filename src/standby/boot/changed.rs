//! What a boot sets in `postgresql.auto.conf` for as long as it goes on, and puts back behind it.
//! Never touches a line that somebody else wrote meanwhile. Invariant: BOOT tells of it before the file has it,
//! so whoever kills a boot leaves a note by which the next one puts back what was there.

use std::io;
use std::path::Path;

use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::pg::conf;

/// A setting with another value than its administrator's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    pub name: String,
    /// What the file said before; `None` if nothing.
    pub before: Option<String>,
    /// What it says during the boot.
    pub during: String,
}

impl Changed {
    /// What is to be changed in this file.
    pub(super) fn of(path: &Path, name: &str, during: &str) -> Result<Changed> {
        Ok(Changed {
            name: name.to_owned(),
            before: conf::value(&read(path)?, name),
            during: during.to_owned(),
        })
    }

    pub(super) fn make(&self, path: &Path) -> Result<()> {
        let (text, _) = conf::edit(&read(path)?, &[(&self.name, &self.during)])?;
        files::replace(path, &text, 0o600).at(Kind::Retry, "write", path)
    }

    /// Puts the administrator's value back. Returns `false`, and changes nothing, if somebody set another value
    /// meanwhile, or if the value is the one that was there before.
    pub(super) fn put_back(&self, path: &Path) -> Result<bool> {
        let text = read(path)?;
        let found = conf::value(&text, &self.name);
        if found.as_ref() != Some(&self.during) || found == self.before {
            return Ok(false);
        }
        let text = match &self.before {
            Some(before) => conf::edit(&text, &[(&self.name, before)])?.0,
            None => conf::without(&text, |name| name == self.name),
        };
        files::replace(path, &text, 0o600).at(Kind::Retry, "write", path)?;
        Ok(true)
    }

    /// What to do where no boot is going on any more.
    pub(super) fn text(&self, path: &Path) -> String {
        let Changed { name, during, .. } = self;
        let before = match &self.before {
            Some(before) => format!("it was '{before}'"),
            None => "it was not set there".to_owned(),
        };
        format!(
            "{} has {name} = {during} for an unfinished boot; {before}; type `boot` again to \
            restore that",
            path.display()
        )
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    match files::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.at(Kind::Retry, "read", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_131_boot_changes_are_put_back_unless_set_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgresql.auto.conf");
        for before in ["a = 1\n", "delay = '1h'\na = 1\n", "delay = 0\n", ""] {
            std::fs::write(&path, before).unwrap();
            let changed = Changed::of(&path, "delay", "0").unwrap();
            assert!(
                !changed.put_back(&path).unwrap(),
                "killed before the change"
            );
            changed.make(&path).unwrap();
            let is_other = changed.before.as_deref() != Some("0");
            assert_eq!(changed.put_back(&path).unwrap(), is_other);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), before);

            changed.make(&path).unwrap();
            let during = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, during.clone() + "b = 2\n").unwrap();
            changed.put_back(&path).unwrap();
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                before.to_owned() + "b = 2\n"
            );
            let meant = during + "delay = '5min'\n";
            std::fs::write(&path, &meant).unwrap();
            assert!(!changed.put_back(&path).unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), meant);
        }
    }
}
