//! `%(name)s` and `%%` in values.
//! Never looks outside the settings it was given. Invariant: every key is expanded once, so the
//! work is bounded by the file's size, and no result exceeds [`VALUE_BYTES_MAX`].

use std::collections::HashMap;
use std::rc::Rc;

use super::fault::{Fault, SettingPlace, shown};
use super::keys;

/// Longest value after interpolation.
pub(super) const VALUE_BYTES_MAX: usize = 16 << 10;

/// How many settings may stand behind each other, Python's bound.
pub(super) const DEPTH_MAX: usize = 10;

/// A value before interpolation.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    /// The key as its writer spelled it.
    pub spelled: String,
    /// The text.
    pub text: String,
    /// Where it stands.
    pub place: SettingPlace,
}

/// Expands the values of one file; keys are in their canonical spelling.
pub(super) struct Interpolator<'a> {
    raw: &'a HashMap<String, Raw>,
    /// What is used for a name that the file does not set.
    builtin: HashMap<&'static str, String>,
    done: HashMap<String, Expanded>,
}

#[derive(Clone)]
struct Expanded {
    text: Rc<str>,
    /// 0 without a reference, else one more than the deepest value referred to.
    depth: usize,
}

impl<'a> Interpolator<'a> {
    /// For these settings, with names that are known even where they are not set.
    pub(super) fn new(
        raw: &'a HashMap<String, Raw>,
        builtin: HashMap<&'static str, String>,
    ) -> Self {
        Interpolator {
            raw,
            builtin,
            done: HashMap::new(),
        }
    }

    /// The value of a key that is set.
    pub(super) fn expand(&mut self, key: &str) -> Result<Rc<str>, Fault> {
        Ok(self.expand_below(key, &mut Vec::new())?.text)
    }

    fn expand_below(&mut self, key: &str, chain: &mut Vec<String>) -> Result<Expanded, Fault> {
        if let Some(done) = self.done.get(key) {
            return Ok(done.clone());
        }
        let settings = self.raw;
        let Some(raw) = settings.get(key) else {
            let text = self.builtin.get(key).cloned().unwrap_or_default();
            return Ok(Expanded {
                text: text.into(),
                depth: 0,
            });
        };
        chain.push(key.to_owned());
        let expanded = self.substitute(raw, chain)?;
        chain.pop();
        self.done.insert(key.to_owned(), expanded.clone());
        Ok(expanded)
    }

    fn substitute(&mut self, raw: &Raw, chain: &mut Vec<String>) -> Result<Expanded, Fault> {
        let mut out = String::new();
        let mut depth = 0;
        let mut rest = raw.text.as_str();
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                out.push('%');
                rest = after;
            } else {
                let (name, after) = reference(raw, rest)?;
                let inner = self.refer(raw, name, chain)?;
                depth = depth.max(inner.depth + 1);
                out.push_str(&inner.text);
                rest = after;
            }
            check_length(raw, &out)?;
        }
        out.push_str(rest);
        check_length(raw, &out)?;
        if depth > DEPTH_MAX {
            return Err(too_deep(raw));
        }
        Ok(Expanded {
            text: out.into(),
            depth,
        })
    }

    fn refer(&mut self, raw: &Raw, name: &str, chain: &mut Vec<String>) -> Result<Expanded, Fault> {
        let lower = name.to_ascii_lowercase();
        let key = keys::canonical(&lower).map_or(lower.clone(), str::to_owned);
        if !self.raw.contains_key(&key) && !self.builtin.contains_key(key.as_str()) {
            let says = format!(
                "%({})s is a setting that this file does not set",
                shown(name)
            );
            let near = keys::suggestions(&lower);
            let hint = match near
                .iter()
                .find(|near| self.raw.contains_key(near.as_str()))
            {
                Some(near) => format!("did you mean %({near})s?"),
                None => format!("set {} too, or write the value out", shown(name)),
            };
            return Err(Fault::of_key(raw.place, &raw.spelled, says).hint(hint));
        }
        if let Some(from) = chain.iter().position(|link| *link == key) {
            let circle: Vec<&str> = chain[from..].iter().map(String::as_str).collect();
            let says = format!("refers to itself: {} -> {key}", circle.join(" -> "));
            return Err(Fault::of_key(raw.place, &raw.spelled, says).hint("write one of them out"));
        }
        if chain.len() > DEPTH_MAX {
            return Err(too_deep(raw));
        }
        self.expand_below(&key, chain)
    }
}

