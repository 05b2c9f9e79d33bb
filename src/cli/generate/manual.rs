//! The manual pages: walmgr(1), a page for each command, walmgr.ini(5).
//! Never writes a file and never reads a clock. Invariant: a page has every option that its command takes and that is
//! not hidden.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::GeneratedFile;
use super::exit_codes::{meanings, why};
use super::reference::{is_common, is_of_daemons};
use crate::config::keys::{self, Default, Key, Side};
use crate::config::sample;
use crate::error::ExitTable;

/// What stands in the head of each page.
const TITLE: &str = "PostgreSQL archiving";

/// The date of the newest section in the changelog.
const DATE: &str = "2026-11-26";

/// The commands of PostgreSQL's own settings have their own codes.
fn table_of(command: &str) -> ExitTable {
    match command {
        "xarchive" => ExitTable::Xarchive,
        "xrestore" => ExitTable::Xrestore,
        _ => ExitTable::Ordinary,
    }
}

/// All pages.
pub(super) fn pages(mut grammar: Command) -> Vec<GeneratedFile> {
    grammar.build();
    let mut pages = vec![
        ("walmgr.1".to_owned(), overview(&grammar)),
        ("walmgr.ini.5".to_owned(), settings()),
    ];
    for command in grammar.get_subcommands() {
        let name = format!("walmgr-{}", command.get_name());
        pages.push((format!("{name}.1"), command_page(&grammar, command, name)));
    }
    pages
}

fn overview(grammar: &Command) -> String {
    let mut page = ManualPage::begin(grammar.clone());
    page.clap(Man::render_description_section);
    page.section("COMMANDS");
    for command in grammar.get_subcommands() {
        let name = command.get_name();
        page.item(&format!("walmgr-{name}(1)"), &about(command));
    }
    page.clap(Man::render_options_section);
    page.exit_status(ExitTable::Ordinary);
    page.section("FILES");
    for (path, text) in [
        (
            "/etc/walmgr/",
            "the ini files of a package's installation, mode 0700, of the user postgres",
        ),
        ("NAME.ini", "settings of one side; see walmgr.ini(5)"),
        (
            "NAME.key, NAME.crt",
            "this side's identity, beside the ini file",
        ),
        (
            "authorized_keys",
            "the masters that may connect, beside the standby's ini file",
        ),
        (
            "/usr/share/doc/walmgr/examples/",
            "a commented sample of each ini file",
        ),
    ] {
        page.item(path, text);
    }
    page.see_also(&["walmgr.ini(5)", "pg_basebackup(1)", "systemctl(1)"]);
    page.rendered
}

fn command_page(grammar: &Command, command: &Command, name: String) -> String {
    let word = command.get_name().to_owned();
    let is_daemon = ["receiver", "syncdaemon"].contains(&word.as_str());
    let mut own = command.clone().display_name(name).bin_name("walmgr");
    // What every command takes stands in walmgr(1), but nobody should look there for a daemon's flags.
    for argument in command.get_arguments() {
        if is_common(grammar, argument) || (is_of_daemons(argument) && !is_daemon) {
            own = own.mut_arg(argument.get_id(), |argument| argument.hide(true));
        }
    }
    let has_own = own.get_arguments().any(|argument| !argument.is_hide_set());
    let mut page = ManualPage::begin(own);
    page.section("DESCRIPTION");
    page.text(&format!("{}.", about(command)));
    page.paragraph("The options of every command are described in walmgr(1).");
    if has_own {
        page.clap(Man::render_options_section);
    }
    page.exit_status(table_of(&word));
    page.see_also(&["walmgr(1)", "walmgr.ini(5)"]);
    page.rendered
}

fn settings() -> String {
    let command = Command::new("walmgr.ini").about("settings of walmgr");
    let mut page = ManualPage::titled(command, "5");
    page.section("DESCRIPTION");
    page.text(
        "An ini file has one section, [walmgr], and a line NAME = VALUE for each setting. Lines that begin with # or ; \
         are comments. %(NAME)s in a value is the value of another setting. A setting that begins with slave may also \
         be spelled with standby. A path that is not absolute is below the ini file's directory.",
    );
    page.paragraph("Settings on the command line (--set) win over those of the file. A daemon reads its file again on SIGHUP.");
    for (title, side) in [
        ("SETTINGS OF THE MASTER", Side::Master),
        ("SETTINGS OF THE STANDBY", Side::Standby),
        ("SETTINGS OF A HOST OF MANY CLUSTERS", Side::Host),
    ] {
        page.section(title);
        for row in keys::rows(side) {
            page.setting(row);
        }
    }
    page.see_also(&["walmgr(1)"]);
    page.rendered
}

/// A page that grows.
struct ManualPage {
    man: Man,
    rendered: String,
}

impl ManualPage {
    /// Title, name and synopsis of a command.
    fn begin(command: Command) -> ManualPage {
        let mut page = ManualPage::titled(command, "1");
        page.clap(Man::render_synopsis_section);
        page
    }

