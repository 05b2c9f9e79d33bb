//! Completions of bash, zsh and fish, where the word of a command stands behind the ini file.
//! Never writes a file. Invariant: a shell offers the commands behind an ini file, and a command's options behind its word.

use clap::Command;
use clap_complete::{Shell, generate};

use super::{Generated, GeneratedFile};

/// The generated function takes the first word for the command, so it is called without what stands before the command:
/// the ini file and the options in front of it.
const BASH: &str = r#"
_walmgr_behind_ini() {
    local at ini=0
    for ((at = 1; at < COMP_CWORD; at++)); do
        case ${COMP_WORDS[at]} in
            --set | --generate) ((at++)) ;;
            -*) ;;
            *) ini=$at && break ;;
        esac
    done
    if ((ini > 0)); then
        COMP_WORDS=(walmgr "${COMP_WORDS[@]:ini+1}")
        ((COMP_CWORD -= ini))
        _walmgr walmgr "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        COMPREPLY=(${COMPREPLY[@]/\[config.ini\]/})
    elif [[ $2 == -* ]]; then
        COMP_WORDS=(walmgr "$2")
        COMP_CWORD=1
        _walmgr walmgr "$2" walmgr
    fi
}
complete -o nosort -o bashdefault -o default -F _walmgr_behind_ini walmgr
"#;

/// The generated functions take the first word for the command; the later definition of a function counts.
const FISH: &str = r"
function __fish_walmgr_words
    set -l words (commandline -opc)
    set -e words[1]
    argparse -s (__fish_walmgr_global_optspecs) -- $words 2>/dev/null
    or return 1
    string join \n -- $argv
end
function __fish_walmgr_needs_command
    set -l words (__fish_walmgr_words)
    test (count $words) -eq 1
end
function __fish_walmgr_using_subcommand
    set -l words (__fish_walmgr_words)
    test (count $words) -ge 2
    and contains -- $words[2] $argv
end
";

/// The file of one shell, named as its completions are looked up.
pub(super) fn of(kind: Generated, mut grammar: Command) -> GeneratedFile {
    let (shell, name, tail) = match kind {
        Generated::Fish => (Shell::Fish, "walmgr.fish", FISH),
        Generated::Zsh => (Shell::Zsh, "_walmgr", ""),
        _ => (Shell::Bash, "walmgr", BASH),
    };
    let mut bytes = Vec::new();
    generate(shell, &mut grammar, "walmgr", &mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    (name.to_owned(), format!("{text}{tail}"))
}
