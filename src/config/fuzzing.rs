//! Fuzz bodies of the ini reader, as functions so that unit tests run them too.
//! Never reads a file or the environment. Invariant: they return for any bytes, in time and memory
//! bounded by the bytes' length, and panic only where a promise of the reader is broken.

use std::path::{Path, PathBuf};

use super::keys;
use super::settings::GivenSettings;
use super::value::{self, Surroundings, Value};
use super::{ini, load_bytes};

fn around() -> Surroundings {
    Surroundings {
        directory: PathBuf::from("/nowhere"),
        home: Some(PathBuf::from("/nowhere/home")),
        home_of: |_| None,
    }
}

/// Any bytes as an ini file: it loads or is refused in words, and what loads prints and loads again.
pub fn ini_file(bytes: &[u8]) {
    let path = Path::new("/nowhere/walmgr.ini");
    if let Err(fault) = load_bytes(bytes, path, &[], around()) {
        let text = fault.into_error(path).to_string();
        assert!(
            text.contains("/nowhere/walmgr.ini"),
            "the error names no file: {text}"
        );
        assert!(text.contains("; "), "the error says not what to do: {text}");
    }
    let Ok(section) = ini::parse(bytes) else {
        return;
    };
    let Ok(settings) = GivenSettings::check(path, &section, &[], around()) else {
        return;
    };
    printed_settings_load_again(&settings);
}

fn printed_settings_load_again(settings: &GivenSettings) {
    let mut text = String::from("[again]\n");
    let mut printed = Vec::new();
    for (name, setting) in settings.iter() {
        let Some(value) = ini::print_value(&setting.value.to_string()) else {
            // Texts of several lines, or with ` ;` in them, came from continuation lines.
            continue;
        };
        text.push_str(&format!("{name} = {value}\n"));
        printed.push((name, setting));
    }
    let Ok(section) = ini::parse(text.as_bytes()) else {
        unreachable!("what was printed is no ini file: {text}");
    };
    assert_eq!(section.entries.len(), printed.len());
    for (entry, (name, setting)) in section.entries.iter().zip(printed) {
        let plain = entry.value().replace("%%", "%");
        let row = keys::row(name, settings.side).map(|row| row.shape);
        let again = row.map(|shape| value::parse(shape, &plain, settings.around()));
        let Some(Ok(again)) = again else {
            unreachable!("{name}: {plain} was printed and is refused: {again:?}");
        };
        match (&again, &setting.value) {
            // The path behind the host is not printed: it has no meaning.
            (Value::Slave(again), Value::Slave(first)) => {
                assert_eq!((&again.host, again.port), (&first.host, first.port));
            }
            (again, first) => assert_eq!(again, first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any settings and values from `--set` over a small file.
    fn overrides(overrides: &[(String, String)]) {
        let file = b"[walmgr]\nmaster_data = /nowhere/data\nslave = localhost\n";
        let path = Path::new("/nowhere/walmgr.ini");
        if let Err(fault) = load_bytes(file, path, overrides, around()) {
            let text = fault.into_error(path).to_string();
            assert!(
                text.contains("--set") || text.contains("walmgr.ini"),
                "{text}"
            );
        }
    }

    const SEEDS: [&str; 4] = [
        include_str!("testdata/manual-master.ini"),
        include_str!("testdata/manual-slave.ini"),
        include_str!("testdata/walkthrough-master.ini"),
        include_str!("testdata/walkthrough-standby.ini"),
    ];

    #[test]
    fn the_samples_and_all_their_beginnings_pass() {
        for seed in SEEDS {
            for end in 0..seed.len() {
                ini_file(&seed.as_bytes()[..end]);
            }
        }
    }

    #[test]
    fn files_made_to_be_slow_end_soon() {
        let begin = std::time::Instant::now();
        let references = "%(slave)s".repeat(25_000);
        ini_file(format!("[s]\nslave =\nmaster_data = {references}\n").as_bytes());
        ini_file(format!("[s]\nk = v\n{}", "  x\n".repeat(50_000)).as_bytes());
        ini_file(&b"[s]\nslave = a\n".repeat(20_000));
        ini_file(format!("[s]\n{} = v\n", "k".repeat(1 << 19)).as_bytes());
        ini_file(format!("[s]\nmaster_data = {}\nslave = x\n", "/a".repeat(8_000)).as_bytes());
        ini_file(&vec![b'%'; 1 << 20]);
        assert!(begin.elapsed().as_secs() < 300, "{:?}", begin.elapsed());
    }

    proptest! {
        #[test]
        fn any_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            ini_file(&bytes);
        }

        #[test]
        fn samples_with_bytes_changed_pass(
            seed in 0..SEEDS.len(), at in any::<prop::sample::Index>(), with in "\\PC{0,3}|\n|\t| ;|%"
        ) {
            let text = SEEDS[seed];
            let at = at.index(text.len());
            if text.is_char_boundary(at) {
                ini_file(format!("{}{with}{}", &text[..at], &text[at..]).as_bytes());
                ini_file(format!("{}{with}{}", &text[..at], &text[at + 1..]).as_bytes());
            }
        }

        #[test]
        fn any_lines_of_known_keys_pass(
            lines in prop::collection::vec((0..keys::KEYS.len(), "\\PC{0,24}"), 0..12)
        ) {
            let mut text = String::from("[s]\n");
            for (at, value) in lines {
                text.push_str(&format!("{} = {value}\n", keys::KEYS[at].name));
            }
            ini_file(text.as_bytes());
        }

        #[test]
        fn any_overrides_pass(
            pairs in prop::collection::vec(("\\PC{0,20}|tls|slave|block_size|loop_delay", "\\PC{0,40}"), 0..4)
        ) {
            overrides(&pairs);
        }
    }
}
