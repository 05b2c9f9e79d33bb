//! A setting's text to a value of the shape its row demands, and back.
//! Never knows which setting it reads, never asks whether a path exists. Invariant: a value that
//! was parsed prints as text that parses to the same value.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use uzers::os::unix::UserExt;

use super::address::{ListenAddress, SlaveAddress};
use super::keys::Shape;
use super::quantity;

/// A checked value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Text or a shell command.
    Text(String),
    /// An absolute path.
    Path(PathBuf),
    /// A boolean.
    Boolean(bool),
    /// A whole number.
    Integer(u64),
    /// A time.
    Duration(Duration),
    /// A number of bytes.
    Size(u64),
    /// One of a row's words.
    Choice(&'static str),
    /// The standby's address.
    Slave(SlaveAddress),
    /// Addresses to listen on.
    Listen(Vec<ListenAddress>),
}

/// What was wrong: the end of "expected ...", and a hint where a better one than the row's exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    /// What would have been right.
    pub what: String,
    /// What to do, or empty.
    pub hint: String,
}

impl Expected {
    /// Without a special hint.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Expected {
            what: what.into(),
            hint: String::new(),
        }
    }

    /// With a hint of its own.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// Where paths start from.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    /// The directory of the ini file, absolute.
    pub directory: PathBuf,
    /// What `~` means.
    pub home: Option<PathBuf>,
    /// The home of a user, for `~NAME`.
    pub home_of: fn(&str) -> Option<PathBuf>,
}

impl Surroundings {
    /// Those of the running process, for a file in this directory.
    pub(super) fn of_process(directory: PathBuf) -> Self {
        Surroundings {
            directory,
            home: std::env::home_dir().filter(|home| home.is_absolute()),
            home_of,
        }
    }
}

/// Reads a value. The caller has dealt with an empty text where that means "unset".
pub(super) fn parse(shape: Shape, text: &str, around: &Surroundings) -> Result<Value, Expected> {
    if text.contains('\n') && !matches!(shape, Shape::Text | Shape::Command) {
        return Err(Expected::new("a value on one line")
            .hint("a line indented deeper than its key continues the value above it"));
    }
    match shape {
        Shape::Text | Shape::Command | Shape::Name => Ok(Value::Text(text.to_owned())),
        Shape::Path => path(text, around).map(Value::Path),
        Shape::BasePath if text.contains(':') || !text.contains(['/', '~']) => {
            Err(Expected::new("a directory, with a slash in it"))
        }
        Shape::BasePath => path(text, around).map(Value::Path),
        Shape::Boolean => boolean(text).map(Value::Boolean),
        Shape::Integer(min, max) => integer(text, min, max).map(Value::Integer),
        Shape::Duration(min, max) => quantity::duration(text, min, max).map(Value::Duration),
        Shape::Size(min, max) => quantity::size(text, min, max).map(Value::Size),
        Shape::Choice(words) => choice(text, words).map(Value::Choice),
        Shape::SlaveAddress => SlaveAddress::parse(text).map(Value::Slave),
        Shape::Listen(port) => ListenAddress::parse_list(text, port).map(Value::Listen),
        Shape::Fingerprint => fingerprint(text).map(Value::Text),
    }
}

fn path(text: &str, around: &Surroundings) -> Result<PathBuf, Expected> {
    if let Some(hint) = oddity(text) {
        return Err(Expected::new("a path").hint(hint));
    }
    let expanded = match text.strip_prefix('~') {
        None => PathBuf::from(text),
        Some(rest) => {
            let (user, below) = rest.split_once('/').unwrap_or((rest, ""));
            let home = match user {
                "" => around.home.clone(),
                user => (around.home_of)(user),
            };
            let home = home.ok_or_else(|| {
                Expected::new("a path").hint("the home directory is not known: write the path out")
            })?;
            home.join(below.trim_start_matches('/'))
        }
    };
    // Collecting drops a trailing slash and single dots, nothing that a symlink could give a sense.
    Ok(around.directory.join(expanded).components().collect())
}

