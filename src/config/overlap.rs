//! Directories and files that must not be one another or lie in one another.
//! Never fails because something does not exist. Invariant: the order of the paths does not matter.

use std::path::{Path, PathBuf};

use super::fault::{Fault, SettingPlace};
use super::settings::GivenSettings;
use crate::files;

/// A path and the key that names it.
#[derive(Debug, Clone)]
pub(super) struct Named {
    /// The key as written, or its name where the path is derived.
    pub key: String,
    /// Where the key stands.
    pub place: SettingPlace,
    /// The path, absolute.
    pub path: PathBuf,
}

impl Named {
    /// The path of `name`, given or derived.
    pub(super) fn new(settings: &GivenSettings, name: &str, path: &Path) -> Self {
        let setting = settings.get(name);
        Named {
            key: setting.map_or(name.to_owned(), |setting| setting.spelled.clone()),
            place: setting.map_or(SettingPlace::File, |setting| setting.place),
            path: path.to_path_buf(),
        }
    }
}

/// No directory may be, or lie inside, another one of these.
pub(super) fn check_directories(directories: &[Named]) -> Result<(), Fault> {
    let resolved = resolved(directories);
    for (second_at, (second, b)) in resolved.iter().enumerate() {
        for (first, a) in &resolved[..second_at] {
            if a == b {
                return Err(fault(first, second, "the same directory as"));
            }
            if b.starts_with(a) {
                return Err(fault(first, second, "a directory inside"));
            }
            if a.starts_with(b) {
                return Err(fault(second, first, "a directory inside"));
            }
        }
    }
    Ok(())
}

/// Paths and where they lead, each looked up once.
fn resolved(named: &[Named]) -> Vec<(&Named, PathBuf)> {
    let looked_up = named
        .iter()
        .map(|named| (named, files::resolved(&named.path)));
    looked_up.collect()
}

/// `rotated` is moved aside to names like its own with a number behind; nobody may live there.
pub(super) fn check_rotation(rotated: &Named, others: &[Named]) -> Result<(), Fault> {
    // A link in its place is renamed itself; what it leads to may be, too.
    let above = rotated.path.parent().map(files::resolved);
    let own = above.zip(rotated.path.file_name());
    let own = own.map(|(above, name)| above.join(name));
    let others = resolved(others);
    for base in [Some(files::resolved(&rotated.path)), own]
        .into_iter()
        .flatten()
    {
        check_names(&base, rotated, &others)?;
    }
    Ok(())
}

fn check_names(base: &Path, rotated: &Named, others: &[(&Named, PathBuf)]) -> Result<(), Fault> {
    let Some(name) = base
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
    else {
        return Ok(());
    };
    for (other, path) in others {
        let beside = path
            .ancestors()
            .find(|above| above.parent() == base.parent());
        let Some(found) = beside.and_then(Path::file_name) else {
            continue;
        };
        let found = found.to_string_lossy();
        let suffix = found
            .strip_prefix(&name)
            .and_then(|rest| rest.strip_prefix('.'));
        if suffix.is_some_and(is_rotated_suffix) {
            return Err(fault(rotated, other, "a name that older copies get, of"));
        }
    }
    Ok(())
}

/// Whether what stands behind a directory's name and a dot makes it an older or a coming copy of that.
pub(super) fn is_rotated_suffix(suffix: &str) -> bool {
    suffix == "incoming"
        || suffix.starts_with("expired")
        || (!suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_digit()))
}

/// No two of these files may be the same.
pub(super) fn check_files(files: &[Named]) -> Result<(), Fault> {
    let resolved = resolved(files);
    for (second_at, (second, there)) in resolved.iter().enumerate() {
        for (first, other) in &resolved[..second_at] {
            if there == other {
                return Err(fault(first, second, "the same file as"));
            }
        }
    }
    Ok(())
}

/// Blames the key that was written, the later one if both were.
fn fault(outer: &Named, inner: &Named, relation: &str) -> Fault {
    let blamed = if inner.place == SettingPlace::File {
        outer
    } else {
        inner
    };
    let says = format!(
        "expected {} and {} apart, found {} = {}, {relation} {} = {}{}",
        outer.key,
        inner.key,
        inner.key,
        inner.path.display(),
        outer.key,
        outer.path.display(),
        match outer.place {
            SettingPlace::File => String::new(),
            place => format!(" ({})", place.in_words()),
        }
    );
    Fault::of_key(blamed.place, &blamed.key, says).hint("give each its own path")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(key: &str, line: u32, path: &str) -> Named {
        Named {
            key: key.to_owned(),
            place: SettingPlace::Line(line),
            path: PathBuf::from(path),
        }
    }

    fn says(result: Result<(), Fault>) -> String {
        result
            .unwrap_err()
            .into_error(Path::new("f.ini"))
            .to_string()
    }

    #[test]
    fn fault_96_equal_and_nested_directories_name_both_keys() {
        let both = [named("a", 2, "/none/x"), named("b", 3, "/none/y/../x")];
        assert_eq!(
            says(check_directories(&both)),
            "f.ini:3: b: expected a and b apart, found b = /none/y/../x, the same directory as a \
            = /none/x (line 2); give each its own path"
        );
        let inside = [named("a", 2, "/none/x/y"), named("b", 3, "/none/x")];
        assert!(says(check_directories(&inside)).contains("a = /none/x/y, a directory inside b"));
        let apart = [named("a", 2, "/none/x"), named("b", 3, "/none/xy")];
        assert!(check_directories(&apart).is_ok());
    }

    #[test]
    fn a_symlink_hides_no_overlap() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        let at = |key, name: &str| named(key, 1, folder.path().join(name).to_str().unwrap());
        assert!(check_directories(&[at("a", "real/new"), at("b", "link/new")]).is_err());
        assert!(check_directories(&[at("a", "real/new"), at("b", "link/other")]).is_ok());
    }

    #[test]
    fn rotated_names_are_taken() {
        let rotated = named("full_backup", 1, "/none/data.master");
        for path in [
            "/none/data.master.0",
            "/none/data.master.12/wal",
            "/none/data.master.incoming",
        ] {
            assert!(
                check_rotation(&rotated, &[named("b", 2, path)]).is_err(),
                "{path}"
            );
        }
        for path in [
            "/none/data.master.wal",
            "/none/data.master2",
            "/other/data.master.0",
            "/",
        ] {
            assert!(
                check_rotation(&rotated, &[named("b", 2, path)]).is_ok(),
                "{path}"
            );
        }
    }

    #[test]
    fn files_are_compared_as_a_whole() {
        assert!(check_files(&[named("a", 1, "/none/x"), named("b", 2, "/none/./x")]).is_err());
        assert!(check_files(&[named("a", 1, "/none/x"), named("b", 2, "/none/x/y")]).is_ok());
    }
}
