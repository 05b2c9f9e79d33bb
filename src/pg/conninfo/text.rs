//! The two spellings of a connection string, `key=value` pairs and `postgresql://` addresses, and
//! the string without its secrets. Never looks at a value. Invariant: what libpq would read
//! otherwise is refused, and a text that cannot be read is shown with too little rather than too much.

use super::options::{Given, give};

/// Letters of a text that an error shows.
const SHOWN_MAX: usize = 300;

/// Reads a connection string.
pub(super) fn options(text: &str) -> Result<Given, String> {
    match ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
    {
        Some(rest) => address(rest),
        None => pairs(text),
    }
}

/// `conninfo_parse` (`src/interfaces/libpq/fe-connect.c`): blanks around `=`, single quotes,
/// backslashes; a later option replaces an earlier one.
fn pairs(text: &str) -> Result<Given, String> {
    let mut given = Given::new();
    let mut rest = text.trim_start_matches(is_blank);
    while !rest.is_empty() {
        let wrong = || "expected name=value, names without blanks".to_owned();
        let (name, after) = rest.split_once('=').ok_or_else(wrong)?;
        let name = name.trim_end_matches(is_blank);
        if name.is_empty() || name.contains(is_blank) {
            return Err(wrong());
        }
        let (value, after) = option_value(after.trim_start_matches(is_blank))
            .ok_or_else(|| format!("the quote of {name} is not closed"))?;
        give(&mut given, name, value)?;
        rest = after.trim_start_matches(is_blank);
    }
    Ok(given)
}

/// `isspace` in every locale: other blanks are letters.
fn is_blank(letter: char) -> bool {
    letter.is_ascii_whitespace() || letter == '\u{b}'
}

/// The value at the beginning and what follows it; `None` for a quote without an end.
fn option_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let body = if quoted { &text[1..] } else { text };
    let mut value = String::new();
    let mut letters = body.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Some((value, &body[at + 1..])),
            letter if !quoted && is_blank(letter) => return Some((value, &body[at..])),
            letter => value.push(letter),
        }
    }
    (!quoted).then_some((value, ""))
}

/// `conninfo_uri_parse_options`: what stands behind the scheme.
fn address(text: &str) -> Result<Given, String> {
    let mut given = Given::new();
    let mut rest = text;
    let authority_bytes = text.find('/').unwrap_or(text.len());
    if let Some(at) = text[..authority_bytes].find('@') {
        let (user, password) = match text[..at].split_once(':') {
            Some((user, password)) => (user, password),
            None => (&text[..at], ""),
        };
        keep(&mut given, "user", &decoded(user)?)?;
        keep(&mut given, "password", &decoded(password)?)?;
        rest = &text[at + 1..];
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    loop {
        let (host, port, after) = host_and_port(rest)?;
        hosts.push(decoded(host)?);
        ports.push(decoded(port)?);
        rest = after;
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => break,
        }
    }
    keep(&mut given, "host", &hosts.join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        keep(&mut given, "port", &ports.join(","))?;
    }
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    keep(
        &mut given,
        "dbname",
        &decoded(path.strip_prefix('/').unwrap_or(path))?,
    )?;
    let mut query = query.unwrap_or_default();
    while !query.is_empty() {
        let (pair, behind) = query.split_once('&').unwrap_or((query, ""));
        query = behind;
        let (name, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or("expected name=value after the question mark, joined by &")?;
        let (name, value) = (decoded(name)?, decoded(value)?);
        // What JDBC calls it.
        match (name.as_str(), value.as_str()) {
            ("ssl", "true") => give(&mut given, "sslmode", "require".to_owned())?,
            (name, _) => give(&mut given, name, value.clone())?,
        }
    }
    Ok(given)
}

/// An empty part of an address says nothing.
fn keep(given: &mut Given, name: &str, value: &str) -> Result<(), String> {
    match value {
        "" => Ok(()),
        value => give(given, name, value.to_owned()),
    }
}

fn host_and_port(text: &str) -> Result<(&str, &str, &str), String> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(inner) => inner
            .split_once(']')
            .filter(|(host, _)| !host.is_empty())
            .ok_or("expected an IPv6 address between [ and ]")?,
        None => text.split_at(text.find([':', '/', '?', ',']).unwrap_or(text.len())),
    };
    match rest.chars().next() {
        None | Some('/' | '?' | ',') => Ok((host, "", rest)),
        Some(':') => {
            let rest = &rest[1..];
            let (port, rest) = rest.split_at(rest.find(['/', '?', ',']).unwrap_or(rest.len()));
            Ok((host, port, rest))
        }
        Some(other) => Err(format!("unexpected {other:?} behind an IPv6 address")),
    }
}

/// `%20` and the like.
fn decoded(text: &str) -> Result<String, String> {
    let wrong = || "expected two hexadecimal digits, not 00, behind %".to_owned();
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
        let byte = u8::try_from(high * 16 + low).unwrap_or_default();
        if byte == 0 {
            return Err(wrong());
        }
        bytes.push(byte);
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 once %XX is decoded".to_owned())
}

