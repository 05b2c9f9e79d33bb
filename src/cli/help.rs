//! `walmgr help`: the topics, a page of the manual, or the help of a command, without a network and without docs/.
//! Never reads a file: the pages are in the binary. Invariant: a topic is what its page is called, and each page is one.

use std::ffi::OsString;
use std::fmt::Write;

use super::Parsed;
use super::grammar::{self, words};
use crate::config::keys::nearest;
use crate::error::{CommandError, ExitTable};

/// A page of the manual.
pub(crate) struct Page {
    /// Its folder in docs/.
    pub folder: &'static str,
    /// What its file is called, without `.md`.
    pub name: &'static str,
    /// As it is in the file.
    pub text: &'static str,
}

macro_rules! pages {
    ($($folder:literal: $($name:literal)*;)*) => {
        &[$($(Page {
            folder: $folder,
            name: $name,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/", $folder, "/", $name, ".md")),
        },)*)*]
    };
}

/// All of docs/, in the order in which `walmgr help` lists it.
pub(crate) const PAGES: &[Page] = pages! {
    "start": "container" "ten-minutes" "two-hosts";
    "tasks": "backup" "bench" "boot" "compress" "connect" "createslave" "drill" "many-clusters" "monitoring" "patroni" "point-in-time"
        "replay" "repmgr" "restore" "restore-on-the-master" "retention" "synchronous-standbys" "uninstall" "upgrade" "verify" "who-may-type";
    "runbooks": "master-lost" "standby-lost" "disk-full" "damaged-segment" "hole-in-archive" "wrong-cluster" "key-lost"
        "key-refused" "differs" "replay-stopped" "wrong-settings" "apart" "archive_cleanup" "archiving_fails"
        "archiving_foreign" "archiving_off" "archiving_unheard" "audit_log" "backup" "backup_age" "boot" "clock" "drill" "frozen"
        "incremental" "is_standby" "lag" "lag_unknown" "locked" "no_backup" "no_receiver" "not_set_up" "paused" "receiver" "replay"
        "retention" "server" "standby_server" "syncdaemon" "synchronous" "tablespace" "timeline" "unreplayable" "gap" "damaged"
        "free" "disk";
    "reference": "audit" "commands" "exit-codes" "files" "ini-files" "messages" "metrics" "settings" "status-json";
    "explain": "compared" "receiver" "set-apart" "speed" "the-segment-in-progress" "threat-model" "what-is-durable";
    "moving": "from-barman" "from-pgbackrest" "from-skytools" "from-wal-g";
};

/// For a line whose first word is `help`; `None` for every other line.
pub(super) fn asked(arguments: &[OsString]) -> Option<Parsed> {
    if arguments.get(1)?.to_str()? != "help" {
        return None;
    }
    Some(match &arguments[2..] {
        [] => Parsed::Print(topics()),
        [topic] => answer(&topic.to_string_lossy()),
        _ => unknown(CommandError::usage("`help` takes one topic").hint("type: walmgr help TOPIC")),
    })
}

fn answer(topic: &str) -> Parsed {
    if words().iter().any(|word| word == topic) {
        return Parsed::Print(help_of_command(topic));
    }
    let found: Vec<&Page> = PAGES.iter().filter(|page| page.is_called(topic)).collect();
    if let [page] = found[..] {
        return Parsed::Print(page.for_a_screen());
    }
    let known = PAGES.iter().map(|page| page.topic());
    let near = nearest(topic, known.chain(words()));
    let error = CommandError::usage(format!("there is no topic `{topic}`"));
    let error = error.hint("walmgr help lists the topics");
    unknown(match near[..] {
        [] => error,
        _ => error.with_tip(format!("did you mean `{}`?", near.join("` or `"))),
    })
}

fn unknown(error: CommandError) -> Parsed {
    Parsed::Usage(error, ExitTable::Ordinary)
}

