//! `synchronous_standby_names`: which standbys a commit waits for, as PostgreSQL reads the text.
//! Never asks a server. Invariant: what is taken here every server from 13 to 18 takes, with the same meaning
//! (`src/backend/replication/syncrep_scanner.l`, `syncrep_gram.y`).
//!
//! ```text
//! a, b          FIRST 1 (a, b)
//! 2 (a, b, c)   FIRST 2 (a, b, c)     the first two that are connected, in this order
//!               ANY 2 (a, b, c)       any two of them
//! *             every name; "a b" for one that is no word
//! ```

use std::fmt;

use crate::error::{CommandError, Result};

/// Characters of a text that an error shows.
const SHOWN_MAX: usize = 200;

/// What stands for every standby.
const EVERY: &str = "*";

/// Which standbys a commit waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynchronousNames {
    /// How many of them have to have a commit.
    pub needed: u32,
    /// `application_name`s, or `*`, in their order.
    pub names: Vec<String>,
    /// Whether any of them will do, or the first.
    pub(crate) is_any: bool,
}

/// A word of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Any,
    First,
    Name(String),
    Number(String),
    Comma,
    Open,
    Close,
}

impl fmt::Display for Word {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Any => out.write_str("`ANY`"),
            Word::First => out.write_str("`FIRST`"),
            Word::Name(text) | Word::Number(text) => write!(out, "`{text}`"),
            Word::Comma => out.write_str("`,`"),
            Word::Open => out.write_str("`(`"),
            Word::Close => out.write_str("`)`"),
        }
    }
}

impl SynchronousNames {
    /// Reads the text; the empty one is for whoever calls this.
    pub fn parse(text: &str) -> Result<SynchronousNames> {
        read(text).map_err(|wrong| {
            let shown: String = text.chars().take(SHOWN_MAX).collect();
            CommandError::usage(format!(
                "{shown:?} is no list of standbys for synchronous_standby_names: {wrong}"
            ))
            .hint(
                "expected 'a, b', 'FIRST 1 (a, b)', 'ANY 2 (a, b, c)' or '*', a name that is no word in double \
                quotes; '' turns synchronous replication off",
            )
        })
    }

    /// Whether a standby of this `application_name` is one of them.
    pub fn takes(&self, application_name: &str) -> bool {
        let mut names = self.names.iter();
        names.any(|name| is_taken_by(name, application_name))
    }

    /// The text without this standby, and of no more standbys than are left in it; `None` where it is not named. What
    /// `*` stands for stays.
    pub(crate) fn without(&self, application_name: &str) -> Option<String> {
        let is_it = |name: &&String| *name != EVERY && name.eq_ignore_ascii_case(application_name);
        let left: Vec<&String> = self.names.iter().filter(|name| !is_it(name)).collect();
        let listed = |name: &&String| match name.as_str() {
            EVERY => EVERY.to_owned(),
            name => format!("\"{}\"", name.replace('"', "\"\"")),
        };
        let list: Vec<String> = left.iter().map(listed).collect();
        let needed = left.len().min(self.needed as usize);
        let how = match self.is_any {
            true => "ANY",
            false => "FIRST",
        };
        match left.len() {
            count if count == self.names.len() => None,
            0 => Some(String::new()),
            _ => Some(format!("{how} {needed} ({})", list.join(", "))),
        }
    }
}

/// Whether a name of the list is this standby's (`SyncRepGetStandbyPriority`).
pub(crate) fn is_taken_by(name: &str, application_name: &str) -> bool {
    name == EVERY || name.eq_ignore_ascii_case(application_name)
}

fn read(text: &str) -> std::result::Result<SynchronousNames, String> {
    let words = words(text)?;
    let is_any = words.first() == Some(&Word::Any);
    let (needed, list) = match &words[..] {
        [
            Word::Any | Word::First,
            Word::Number(needed),
            Word::Open,
            rest @ ..,
        ]
        | [Word::Number(needed), Word::Open, rest @ ..] => match rest {
            [list @ .., Word::Close] => (number(needed)?, list),
            _ => return Err("the bracket is not closed at the end".to_owned()),
        },
        [word @ (Word::Any | Word::First), ..] => {
            return Err(format!(
                "{word} is followed by a number and a list in brackets"
            ));
        }
        list => (1, list),
    };
    let mut names = Vec::new();
    let mut list = list.iter();
    loop {
        match list.next() {
            Some(Word::Name(name) | Word::Number(name)) => names.push(name.clone()),
            Some(word) => return Err(format!("expected a name, found {word}")),
            None => return Err("expected a name at the end".to_owned()),
        }
        match list.next() {
            None => {
                return Ok(SynchronousNames {
                    needed,
                    names,
                    is_any,
                });
            }
            Some(Word::Comma) => {}
            Some(word) => return Err(format!("expected a comma, found {word}")),
        }
    }
}

/// How many are needed: `atoi`, and not zero.
fn number(digits: &str) -> std::result::Result<u32, String> {
    let number = digits
        .parse::<i32>()
        .ok()
        .and_then(|it| u32::try_from(it).ok());
    number
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("{digits} is not a number of standbys from 1 to 2147483647"))
}