/// The string with its secrets blotted out, for a message.
pub(super) fn blotted(text: &str) -> String {
    let is_address = text.contains("://");
    let mut shown = match (is_address, text.split_once("://")) {
        // A password may hold anything, so all up to the last @ may be of it.
        (true, Some((scheme, rest))) => match rest.rsplit_once('@') {
            Some((who, place)) => match who.split_once(':') {
                Some((user, _)) => format!("{scheme}://{user}:***@{place}"),
                None => text.to_owned(),
            },
            None => format!("{scheme}://{}", without_odd_port(rest)),
        },
        _ => text.to_owned(),
    };
    let mut from = 0;
    while let Some((begin, end)) = secret(&shown, from, is_address) {
        shown.replace_range(begin..end, "***");
        from = begin + 3;
    }
    if !is_address {
        shown = without_loose_secrets(&shown);
    }
    match shown.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

/// What stands where a port belongs and is none may be a password whose `@` is missing.
fn without_odd_port(text: &str) -> String {
    let hosts = text.split(['/', '?']).next().unwrap_or_default();
    let mut from = 0;
    for host in hosts.split(',') {
        let port = host.rfind(':').filter(|_| !host.ends_with(']'));
        let port = port.map(|at| from + at + 1);
        from += host.len() + 1;
        if let Some(at) = port.filter(|at| {
            !text[*at..from - 1]
                .bytes()
                .all(|byte| byte.is_ascii_digit())
        }) {
            return format!("{}***", &text[..at]);
        }
    }
    text.to_owned()
}

/// What follows a name that promises a secret and has no equals sign.
fn without_loose_secrets(text: &str) -> String {
    let words: Vec<&str> = text.split_inclusive(char::is_whitespace).collect();
    let mut shown = String::new();
    let mut is_hidden = false;
    for (at, word) in words.iter().enumerate() {
        let next = words.get(at + 1).copied().unwrap_or_default();
        if word.contains('=') || next.starts_with('=') {
            is_hidden = false;
        } else if is_hidden && !word.trim().is_empty() {
            shown.push_str("*** ");
            continue;
        } else if promises_secret(word) {
            is_hidden = true;
        }
        shown.push_str(word);
    }
    shown
}

fn promises_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let words = ["pass", "pw", "secret", "scram"];
    words.iter().any(|word| name.contains(word)) && !name.contains("passfile")
}

/// Whether this begins with an option that is known, and its value.
fn begins_option(text: &str) -> bool {
    let name = text.split_once('=').map(|(name, _)| name.trim_end());
    name.is_some_and(|name| super::options::find(name).is_some())
}

/// Where the next value of a name that promises a secret lies, misspelt ones included.
fn secret(text: &str, from: usize, is_address: bool) -> Option<(usize, usize)> {
    let mut at = from;
    loop {
        let equals = at + text[at..].find('=')?;
        let ends_name = |letter: char| letter.is_whitespace() || matches!(letter, '&' | '?' | '\'');
        let before = text[..equals].trim_end();
        let name = before.rsplit(ends_name).next().unwrap_or_default();
        at = equals + 1;
        if !promises_secret(name) {
            continue;
        }
        let value = &text[at..];
        if is_address {
            let end = value.find('&').unwrap_or(value.len());
            return Some((at, at + end));
        }
        let begin = at + (value.len() - value.trim_start().len());
        // A quote that is open hides all of the rest, and a blank that should have been quoted
        // what follows up to the next option.
        let mut left = option_value(&text[begin..]).map_or("", |(_, after)| after);
        while !left.trim_start().is_empty() && !begins_option(left.trim_start()) {
            let word = left.trim_start();
            left = word.find(char::is_whitespace).map_or("", |at| &word[at..]);
        }
        return Some((begin, text.len() - left.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(&'static str, String)> {
        options(text).unwrap().into_iter().collect()
    }

    #[test]
    fn addresses_say_what_libpq_reads_in_them() {
        let all = "postgresql://u%20s:p%40w@h1:1,[::1]:2,/d%2Fb?connect_timeout=3&ssl=true";
        let expected = [
            ("connect_timeout", "3"),
            ("dbname", "d/b"),
            ("host", "h1,::1,"),
            ("password", "p@w"),
            ("port", "1,2,"),
            ("sslmode", "require"),
            ("user", "u s"),
        ];
        let expected = expected.map(|(name, value)| (name, value.to_owned()));
        assert_eq!(read(all), expected);
        assert_eq!(read("postgres://"), []);
        assert_eq!(read("postgres:///?"), []);
        assert_eq!(read("postgres://%2Frun%2Fx")[0].1, "/run/x");
        assert_eq!(read("postgres:///d?host=/tmp").len(), 2);
        for wrong in [
            "[::1", "[]", "[::1]x", "h/%0", "h/%00", "h/%zz", "h/?x", "h/?a=b=c", "h/?x=1",
        ] {
            assert!(options(&format!("postgres://{wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_secret_is_shown_however_the_text_is_misspelt() {
        for (text, shown) in [
            ("host=h password=secret x", "host=h password=***"),
            ("password=se cr et = port = 1", "password=*** port = 1"),
            ("postgres://u:secret", "postgres://u:***"),
            ("postgres://u:se/cret", "postgres://u:***"),
            ("postgres://h,u:1a,b", "postgres://h,u:***"),
            (
                "user=u password: se cret port=1",
                "user=u password: *** *** port=1",
            ),
            (
                "postgres://h:1,[::1]:2,[::1]/d",
                "postgres://h:1,[::1]:2,[::1]/d",
            ),
            ("password='se cret' port=1", "password=*** port=1"),
            ("password = se\\ cret port=1", "password = *** port=1"),
            ("password='secret port=1", "password=***"),
            ("passwort=secret", "passwort=***"),
            ("passfile=/x pw=secret", "passfile=/x pw=***"),
            (
                "sslpassword=secret oauth_client_secret=secret",
                "sslpassword=*** oauth_client_secret=***",
            ),
            ("postgres://u:se/cr@et@h/d?x", "postgres://u:***@h/d?x"),
            (
                "postgres://h/d?password=secret&port=1",
                "postgres://h/d?password=***&port=1",
            ),
            ("postgres://u@h/d", "postgres://u@h/d"),
            ("\u{2000}A=", "\u{2000}A="),
        ] {
            assert_eq!(blotted(text), shown);
        }
    }
}
