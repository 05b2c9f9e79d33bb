//! Which processes below a server run its `restore_command`, as the kernel tells it.
//! Never signals one. Invariant: a process is named only if it descends from the server.

use std::collections::HashMap;

/// Processes between a server and its `restore_command`: the startup process and a shell or two.
const DEPTH_MAX: usize = 8;

/// The process ids of the `xrestore` calls of this server, the shells around them included.
pub(super) fn restorers_below(server: i32) -> Vec<i32> {
    let mut parents = HashMap::new();
    let mut restorers = Vec::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return restorers;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // One that has ended meanwhile has nothing to read.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some(parent) = parent_of(&stat) else {
            continue;
        };
        parents.insert(pid, parent);
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line
            .windows(b"xrestore".len())
            .any(|word| word == b"xrestore")
        {
            restorers.push(pid);
        }
    }
    restorers.retain(|pid| {
        let above = std::iter::successors(Some(*pid), |pid| parents.get(pid).copied());
        above.skip(1).take(DEPTH_MAX).any(|pid| pid == server)
    });
    restorers
}

/// `PID (NAME) STATE PPID …` (proc(5)); the name may hold anything.
fn parent_of(stat: &str) -> Option<i32> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn a_parent_is_read_behind_a_name_that_holds_anything() {
        assert_eq!(parent_of("41 (post gres) S) S 7 41 41 0"), Some(7));
        assert_eq!(parent_of("41 (x"), None);
        assert_eq!(parent_of(""), None);
    }

    #[test]
    fn only_calls_below_the_server_are_named() {
        let mut sleeper = std::process::Command::new("sleep")
            .arg0("xrestore")
            .arg("60")
            .spawn()
            .unwrap();
        let own = std::process::id().cast_signed();
        let pid = sleeper.id().cast_signed();
        let seen = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            restorers_below(own).contains(&pid)
        });
        let elsewhere = restorers_below(pid);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(seen);
        assert!(!elsewhere.contains(&pid));
    }
}
