//! Whether a `restore_command` reads WAL with an ini file, as far as its text and the files that it names tell.
//! Never runs anything. Invariant: no is said only of a command that calls no walmgr, or names another ini file that is there.

use std::path::{Path, PathBuf};

use super::shell::items;
use super::{Ours, SHELLS_MAX, interpreter, is_same_file, place_of};

/// The command in walmgr's line.
const XRESTORE: &str = "xrestore";

/// Whether walmgr may be called with this ini file; what cannot be told counts as yes.
pub(crate) fn may_restore_with(command: &str, ours: &Ours<'_>) -> bool {
    let mut places = Vec::new();
    collect_places(&command.replace("%%", "%"), ours.data, 0, &mut places);
    if places.iter().any(|place| is_same_file(place, ours.ini)) {
        return true;
    }
    let is_another = |place: &PathBuf| place.extension() == ours.ini.extension() && place.is_file();
    if places.iter().any(is_another) {
        return false;
    }
    let calls = |place: &PathBuf| {
        let script = place.to_str().and_then(interpreter);
        script.is_some_and(|script| script.text.contains(XRESTORE))
    };
    command.contains(XRESTORE) || places.iter().any(calls)
}

/// What each word would be as a path, also within the text of a shell in the shell.
fn collect_places(text: &str, data: &Path, depth: usize, places: &mut Vec<PathBuf>) {
    let mut folder = data.to_path_buf();
    for item in items(text) {
        if let [cd, place] = &item.words[..]
            && cd == "cd"
        {
            folder = place_of(&folder, place);
        }
        for word in &item.words {
            places.push(place_of(&folder, word));
            if word.contains(char::is_whitespace) && depth < SHELLS_MAX {
                collect_places(word, &folder, depth + 1, places);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_176_only_another_ini_file_or_program_leaves_this_one_unused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let script = "#!/bin/sh\nexec walmgr $INI xrestore \"$@\"\n";
        for (name, text) in [("own.ini", ""), ("other.ini", ""), ("restore.sh", script)] {
            std::fs::write(at(name), text).unwrap();
        }
        std::os::unix::fs::symlink("own.ini", at("link.ini")).unwrap();
        let (ini, shown) = (at("own.ini"), folder.path().display().to_string());
        let ours = Ours {
            ini: &ini,
            data: Path::new("/nowhere"),
        };
        for (command, expected) in [
            ("walmgr HERE/own.ini xrestore %f %p", true),
            ("walmgr HERE/./own.ini xrestore %f %p", true),
            ("walmgr HERE/link.ini xrestore %f %p", true),
            ("cd HERE && walmgr own.ini xrestore %f %p", true),
            ("sh -c 'cd HERE; walmgr own.ini xrestore %f %p'", true),
            ("walmgr $CONF/own.ini xrestore %f %p", true),
            ("HERE/restore.sh %f %p", true),
            ("walmgr HERE/other.ini xrestore %f %p", false),
            ("cp /srv/wal/%f %p", false),
            ("", false),
        ] {
            let command = command.replace("HERE", &shown);
            assert_eq!(may_restore_with(&command, &ours), expected, "{command}");
        }
    }

    #[test]
    fn a_tilde_is_the_home_directory() {
        let home = std::env::home_dir().unwrap();
        assert_eq!(place_of(Path::new("/data"), "~/a.ini"), home.join("a.ini"));
        assert_eq!(place_of(Path::new("/data"), "a~b"), Path::new("/data/a~b"));
    }
}
