//! The text behind `--set`: `param=val[,param=val]`, where a quoted value may contain commas.
//! Never decides whether a setting exists. Invariant: what it returns, joined again, is what was typed.

use std::ffi::OsStr;

use crate::error::{CommandError, Result};

/// Splits into settings and values, in the order they were typed.
///
/// A value ends at the next comma; everything else, `=` included, is part of it. A value that
/// begins with `'` or `"` ends where the same quote is followed by a comma or by the end, so it
/// may contain commas and quotes alike.
pub(super) fn parse(text: &OsStr) -> Result<Vec<(String, String)>> {
    let Some(text) = text.to_str() else {
        return Err(CommandError::usage("the text behind --set is not UTF-8"));
    };
    let mut settings = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (setting, behind) = one(text)?;
        settings.push(setting);
        rest = behind;
    }
    Ok(settings)
}

/// The first setting, and what stands behind the comma that ends it.
fn one(text: &str) -> Result<((String, String), Option<&str>)> {
    let end_of_name = text.find(['=', ',']).unwrap_or(text.len());
    let (name, behind) = text.split_at(end_of_name);
    let name = name.trim();
    let Some(value) = behind.strip_prefix('=') else {
        return Err(
            CommandError::usage(format!("`{name}` in --set has no `=value`"))
                .hint("put a value that contains commas in quotes: --set 'param=\"a,b\"'"),
        );
    };
    if name.is_empty() {
        return Err(CommandError::usage(format!(
            "no setting's name before `={value}` in --set"
        )));
    }
    let (value, behind) = match value.trim_start().chars().next() {
        Some(quote @ ('\'' | '"')) => quoted(name, value.trim_start(), quote)?,
        _ => match value.split_once(',') {
            Some((value, behind)) => (value.trim(), Some(behind)),
            None => (value.trim(), None),
        },
    };
    Ok(((name.to_owned(), value.to_owned()), behind))
}

fn quoted<'a>(name: &str, text: &'a str, quote: char) -> Result<(&'a str, Option<&'a str>)> {
    let inside = &text[quote.len_utf8()..];
    for (position, _) in inside.match_indices(quote) {
        let behind = inside[position + quote.len_utf8()..].trim_start();
        if behind.is_empty() {
            return Ok((&inside[..position], None));
        }
        if let Some(behind) = behind.strip_prefix(',') {
            return Ok((&inside[..position], Some(behind)));
        }
    }
    Err(CommandError::usage(format!(
        "the value of `{name}` in --set begins with {quote} but does not end with it"
    ))
    .hint("put quotes of the other kind around the whole value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> Vec<(String, String)> {
        parse(OsStr::new(text)).unwrap()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn commas_separate_and_equals_signs_belong_to_the_value() {
        assert_eq!(
            set("master_db=dbname=a port=5434, loop_delay = 5"),
            pairs(&[("master_db", "dbname=a port=5434"), ("loop_delay", "5")])
        );
        assert_eq!(set("archive_command="), pairs(&[("archive_command", "")]));
    }

    #[test]
    fn a_quoted_value_keeps_its_commas_and_inner_quotes() {
        assert_eq!(
            set(r#"periodic_command="cp 'a', b",slave=x"#),
            pairs(&[("periodic_command", "cp 'a', b"), ("slave", "x")])
        );
        assert_eq!(set("a='it's, fine'"), pairs(&[("a", "it's, fine")]));
    }

    #[test]
    fn a_setting_without_value_name_or_closing_quote_is_refused() {
        for text in [
            "",
            "loop_delay",
            "a=1,",
            "=5",
            "a='x",
            "a=1,,b=2",
            "a=\"b\" c",
        ] {
            assert!(parse(OsStr::new(text)).is_err(), "{text}");
        }
    }
}
