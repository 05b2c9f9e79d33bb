//! Within a room, imports run one way: no file needs another that needs it.
//! Never resolves names as the compiler does; it follows paths from `crate`, `self` and `super`, and what a
//! file hands on with `pub use`. Invariant: a circle is named by all of its files.

use std::collections::{BTreeMap, BTreeSet};

use super::branches;
use super::source::{Source, Tree, is_word};

/// The rooms that have no circle.
const ROOMS: [&str; 7] = [
    "receiver", "master", "store", "wal", "tar", "daemon", "protocol",
];

/// A crate's folder of sources, and the path of a module in it.
type Module = (&'static str, Vec<String>);

/// Circles of the rooms that have none.
pub(super) fn of_imports(tree: &Tree) -> Vec<String> {
    let room = Rooms::of(tree);
    let circles = ROOMS.iter().flat_map(|name| room.circles(name));
    let in_words =
        |files: Vec<String>| format!("import each other in a circle: {}", files.join(", "));
    circles.map(in_words).collect()
}

/// The files of the program by their modules, and what each hands on.
struct Rooms<'a> {
    files: BTreeMap<Module, &'a Source>,
    handed_on: BTreeMap<&'a str, BTreeMap<String, &'a str>>,
}

impl<'a> Rooms<'a> {
    fn of(tree: &'a Tree) -> Rooms<'a> {
        let files = tree.rust().filter(|source| !source.code.is_empty());
        let files = files.filter_map(|source| Some((module_of(&source.path)?, source)));
        let mut rooms = Rooms {
            files: files.collect(),
            handed_on: BTreeMap::new(),
        };
        let mut handed_on: BTreeMap<&str, BTreeMap<String, &str>> = BTreeMap::new();
        for (module, source) in &rooms.files {
            for (_, statement) in statements(&source.code).filter(|(_, text)| is_handing_on(text)) {
                for path in paths(module, after_use(statement)) {
                    if let Some((file, rest)) = rooms.file_of(&path)
                        && let [name, ..] = rest
                    {
                        let names = handed_on.entry(&source.path).or_default();
                        names.insert(name.clone(), file);
                    }
                }
            }
        }
        rooms.handed_on = handed_on;
        rooms
    }

    /// Each group of files of a room that need each other, if there are more than one.
    fn circles(&self, room: &str) -> Vec<Vec<String>> {
        let in_room = |source: &Source| room_of(&source.path) == room;
        let needs: BTreeMap<&str, BTreeSet<&str>> = (self.files.iter())
            .filter(|(_, source)| in_room(source))
            .map(|(module, source)| (source.path.as_str(), self.needed_by(module, source)))
            .collect();
        let reached: BTreeMap<&str, BTreeSet<&str>> = needs
            .keys()
            .map(|file| (*file, reach(file, &needs)))
            .collect();
        let mut circles = BTreeSet::new();
        for (file, others) in &reached {
            let back = others
                .iter()
                .filter(|other| reached.get(*other).is_some_and(|r| r.contains(file)));
            let circle: BTreeSet<String> = back.map(|file| (*file).to_owned()).collect();
            if circle.len() > 1 {
                circles.insert(circle.into_iter().collect());
            }
        }
        circles.into_iter().collect()
    }

    fn needed_by(&self, module: &Module, source: &'a Source) -> BTreeSet<&'a str> {
        let mut needed = BTreeSet::new();
        for (begin, statement) in path_starts(&source.code) {
            if is_within_handing_on(&source.code, begin) {
                continue;
            }
            for path in paths(module, statement) {
                let Some((mut file, mut rest)) = self.file_of(&path) else {
                    continue;
                };
                // Through what is handed on to where it is defined.
                while let [name, ..] = rest
                    && let Some(further) =
                        self.handed_on.get(file).and_then(|names| names.get(name))
                    && *further != file
                {
                    file = further;
                    rest = &rest[..1];
                }
                needed.insert(file);
            }
        }
        needed.extend(self.used_of_handed_on(source));
        needed.extend(self.used_children(module, source));
        needed.remove(source.path.as_str());
        needed
    }

    /// What a file hands on and uses itself.
    fn used_of_handed_on(&self, source: &'a Source) -> Vec<&'a str> {
        let Some(names) = self.handed_on.get(source.path.as_str()) else {
            return Vec::new();
        };
        let used = source.words().filter(|(begin, _)| {
            !source.code[..*begin].ends_with(':') && !is_within_handing_on(&source.code, *begin)
        });
        used.filter_map(|(_, word)| names.get(word).copied())
            .collect()
    }

    /// The files of child modules that this one names.
    fn used_children(&self, (base, own): &Module, source: &'a Source) -> Vec<&'a str> {
        let paths = source.words().filter(|(begin, word)| {
            let (before, behind) = (&source.code[..*begin], &source.code[begin + word.len()..]);
            behind.trim_start().starts_with("::")
                && !before.trim_end().ends_with("::")
                && !is_within_handing_on(&source.code, *begin)
        });
        let child = |(_, word): (usize, &str)| {
            let path = own.iter().cloned().chain([word.to_owned()]).collect();
            Some(self.files.get(&(*base, path))?.path.as_str())
        };
        paths.filter_map(child).collect()
    }

    /// The file of the deepest module that a path names, and what it names within.
    fn file_of<'p>(&self, (base, path): &'p Module) -> Option<(&'a str, &'p [String])> {
        (1..=path.len()).rev().find_map(|length| {
            let source = self.files.get(&(*base, path[..length].to_vec()))?;
            Some((source.path.as_str(), &path[length..]))
        })
    }
}

/// Every path of a file that leads out of it, where it begins, from the root of its crate.
pub(super) fn named_by(source: &Source) -> Vec<(usize, Vec<String>)> {
    let Some(module) = module_of(&source.path) else {
        return Vec::new();
    };
    let named = path_starts(&source.code).flat_map(|(begin, text)| {
        let paths = paths(&module, text).into_iter();
        paths.map(move |(_, path)| (begin, path))
    });
    named.collect()
}

/// The modules and items that a path in this module leads to, from the root of its crate.
fn paths(module: &Module, text: &str) -> Vec<Module> {
    let (base, own) = module;
    let absolute = |path: Vec<String>| {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let (base, mut full) = match path.first().map(String::as_str) {
            Some("walmgr_protocol") => ("protocol/src/", Vec::new()),
            Some("crate") => (*base, Vec::new()),
            Some("super") => (*base, own[..own.len().saturating_sub(ups)].to_vec()),
            _ => (*base, own.clone()),
        };
        let is_start = ["crate", "self", "super", "walmgr_protocol"];
        full.extend(
            path.into_iter()
                .skip_while(|part| is_start.contains(&part.as_str())),
        );
        (base, full)
    };
    expand(text).into_iter().map(absolute).collect()
}

/// Every file that is needed by this one, however far.
fn reach<'a>(file: &'a str, needs: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![file];
    while let Some(next) = open.pop() {
        for needed in needs.get(next).into_iter().flatten() {
            if reached.insert(*needed) {
                open.push(needed);
            }
        }
    }
    reached
}

/// `a::{b, c::d}` gives `a::b` and `a::c::d`.
fn expand(text: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (first, behind) in branches(text) {
        let tails = match behind.trim_start().strip_prefix("::") {
            Some(rest) => expand(rest),
            None => Vec::new(),
        };
        match tails.is_empty() {
            true => paths.push(vec![first]),
            false => paths.extend(
                tails
                    .into_iter()
                    .map(|tail| [vec![first.clone()], tail].concat()),
            ),
        }
    }
    paths
}

/// Where a path begins that leads out of the file.
fn path_starts(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let starts = ["crate", "self", "super", "walmgr_protocol"];
    super::words(code).filter_map(move |(begin, word)| {
        let is_start = starts.contains(&word)
            && code[begin + word.len()..].trim_start().starts_with("::")
            && !code[..begin].trim_end().ends_with("::");
        is_start.then_some((begin, &code[begin..]))
    })
}

/// Statements that begin with `use` or hand something on.
fn statements(code: &str) -> impl Iterator<Item = (usize, &str)> {
    super::words(code).filter_map(move |(begin, word)| {
        let end = code[begin..].find(';')?;
        ["use", "pub"]
            .contains(&word)
            .then_some((begin, &code[begin..begin + end]))
    })
}

/// `pub use` and `pub(crate) use`.
fn is_handing_on(statement: &str) -> bool {
    let Some(rest) = statement.strip_prefix("pub") else {
        return false;
    };
    let rest = rest.trim_start();
    let rest = match rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        Some((_, rest)) => rest.trim_start(),
        None => rest,
    };
    rest.starts_with("use") && !rest[3..].starts_with(is_word)
}

fn after_use(statement: &str) -> &str {
    let use_at = super::words(statement).find(|(_, word)| *word == "use");
    use_at.map_or("", |(begin, _)| &statement[begin + 3..])
}

fn is_within_handing_on(code: &str, position: usize) -> bool {
    let begin = code[..position].rfind([';', '}']).map_or(0, |at| at + 1);
    // A group in braces may have closed one within.
    let begin = match code[..position].rfind(';') {
        Some(at) if code[at + 1..position].contains("use") => at + 1,
        _ => begin,
    };
    let mut before = super::words(&code[begin..position]);
    before.any(|(at, word)| word == "pub" && is_handing_on(&code[begin + at..]))
}

fn module_of(path: &str) -> Option<Module> {
    let base = ["protocol/src/", "src/"]
        .into_iter()
        .find(|base| path.starts_with(base))?;
    let stem = path[base.len()..].strip_suffix(".rs")?;
    let mut parts: Vec<String> = stem.split('/').map(str::to_owned).collect();
    if ["mod", "lib", "main"].contains(&parts.last()?.as_str()) {
        parts.pop();
    }
    Some((base, parts))
}

/// `protocol`, or the folder or file below `src`.
pub(super) fn room_of(path: &str) -> &str {
    if path.starts_with("protocol/src/") {
        return "protocol";
    }
    let below = path.strip_prefix("src/").unwrap_or(path);
    below.split(['/', '.']).next().unwrap_or(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files = files
            .iter()
            .map(|(path, text)| (format!("protocol/src/{path}"), (*text).to_owned()));
        of_imports(&Tree::of(files.collect()))
    }

    #[test]
    fn a_circle_of_imports_is_caught_with_its_files() {
        let two = [
            ("lib.rs", "pub mod a;\npub mod b;"),
            ("a.rs", "use crate::b::B;\npub struct A;"),
            ("b.rs", "fn f() { super::a::A; }\npub struct B;"),
        ];
        assert_eq!(
            found(&two),
            ["import each other in a circle: protocol/src/a.rs, protocol/src/b.rs"]
        );
        let through_another = [
            ("lib.rs", "pub mod a;"),
            ("a.rs", "pub mod b;\npub use b::{B};\nfn f() -> B { B }"),
            ("a/b.rs", "use super::f;\npub struct B;"),
        ];
        assert_eq!(found(&through_another).len(), 1);
        let with_a_child = [
            ("lib.rs", "pub mod a;"),
            ("a.rs", "mod b;\npub struct A(b::B);"),
            ("a/b.rs", "use super::A;\npub struct B;"),
        ];
        assert_eq!(found(&with_a_child).len(), 1);
    }

    #[test]
    fn imports_that_run_one_way_are_allowed() {
        let handed_on = [
            ("lib.rs", "pub mod a;"),
            ("a.rs", "pub mod b;\npub mod c;\npub use b::B;"),
            ("a/b.rs", "pub struct B;"),
            ("a/c.rs", "use super::B;\n// crate::a\nuse std::fmt;"),
        ];
        assert!(found(&handed_on).is_empty(), "{:?}", found(&handed_on));
    }
}