/// The names in lower case that a text refers to, as far as it can be read.
pub(super) fn references(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            rest = after;
        } else if let Some((name, after)) = inside(rest) {
            names.push(name.to_ascii_lowercase());
            rest = after;
        }
    }
    names
}

/// The name in `(name)s` and the rest.
fn inside(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.strip_prefix('(')?.split_once(')')?;
    let after = after.strip_prefix('s')?;
    (!name.is_empty()).then_some((name, after))
}

/// Splits what follows a single `%` into the name in `(name)s` and the rest.
fn reference<'t>(raw: &Raw, text: &'t str) -> Result<(&'t str, &'t str), Fault> {
    if let Some(found) = inside(text) {
        return Ok(found);
    }
    // The text around it may be a password, so only the reference itself is quoted.
    let end = text.char_indices().nth(1).map_or(text.len(), |(at, _)| at);
    let quoted = if text.starts_with('(') {
        shown(text.split_inclusive(')').next().unwrap_or(text))
    } else {
        shown(&text[..end])
    };
    let says = format!("expected %% or %(name)s, found `%{quoted}`");
    Err(Fault::of_key(raw.place, &raw.spelled, says).hint("a percent sign is written %%"))
}

fn check_length(raw: &Raw, out: &str) -> Result<(), Fault> {
    if out.len() <= VALUE_BYTES_MAX {
        return Ok(());
    }
    let says = format!("expected a value of at most {VALUE_BYTES_MAX} bytes, found a longer one");
    Err(Fault::of_key(raw.place, &raw.spelled, says).hint("shorten it"))
}

