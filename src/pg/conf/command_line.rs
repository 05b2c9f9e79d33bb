//! What a server's command line sets, as its `postmaster.opts` keeps it.
//! Never looks at a process: the file outlives it. Invariant: options are read as `PostmasterMain` reads them, so
//! the last one that sets a parameter wins.

/// Single letters that set a parameter (`src/backend/postmaster/postmaster.c`); `None`: the next word is its value.
const LETTERS: [(u8, &str, Option<&str>); 10] = [
    (b'B', "shared_buffers", None),
    (b'F', "fsync", Some("off")),
    (b'N', "max_connections", None),
    (b'S', "work_mem", None),
    (b'd', "log_min_messages", None),
    (b'h', "listen_addresses", None),
    (b'i', "listen_addresses", Some("*")),
    (b'k', "unix_socket_directories", None),
    (b'l', "ssl", Some("on")),
    (b'p', "port", None),
];

/// Letters with a value that is no parameter's, or of one that nobody here asks about.
const WITH_VALUE: &[u8] = b"CDWcfrt";

/// A server's options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// What `-D` said.
    pub directory: Option<String>,
    settings: Vec<(String, String)>,
}

impl CommandLine {
    /// Reads `postmaster.opts`: the program's path, and each word in double quotes. A quote within a word stands
    /// there as it is, so only what parts two words ends one.
    pub(crate) fn parse(text: &[u8]) -> CommandLine {
        let text = String::from_utf8_lossy(text);
        let text = text.trim_end_matches(['\n', '\0']);
        let words = text.split_once(" \"").map_or("", |(_, words)| words);
        let words = words.strip_suffix('"').unwrap_or(words);
        let mut line = CommandLine::default();
        let mut words = words.split("\" \"");
        while let Some(word) = words.next() {
            let Some(option) = word.strip_prefix('-').filter(|it| !it.is_empty()) else {
                break;
            };
            match option.strip_prefix('-') {
                Some("") => break,
                Some(long) => line.set_long(long),
                None => line.read_letters(option, &mut words),
            }
        }
        line
    }

    /// What it sets a parameter to.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let mut settings = self.settings.iter().rev();
        let found = settings.find(|(set, _)| set.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn read_letters<'a>(&mut self, option: &str, words: &mut impl Iterator<Item = &'a str>) {
        for (at, letter) in option.bytes().enumerate() {
            let known = LETTERS.iter().find(|(of, ..)| *of == letter);
            if let Some((_, name, Some(value))) = known {
                self.set(name, value);
                continue;
            }
            if known.is_none() && !WITH_VALUE.contains(&letter) {
                continue;
            }
            let rest = option.get(at + 1..).filter(|rest| !rest.is_empty());
            let value = rest.or_else(|| words.next()).unwrap_or_default();
            match (letter, known) {
                (b'c', _) => self.set_long(value),
                (b'D', _) => self.directory = Some(value.to_owned()),
                (_, Some((_, name, _))) => self.set(name, value),
                _ => {}
            }
            return;
        }
    }

    /// `name=value`, where dashes stand for underscores (`ParseLongOption`).
    fn set_long(&mut self, option: &str) {
        if let Some((name, value)) = option.split_once('=') {
            self.set(&name.replace('-', "_"), value);
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.settings.push((name.to_owned(), value.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_are_read_as_the_server_reads_them() {
        let line = CommandLine::parse(
            b"/usr/lib/pg 15/bin/postgres \"-D\" \"/srv/my data\" \"-c\" \"config_file=/etc/x y/postgresql.conf\" \
              \"-crecovery_target_name=a \"b\"\" \"--recovery-target-action=pause\" \"-iN\" \"50\" \"-N60\" \"-F\" \
              \"-c\" \"port=1\" \"-p\" \"5433\"\n",
        );
        assert_eq!(line.directory.as_deref(), Some("/srv/my data"));
        for (name, value) in [
            ("config_file", "/etc/x y/postgresql.conf"),
            ("recovery_target_name", "a \"b\""),
            ("Recovery_Target_Action", "pause"),
            ("listen_addresses", "*"),
            ("max_connections", "60"),
            ("fsync", "off"),
            ("port", "5433"),
        ] {
            assert_eq!(line.value(name), Some(value), "{name}");
        }
        assert_eq!(line.value("work_mem"), None);
    }

    #[test]
    fn what_is_no_option_ends_them() {
        for text in [
            &b""[..],
            b"/bin/postgres\n",
            b"/bin/postgres \"--\" \"-c\" \"a=1\"\n",
            b"x \"a\" \"-ca=1\"\n",
        ] {
            assert_eq!(CommandLine::parse(text), CommandLine::default());
        }
        assert_eq!(CommandLine::parse(b"x \"-c\"\n"), CommandLine::default());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, words in "x( \"-[-cDNiö=a]{0,6}\"){0,6}") {
            let _ = CommandLine::parse(&bytes);
            let _ = CommandLine::parse(words.as_bytes());
        }
    }
}
