//! Fuzz bodies for everything in this room that reads bytes it did not write.
//! Never part of a command. Invariant: each takes any bytes and asserts what must hold for all.

use super::conf;
use super::conninfo::{self, Environment};
use super::control;
use super::data_directory::Postmaster;

/// Control files: no panic, and nothing behind the checksum matters.
pub fn control_file(bytes: &[u8]) {
    if let Ok(control) = control::parse(bytes) {
        let mut longer = bytes.to_vec();
        longer.push(0xFF);
        assert_eq!(control::parse(&longer).as_ref(), Ok(&control));
    }
}

/// `postmaster.pid`: no panic, and no process group or "every process" as an id to signal.
pub fn postmaster_pid(bytes: &[u8]) {
    if let Some(postmaster) = Postmaster::parse(&String::from_utf8_lossy(bytes)) {
        assert!(postmaster.pid > 0);
    }
}

/// `postgresql.conf`: an edit can be read back, and doing it again changes nothing.
pub fn conf_edit(bytes: &[u8]) {
    let changes = [
        ("archive_command", "'walmgr' \\ %p"),
        ("archive_mode", "on"),
    ];
    let edit = |text: &[u8]| conf::edit(text, &changes).expect("names and values are valid");
    let (edited, made) = edit(bytes);
    for (name, value) in changes {
        assert_eq!(conf::value(&edited, name).as_deref(), Some(value));
    }
    assert!(made.len() <= changes.len());
    let (again, nothing) = edit(&edited);
    assert!(nothing.is_empty() && again == edited);
}

/// Connection strings: no panic, and never a session with TLS silently left out.
pub fn connection_string(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(config) = conninfo::parse(&text, &Environment::default()) {
        assert!(config.get_user().is_some());
        assert!(!config.get_ports().is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{CONTROL_FILES, control_file as fixture};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn damaged_real_files_satisfy_the_fuzz_bodies() {
        for (major, _) in CONTROL_FILES {
            let mut file = fixture(major);
            file.truncate(300);
            for at in 0..file.len() {
                control_file(&file);
                file[at] ^= 0x55;
                control_file(&file[..at]);
                control_file(&file);
                file[at] ^= 0x55;
            }
        }
    }

    /// Bytes whose checksum is right reach the checks behind it.
    #[test]
    fn nonsense_under_a_right_checksum_satisfies_the_fuzz_body() {
        for (major, _) in CONTROL_FILES {
            let crc_at = if major == 18 { 292 } else { 288 };
            for at in (16..crc_at).filter(|at| *at < 8 || *at >= 12) {
                let mut file = fixture(major);
                file[at] ^= 0xFF;
                let crc = crc32c::crc32c(&file[..crc_at]);
                file[crc_at..crc_at + 4].copy_from_slice(&crc.to_ne_bytes());
                control_file(&file);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_satisfy_the_fuzz_bodies(bytes: Vec<u8>, text in "[a-z'= \\\\\n#_0-9]{0,60}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                control_file(bytes);
                postmaster_pid(bytes);
                conf_edit(bytes);
                connection_string(bytes);
            }
        }
    }
}
