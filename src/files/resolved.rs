//! Where a path leads: its symlinks and dots resolved.
//! Never fails for what does not exist. Invariant: the answer is that of going through it a directory at a time.

use std::path::{Component, Path, PathBuf};

/// The path with the symlinks and dots resolved that can be; what does not exist stays as written.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    // Every command asks for many paths, of which most exist and few have a `..`.
    let goes_up = path.components().any(|part| part == Component::ParentDir);
    // Without dots and slashes at its end, which name no other file.
    let plain: PathBuf = (path.components())
        .filter(|part| *part != Component::CurDir)
        .collect();
    for there in plain.ancestors().take_while(|_| !goes_up) {
        if there.as_os_str().is_empty() {
            break;
        }
        if let (Ok(real), Ok(rest)) = (there.canonicalize(), plain.strip_prefix(there)) {
            return real.components().chain(rest.components()).collect();
        }
    }
    resolved_by_steps(path)
}

fn resolved_by_steps(path: &Path) -> PathBuf {
    let mut found = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                found.pop();
            }
            Component::CurDir => {}
            part => found.push(part),
        }
        // A directory at a time, so that `..` leaves where a symlink led and not where it stood.
        if let Ok(real) = found.canonicalize() {
            found = real;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_resolved_as_step_by_step() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("real/inner")).unwrap();
        std::fs::write(at("real/file"), "x").unwrap();
        for (name, target) in [
            ("folder", "real"),
            ("log", "real/file"),
            ("dangling", "nowhere"),
            ("loop", "loop"),
        ] {
            std::os::unix::fs::symlink(at(target), at(name)).unwrap();
        }
        for name in [
            "real/inner",
            "folder/inner",
            "folder/missing/deeper",
            "folder/../log",
            "folder/./inner/.",
            "log",
            "log/",
            "log/.",
            "dangling",
            "dangling/under",
            "loop/under",
            "missing/../real",
            "",
        ] {
            let path = at(name);
            assert_eq!(resolved(&path), resolved_by_steps(&path), "{name}");
        }
        for path in ["missing", "./missing", "missing/./x", ".", ""] {
            let path = Path::new(path);
            assert_eq!(resolved(path), resolved_by_steps(path), "{path:?}");
        }
        assert_eq!(resolved(&at("log/")), resolved(&at("real/file")));
    }
}