fn too_deep(raw: &Raw) -> Fault {
    let says = format!("expected at most {DEPTH_MAX} settings referring to each other in a row");
    Fault::of_key(raw.place, &raw.spelled, says).hint("write one of them out")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(pairs: &[(&str, String)]) -> HashMap<String, Raw> {
        let raw = |(line, (key, text)): (u32, &(&str, String))| {
            let spelled = (*key).to_owned();
            let (text, place) = (text.clone(), SettingPlace::Line(line));
            (
                spelled.clone(),
                Raw {
                    spelled,
                    text,
                    place,
                },
            )
        };
        (1..).zip(pairs).map(raw).collect()
    }

    fn builtin() -> HashMap<&'static str, String> {
        HashMap::from([("job_name", "main".to_owned())])
    }

    fn expand(pairs: &[(&str, &str)], key: &str) -> Result<String, String> {
        let owned: Vec<_> = pairs
            .iter()
            .map(|(key, text)| (*key, (*text).to_owned()))
            .collect();
        let raw = settings(&owned);
        let mut interpolator = Interpolator::new(&raw, builtin());
        interpolator
            .expand(key)
            .map(|text| text.to_string())
            .map_err(|fault| fault.into_error(std::path::Path::new("f.ini")).to_string())
    }

    #[test]
    fn names_percent_signs_and_both_spellings_expand() {
        let pairs = [
            ("slave_data", "/s"),
            ("a", "%(Standby_Data)s/100%%/%(job_name)s"),
        ];
        assert_eq!(expand(&pairs, "a").unwrap(), "/s/100%/main");
        assert_eq!(
            expand(&[("job_name", "x"), ("a", "%(job_name)s")], "a").unwrap(),
            "x"
        );
    }

    #[test]
    fn a_reference_to_nothing_is_named_with_the_nearest_setting() {
        let error = expand(&[("walmgr_data", "/s"), ("a", "%(walmgr_dta)s/x")], "a").unwrap_err();
        assert_eq!(
            error,
            "f.ini:2: a: %(walmgr_dta)s is a setting that this file does not set; \
             did you mean %(walmgr_data)s?"
        );
    }

    #[test]
    fn references_are_found_as_they_are_expanded() {
        assert_eq!(
            references("%(A)s%%(b)s%(c)s/%(d)x%(%(e)s%"),
            ["a", "c", "%(e"]
        );
        assert_eq!(references("%(a)s%()s%"), ["a"]);
    }

    #[test]
    fn a_lone_percent_sign_is_an_error_that_quotes_no_password() {
        let error = expand(&[("a", "password=ab%secret")], "a").unwrap_err();
        assert!(
            error.contains("found `%s`; a percent sign is written %%"),
            "{error}"
        );
        assert!(!error.contains("ecret"));
        assert!(expand(&[("a", "100%")], "a").is_err());
        assert!(expand(&[("a", "%()s")], "a").is_err());
        assert!(expand(&[("a", "%(a")], "a").is_err());
    }

    #[test]
    fn circles_are_named_and_depth_is_bounded_whatever_is_read_first() {
        let circle = [("a", "%(b)s"), ("b", "%(c)s"), ("c", "%(b)s")];
        assert!(expand(&circle, "a").unwrap_err().contains("b -> c -> b"));
        assert!(
            expand(&[("a", "%(a)s")], "a")
                .unwrap_err()
                .contains("a -> a")
        );

        let names: Vec<String> = (0..=12).map(|at| format!("k{at:02}")).collect();
        let mut pairs: Vec<(&str, String)> = Vec::new();
        for at in 0..12 {
            pairs.push((&names[at], format!("%({})s", names[at + 1])));
        }
        pairs.push((&names[12], "end".to_owned()));
        let raw = settings(&pairs);
        for order in [false, true] {
            let mut interpolator = Interpolator::new(&raw, builtin());
            let mut keys: Vec<&String> = names.iter().collect();
            if order {
                keys.reverse();
            }
            let good: Vec<bool> = keys
                .iter()
                .map(|key| interpolator.expand(key).is_ok())
                .collect();
            assert_eq!(
                good.iter().filter(|good| !**good).count(),
                2,
                "order {order}"
            );
        }
    }

    #[test]
    fn a_thousandfold_expansion_is_bounded_in_time_and_size() {
        let names: Vec<String> = (0..9).map(|at| format!("k{at}")).collect();
        for end in ["", "end"] {
            let mut pairs: Vec<(&str, String)> = Vec::new();
            for at in 0..8 {
                pairs.push((&names[at], format!("%({})s", names[at + 1]).repeat(10_000)));
            }
            pairs.push((&names[8], end.to_owned()));
            let raw = settings(&pairs);
            let result = Interpolator::new(&raw, builtin()).expand("k0");
            assert_eq!(result.is_ok(), end.is_empty());
        }
    }

    proptest! {
        #[test]
        fn escaped_text_expands_to_itself(text in "\\PC{0,80}") {
            let escaped = text.replace('%', "%%");
            prop_assert_eq!(expand(&[("a", &escaped)], "a").unwrap(), text);
        }

        #[test]
        fn a_reference_is_replaced_by_the_value_it_names(
            before in "[a-z/.]{0,8}", value in "[a-z/. ]{0,20}", after in "[a-z/.]{0,8}"
        ) {
            let text = format!("{before}%(slave)s{after}");
            let expanded = expand(&[("slave", &value), ("a", &text)], "a").unwrap();
            prop_assert_eq!(expanded, format!("{before}{value}{after}"));
        }

        #[test]
        fn any_text_expands_or_is_refused(text in "[%()sa-c]{0,60}", other in "[%()sa-c]{0,60}") {
            let _ = expand(&[("a", &text), ("b", &other)], "a");
        }
    }
}