/// What in a path another program would have taken out, and would be the name of a folder here.
fn oddity(text: &str) -> Option<&'static str> {
    let quoted = |quote: char| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
    if quoted('"') || quoted('\'') {
        return Some(
            "write it without the quotes: here they are part of a value, and blanks need none",
        );
    }
    if text.starts_with('$') {
        return Some(
            "variables of a shell mean nothing here: write the path out, or ~ for the home directory",
        );
    }
    // A name may begin with #, but hardly ends before a comment of one.
    let is_commented = [" # ", "\t# ", " #\t", "\t#\t"]
        .iter()
        .any(|mark| text.contains(mark));
    is_commented
        .then_some("behind a value a comment starts with a space and a semicolon, ` ;`, not with #")
}

fn home_of(user: &str) -> Option<PathBuf> {
    let user = uzers::get_user_by_name(user)?;
    Some(user.home_dir().to_path_buf()).filter(|home| home.is_absolute())
}

fn boolean(text: &str) -> Result<bool, Expected> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(Expected::new("1, true, yes or on, or 0, false, no or off")),
    }
}

fn integer(text: &str, min: u64, max: u64) -> Result<u64, Expected> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(number) if is_number && (min..=max).contains(&number) => Ok(number),
        _ => Err(Expected::new(format!("a whole number from {min} to {max}"))),
    }
}

fn choice(text: &str, words: &'static [&'static str]) -> Result<&'static str, Expected> {
    let word = words.iter().find(|word| word.eq_ignore_ascii_case(text));
    word.copied()
        .ok_or_else(|| Expected::new(words.join(" or ")))
}

/// Characters of unpadded base64 in a SHA-256.
const FINGERPRINT_CHARS: usize = 43;