fn topics() -> String {
    let mut text = String::from("walmgr help TOPIC prints one of these pages:\n");
    let mut folder = "";
    for page in PAGES {
        if page.folder != folder {
            folder = page.folder;
            let _ = writeln!(text, "\n{folder}");
        }
        let _ = writeln!(text, "  {:24} {}", page.topic(), page.title());
    }
    text.push_str(
        "\nwalmgr --help lists the commands, walmgr help COMMAND prints the help of one.\n",
    );
    text
}

/// What clap says of the command, and the pages about it.
fn help_of_command(word: &str) -> String {
    let line = ["walmgr", word, "--help"].map(OsString::from);
    let mut text = match grammar::read(&line) {
        Err(help) => help.render().to_string(),
        Ok(_) => String::new(),
    };
    let pages = PAGES.iter().filter(|page| page.name == word);
    for page in pages {
        let _ = write!(text, "\nwalmgr help {}: {}", page.topic(), page.title());
    }
    text
}

impl Page {
    /// What is typed behind `walmgr help`: the name, with the folder where a command or another page has the same.
    pub(crate) fn topic(&self) -> String {
        let others = PAGES.iter().filter(|page| page.name == self.name);
        match others.count() > 1 || words().iter().any(|word| word == self.name) {
            true => format!("{}/{}", self.folder, self.name),
            false => self.name.to_owned(),
        }
    }

    fn is_called(&self, topic: &str) -> bool {
        self.topic() == topic || topic.split_once('/') == Some((self.folder, self.name))
    }

