//! The commands that PostgreSQL is told to run: this program, wherever the server stands.
//! Never runs anything. Invariant: a command works from any working directory and through any
//! shell, and PostgreSQL finds in it no placeholder that was not meant.

use std::path::Path;

use crate::error::{CommandError, Result};

/// `walmgr INI` and these words, of which some may be placeholders such as `%p`, for `setting`.
pub(crate) fn walmgr_command(setting: &str, ini: &Path, words: &str) -> Result<String> {
    let program = std::env::current_exe()
        .and_then(std::fs::canonicalize)
        .map_err(|error| CommandError::retry("find this program's own path").because(error))?;
    let (program, ini) = (shell_word(setting, &program)?, shell_word(setting, ini)?);
    Ok(format!("{program} {ini} {words}"))
}

/// A path as a word of the command in `setting`.
fn shell_word(setting: &str, path: &Path) -> Result<String> {
    let Some(text) = path.to_str().filter(|text| !text.contains('\n')) else {
        return Err(CommandError::config(format!(
            "{setting} cannot contain {}: it is not plain text",
            path.display()
        ))
        .hint("move it to a path of ordinary characters"));
    };
    let text = text.replace('%', "%%");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@%".contains(&byte);
    if text.bytes().all(plain) {
        return Ok(text);
    }
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell_and_percent_substitution() {
        let word = |text: &str| shell_word("archive_command", Path::new(text)).unwrap();
        assert_eq!(word("/usr/bin/walmgr"), "/usr/bin/walmgr");
        assert_eq!(word("/srv/my files/100%.ini"), "'/srv/my files/100%%.ini'");
        assert_eq!(word("/srv/it's"), "'/srv/it'\\''s'");
        assert!(shell_word("archive_command", Path::new("/srv/a\nb")).is_err());
    }
}