fn fingerprint(text: &str) -> Result<String, Expected> {
    let base64 = text.strip_prefix("SHA256:").unwrap_or_default();
    let right = base64.len() == FINGERPRINT_CHARS
        && base64
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'));
    if right {
        return Ok(text.to_owned());
    }
    Err(Expected::new("SHA256: and 43 characters")
        .hint("`walmgr standby.ini identity` prints it on the standby"))
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => out.write_str(text),
            Value::Path(path) => write!(out, "{}", path.display()),
            Value::Boolean(value) => out.write_str(if *value { "on" } else { "off" }),
            Value::Integer(number) => write!(out, "{number}"),
            Value::Duration(time) => quantity::print_duration(*time, out),
            Value::Size(bytes) => quantity::print_size(*bytes, out),
            Value::Choice(word) => out.write_str(word),
            Value::Slave(address) => write!(out, "{address}"),
            Value::Listen(addresses) => {
                for (at, address) in addresses.iter().enumerate() {
                    write!(out, "{}{address}", if at == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn around() -> Surroundings {
        Surroundings {
            directory: PathBuf::from("/etc/walmgr"),
            home: Some(PathBuf::from("/home/me")),
            home_of: |_| None,
        }
    }

    fn read(shape: Shape, text: &str) -> Result<Value, Expected> {
        parse(shape, text, &around())
    }

    const TIME: Shape = Shape::Duration(Duration::from_millis(1), Duration::from_secs(86_400));
    const SIZE: Shape = Shape::Size(1, 1 << 40);

    #[test]
    fn paths_start_at_the_ini_file_or_at_home() {
        let path = |text| read(Shape::Path, text).map(|value| value.to_string());
        assert_eq!(path("a/b").unwrap(), "/etc/walmgr/a/b");
        assert_eq!(path("/a/./b/").unwrap(), "/a/b");
        assert_eq!(path("~").unwrap(), "/home/me");
        assert_eq!(path("~/a").unwrap(), "/home/me/a");
        assert_eq!(path("~//etc/x").unwrap(), "/home/me/etc/x");
        assert!(
            path("~nobody-here/a")
                .unwrap_err()
                .hint
                .contains("write the path out")
        );
        for (odd, hint) in [
            ("\"/a/b\"", "without the quotes"),
            ("'/a b'", "without the quotes"),
            ("$HOME/a", "write the path out"),
            ("${pg}/a", "write the path out"),
            ("/a # of master", "starts with a space and a semicolon"),
            ("/a\t# of master", "starts with a space and a semicolon"),
        ] {
            assert!(path(odd).unwrap_err().hint.contains(hint), "{odd}");
        }
        assert_eq!(path("/a #1/it's").unwrap(), "/a #1/it's");
        assert!(read(Shape::BasePath, "a").is_err());
        assert!(read(Shape::BasePath, "db2:/a").is_err());
        assert!(read(Shape::BasePath, "~/a").is_ok());
        assert_eq!(
            read(Shape::BasePath, "a/b").unwrap().to_string(),
            "/etc/walmgr/a/b"
        );
    }

    #[test]
    fn another_users_home_comes_from_the_user_list() {
        let around = Surroundings {
            home_of: |user| (user == "a").then(|| PathBuf::from("/home/a")),
            ..around()
        };
        let found = parse(Shape::Path, "~a/w", &around).unwrap();
        assert_eq!(found, Value::Path(PathBuf::from("/home/a/w")));
        assert!(parse(Shape::Path, "~bare/w", &around).is_err());
        assert_eq!(home_of("root"), Some(PathBuf::from("/root")));
        assert_eq!(home_of("no such user"), None);
    }

    #[test]
    fn booleans_take_pythons_words_in_any_case() {
        for text in ["1", "true", "Yes", "ON"] {
            assert_eq!(
                read(Shape::Boolean, text),
                Ok(Value::Boolean(true)),
                "{text}"
            );
        }
        for text in ["0", "False", "no", "off"] {
            assert_eq!(
                read(Shape::Boolean, text),
                Ok(Value::Boolean(false)),
                "{text}"
            );
        }
        for text in ["", "2", "y", "on off"] {
            assert!(read(Shape::Boolean, text).is_err(), "{text}");
        }
    }

    #[test]
    fn whole_numbers_keep_their_bounds() {
        let level = Shape::Integer(0, 19);
        assert_eq!(read(level, "19"), Ok(Value::Integer(19)));
        for text in [
            "20",
            "-1",
            "+1",
            "1.0",
            "",
            "high",
            "99999999999999999999999",
        ] {
            let wrong = read(level, text).unwrap_err();
            assert_eq!(wrong.what, "a whole number from 0 to 19", "{text}");
        }
    }

    #[test]
    fn words_are_taken_in_any_case_and_listed_when_wrong() {
        let words = Shape::Choice(&["fast", "spread"]);
        assert_eq!(read(words, "Fast"), Ok(Value::Choice("fast")));
        assert_eq!(read(words, "slow").unwrap_err().what, "fast or spread");
    }

    #[test]
    fn a_fingerprint_has_its_length_and_letters() {
        let good = format!("SHA256:{}", "a".repeat(43));
        assert_eq!(
            read(Shape::Fingerprint, &good),
            Ok(Value::Text(good.clone()))
        );
        for bad in [
            &good[1..],
            &good[..49],
            &format!("{good}="),
            &good.replace('a', "-"),
        ] {
            assert!(read(Shape::Fingerprint, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_texts_and_commands_run_over_several_lines() {
        assert!(read(Shape::Command, "a\nb").is_ok());
        assert_eq!(
            read(Shape::Path, "a\nb").unwrap_err().what,
            "a value on one line"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,40}") {
            for shape in [
                Shape::Path, Shape::Boolean, Shape::Integer(0, u64::MAX), TIME, SIZE,
                Shape::SlaveAddress, Shape::Listen(7432), Shape::Fingerprint,
            ] {
                if let Ok(value) = read(shape, &text) {
                    let again = read(shape, &value.to_string()).map(|value| value.to_string());
                    prop_assert_eq!(again, Ok(value.to_string()));
                }
            }
        }
    }
}