fn words(text: &str) -> std::result::Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let length =
            |fits: fn(char) -> bool| rest.find(|letter| !fits(letter)).unwrap_or(rest.len());
        let (word, taken) = match letter {
            // Version 15 and older know no vertical tab.
            ' ' | '\t' | '\n' | '\r' | '\x0c' => {
                rest = &rest[1..];
                continue;
            }
            ',' => (Word::Comma, 1),
            '(' => (Word::Open, 1),
            ')' => (Word::Close, 1),
            '*' => (Word::Name(EVERY.to_owned()), 1),
            '"' => quoted(rest)?,
            letter if letter.is_ascii_digit() => {
                let taken = length(|letter| letter.is_ascii_digit());
                (Word::Number(rest[..taken].to_owned()), taken)
            }
            letter if begins_name(letter) => {
                let taken = length(|letter| {
                    begins_name(letter) || letter.is_ascii_digit() || letter == '$'
                });
                (word_of(&rest[..taken]), taken)
            }
            letter => {
                return Err(format!(
                    "{letter:?} stands in no name; put the name into double quotes"
                ));
            }
        };
        words.push(word);
        rest = &rest[taken..];
    }
    Ok(words)
}

/// Every byte above ASCII is a letter.
fn begins_name(letter: char) -> bool {
    letter.is_ascii_alphabetic() || letter == '_' || !letter.is_ascii()
}

fn word_of(text: &str) -> Word {
    match text {
        text if text.eq_ignore_ascii_case("any") => Word::Any,
        text if text.eq_ignore_ascii_case("first") => Word::First,
        text => Word::Name(text.to_owned()),
    }
}

/// A name in double quotes, and how long it is with them; two quotes stand for one.
fn quoted(text: &str) -> std::result::Result<(Word, usize), String> {
    let mut name = String::new();
    let mut letters = text.char_indices().skip(1).peekable();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' if letters.next_if(|(_, next)| *next == '"').is_some() => name.push('"'),
            '"' => return Ok((Word::Name(name), at + 1)),
            letter => name.push(letter),
        }
    }
    Err("a double quote is not closed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_grammar_is_read_as_the_server_reads_it() {
        for (text, needed, names) in [
            ("a", 1, &["a"][..]),
            (" a , B\t,c1$ ", 1, &["a", "B", "c1$"]),
            ("*", 1, &["*"]),
            ("2 (a, b)", 2, &["a", "b"]),
            ("first 1(a,\"any\")", 1, &["a", "any"]),
            ("ANY 3 (\"x y\", \"q\"\"q\", *)", 3, &["x y", "q\"q", "*"]),
            ("anyone, firsts", 1, &["anyone", "firsts"]),
            ("1, 22", 1, &["1", "22"]),
            ("größe", 1, &["größe"]),
            ("\"\"", 1, &[""]),
        ] {
            let read = SynchronousNames::parse(text).unwrap();
            assert_eq!(
                (read.needed, &read.names[..]),
                (needed, &names.map_to_owned()[..]),
                "{text}"
            );
        }
    }

    trait Owned {
        fn map_to_owned(&self) -> Vec<String>;
    }

    impl Owned for &[&str] {
        fn map_to_owned(&self) -> Vec<String> {
            self.iter().map(|text| (*text).to_owned()).collect()
        }
    }

    #[test]
    fn what_the_server_refuses_is_refused_in_one_sentence() {
        for text in [
            "",
            " ",
            ",",
            "a,",
            "a b",
            "a-b",
            "any",
            "ANY (a)",
            "FIRST 1 a",
            "2 (a",
            "2 ()",
            "0 (a)",
            "99999999999 (a)",
            "(a)",
            "any 1 (a), b",
            "1a",
            "\"a",
            "a;b",
            "'a'",
            "a\u{b}b",
        ] {
            let error = SynchronousNames::parse(text).unwrap_err().to_string();
            assert!(error.contains("is no list of standbys"), "{text}: {error}");
        }
    }

    #[test]
    fn names_are_compared_as_the_server_does() {
        let names = SynchronousNames::parse("Alpha, \"b c\"").unwrap();
        assert!(names.takes("alpha") && names.takes("B C"));
        assert!(!names.takes("alph") && !names.takes(""));
        assert!(SynchronousNames::parse("*").unwrap().takes("any thing"));
    }

    #[test]
    fn fault_275_a_name_is_taken_out_of_every_form_and_the_rest_stays() {
        for (text, left) in [
            ("main", Some("")),
            ("FIRST 1 (\"Main\")", Some("")),
            ("main, b", Some("FIRST 1 (\"b\")")),
            (
                "ANY 1 (a, main, \"q\"\"q\")",
                Some("ANY 1 (\"a\", \"q\"\"q\")"),
            ),
            ("2 (main, b)", Some("FIRST 1 (\"b\")")),
            ("ANY 2 (main, a, *)", Some("ANY 2 (\"a\", *)")),
            ("a, b", None),
            ("*", None),
        ] {
            let names = SynchronousNames::parse(text).unwrap();
            let found = names.without("main");
            assert_eq!(found.as_deref(), left, "{text}");
            for left in found.iter().filter(|left| !left.is_empty()) {
                assert_eq!(SynchronousNames::parse(left).unwrap().without("main"), None);
            }
        }
    }

    #[test]
    fn a_parsed_list_can_be_written_and_read_again() {
        for text in [
            "",
            "a",
            "ANY 2 (a, \"b\"\"c\")",
            "* , 1",
            "\u{1b}",
            "2 (\"",
            "é(",
            "a\u{0}b",
        ] {
            crate::pg::fuzzing::synchronous_names(text.as_bytes());
        }
    }
}