    pub(super) fn title(&self) -> &'static str {
        let first = self.body().lines().next().unwrap_or_default();
        first.trim_start_matches('#').trim()
    }

    /// The text from its title on: who edits the file finds a remark before it.
    fn body(&self) -> &'static str {
        let is_remark = |line: &&str| line.starts_with("<!--");
        let remark: usize = self
            .text
            .split_inclusive('\n')
            .take_while(is_remark)
            .map(str::len)
            .sum();
        &self.text[remark..]
    }

    /// The text, with what to type in place of a link to another page.
    fn for_a_screen(&self) -> String {
        let mut text = String::new();
        let mut rest = self.body();
        while let Some((before, behind)) = rest.split_once("](") {
            let (link, after) = behind.split_once(')').unwrap_or((behind, ""));
            let (file, _) = link.split_once('#').unwrap_or((link, ""));
            let page = PAGES.iter().find(|page| page.is_at(file, self.folder));
            match (page, before.rfind('[')) {
                (Some(page), Some(at)) => {
                    let (before, label) = (&before[..at], &before[at + 1..]);
                    let _ = write!(text, "{before}{label} (walmgr help {})", page.topic());
                }
                (None, Some(at)) if file.is_empty() => {
                    text.push_str(&before[..at]);
                    text.push_str(&before[at + 1..]);
                }
                _ => {
                    let _ = write!(text, "{before}]({link})");
                }
            }
            rest = after;
        }
        text.push_str(rest);
        text
    }

    /// Whether a link on a page of `folder` leads here.
    fn is_at(&self, link: &str, folder: &str) -> bool {
        let Some(path) = link.strip_suffix(".md") else {
            return false;
        };
        match path.strip_prefix("../") {
            Some(path) => path.split_once('/') == Some((self.folder, self.name)),
            None => folder == self.folder && path == self.name,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::error::Kind;
    use crate::status::Code;

    fn asked_for(line: &str) -> Parsed {
        let words = line.split_whitespace().map(OsString::from);
        super::super::parse(words)
    }

    fn printed(line: &str) -> String {
        match asked_for(line) {
            Parsed::Print(page) => page,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn each_page_is_a_topic_that_prints_it() {
        let list = printed("walmgr help");
        for page in PAGES {
            let topic = page.topic();
            assert!(list.contains(&format!("  {topic} ")), "{topic}");
            let title = page.title();
            for name in [topic, format!("{}/{}", page.folder, page.name)] {
                let text = printed(&format!("walmgr help {name}"));
                assert!(text.starts_with(&format!("# {title}\n")), "{name}");
            }
        }
    }

    #[test]
    fn fault_183_each_page_of_docs_is_a_topic_and_no_other() {
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");
        let listed = |folder: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(folder).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        };
        let mut there: Vec<PathBuf> = listed(Path::new(docs))
            .iter()
            .flat_map(|folder| listed(folder))
            .collect();
        let known = |page: &Page| {
            Path::new(docs)
                .join(page.folder)
                .join(format!("{}.md", page.name))
        };
        let mut known: Vec<PathBuf> = PAGES.iter().map(known).collect();
        there.sort();
        known.sort();
        assert_eq!(there, known, "PAGES lists the pages of docs/");
    }

    #[test]
    fn fault_183_each_finding_and_exit_code_has_its_runbook() {
        let runbook = |topic: &str| {
            PAGES
                .iter()
                .find(|page| page.folder == "runbooks" && page.topic() == topic)
        };
        for code in Code::ALL {
            let (word, topic) = (code.word(), code.runbook());
            assert!(runbook(topic).is_some(), "{word}: {topic}");
            // What an alert rule links to.
            let page = PAGES
                .iter()
                .find(|page| page.folder == "runbooks" && page.name == word);
            let page = page.unwrap_or_else(|| panic!("docs/runbooks/{word}.md"));
            let leads_on = page
                .for_a_screen()
                .contains(&format!("(walmgr help {topic})"));
            assert!(page.topic() == topic || leads_on, "{word}");
        }
        for kind in [
            Kind::Conflict,
            Kind::Identity,
            Kind::ForeignCluster,
            Kind::ReceiverDisk,
        ] {
            assert!(kind.runbook().and_then(runbook).is_some(), "{kind:?}");
        }
    }

    #[test]
    fn fault_183_a_runbook_says_what_it_means_what_to_do_and_how_it_ends() {
        for page in PAGES.iter().filter(|page| page.folder == "runbooks") {
            let (name, text) = (page.name, page.text);
            assert!(text.starts_with(&format!("# {name}: ")), "{name}");
            if text.contains("\nThe page is [") {
                continue;
            }
            let mut rest = text;
            for part in ["Means", "At risk", "Do", "Over when"] {
                let (_, behind) = rest
                    .split_once(&format!("\n**{part}:** "))
                    .unwrap_or_else(|| panic!("{name}: {part}"));
                rest = behind;
            }
            assert!(
                text.lines().count() < 60,
                "{name} is too long for the night"
            );
        }
    }

    #[test]
    fn each_command_is_a_topic_that_prints_its_help() {
        for word in words() {
            let text = printed(&format!("walmgr help {word}"));
            let usage = format!("Usage: walmgr [options] <config.ini> {word}");
            assert!(text.contains(&usage), "{word}: {text}");
        }
        assert!(printed("walmgr help backup").contains("walmgr help tasks/backup: "));
    }

    #[test]
    fn an_unknown_topic_is_a_usage_error_that_names_the_nearest() {
        for (line, tip) in [
            ("walmgr help two-host", Some("did you mean `two-hosts`?")),
            ("walmgr help bakup", Some("did you mean `backup`?")),
            ("walmgr help nothing-like-it-at-all", None),
            ("walmgr help backup restore", None),
        ] {
            match asked_for(line) {
                Parsed::Usage(error, ExitTable::Ordinary) => assert_eq!(error.tip(), tip, "{line}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_link_to_a_page_becomes_what_to_type() {
        let page = Page {
            folder: "tasks",
            name: "x",
            text: "# X\n\n[Boot](boot.md), [why](../explain/what-is-durable.md#a), [here](#x), [rust](https://r) `a[1](2)`",
        };
        assert_eq!(
            page.for_a_screen(),
            "# X\n\nBoot (walmgr help tasks/boot), why (walmgr help what-is-durable), here, [rust](https://r) `a[1](2)`"
        );
    }
}