    /// Title and name.
    fn titled(command: Command, section: &str) -> ManualPage {
        let source = concat!("walmgr ", env!("CARGO_PKG_VERSION"));
        let title = command.get_display_name().unwrap_or(command.get_name());
        let title = title.to_owned();
        let man = Man::new(command).title(title).section(section);
        let mut page = ManualPage {
            man: man.date(DATE).source(source).manual(TITLE),
            rendered: String::new(),
        };
        page.clap(Man::render_title);
        page.clap(Man::render_name_section);
        page
    }

    /// A section of clap_mangen's.
    fn clap(&mut self, render: impl Fn(&Man, &mut dyn std::io::Write) -> std::io::Result<()>) {
        let mut bytes = Vec::new();
        // Writing to a Vec cannot fail.
        let _ = render(&self.man, &mut bytes);
        // What it puts before a list of values moves the page twice.
        self.push(&String::from_utf8_lossy(&bytes).replace("\n.br\n\n.br\n", "\n.sp\n"));
    }

    fn roff(&mut self, write: impl FnOnce(&mut Roff)) {
        let mut roff = Roff::new();
        write(&mut roff);
        let text = roff.render();
        self.push(&text);
    }

    /// Adds rendered lines, of which only the first of a page may say how apostrophes look.
    fn push(&mut self, text: &str) {
        let is_first = self.rendered.is_empty();
        let preamble = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";
        let text = text
            .strip_prefix(preamble)
            .filter(|_| !is_first)
            .unwrap_or(text);
        self.rendered.push_str(text);
        if !text.ends_with('\n') {
            self.rendered.push('\n');
        }
    }

    fn section(&mut self, title: &str) {
        self.roff(|roff| {
            roff.control("SH", [title]);
        });
    }

    fn text(&mut self, text: &str) {
        self.roff(|roff| {
            roff.text([roman(text)]);
        });
    }

    fn paragraph(&mut self, text: &str) {
        self.roff(|roff| {
            roff.control("PP", []).text([roman(text)]);
        });
    }

    fn item(&mut self, term: &str, text: &str) {
        self.roff(|roff| {
            roff.control("TP", [])
                .text([bold(term)])
                .text([roman(text)]);
        });
    }

    fn setting(&mut self, row: &Key) {
        let value = sample::shape_in_words(row.shape).replace('`', "");
        let mut text = row.help.replace('`', "");
        match row.default {
            Default::Text(default) => text.push_str(&format!(" Default: {default}.")),
            Default::Derived(words) => {
                text.push_str(&format!(" Default: {}.", words.replace('`', "")))
            }
            Default::Unset if row.required => text.push_str(" It must be set."),
            Default::Unset => {}
        }
        self.roff(|roff| {
            let term = [bold(row.name), roman(" = "), italic(value)];
            roff.control("TP", []).text(term).text([roman(text)]);
        });
    }

    fn exit_status(&mut self, table: ExitTable) {
        self.section("EXIT STATUS");
        for (code, meaning) in meanings(table) {
            self.item(&code.to_string(), &meaning.replace('`', ""));
        }
        self.paragraph(&why(table).replace('`', ""));
    }

    fn see_also(&mut self, pages: &[&str]) {
        self.section("SEE ALSO");
        self.text(&pages.join(", "));
    }
}

fn about(command: &Command) -> String {
    command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::grammar;

    #[test]
    fn the_date_of_the_manual_is_that_of_the_newest_release() {
        let newest = include_str!("../../../CHANGELOG.md");
        let newest = newest
            .lines()
            .find_map(|line| line.strip_prefix("## [")?.split_once("] - "));
        assert_eq!(newest.unwrap(), (env!("CARGO_PKG_VERSION"), DATE));
    }

    #[test]
    fn every_command_has_a_page_with_all_of_its_options() {
        let pages = pages(grammar::grammar());
        let mut grammar = grammar::grammar();
        grammar.build();
        for command in grammar.get_subcommands() {
            let name = format!("walmgr-{}.1", command.get_name());
            let (_, own) = pages.iter().find(|(page, _)| *page == name).unwrap();
            let (_, general) = &pages[0];
            for argument in command
                .get_arguments()
                .filter(|argument| !argument.is_hide_set())
            {
                let Some(long) = argument.get_long() else {
                    continue;
                };
                let spelled = format!("\\-\\-{}\\fR", long.replace('-', "\\-"));
                assert!(
                    own.contains(&spelled) || general.contains(&spelled),
                    "{name} lacks {spelled}"
                );
            }
        }
    }

    #[test]
    fn every_setting_is_in_the_manual() {
        let page = settings();
        for key in keys::KEYS {
            assert!(
                page.contains(&format!("\\fB{}\\fR = ", key.name)),
                "{}",
                key.name
            );
        }
    }
}
