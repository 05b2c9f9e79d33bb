//! A line of a shell taken apart into the commands that it runs and what joins them.
//! Never expands anything. Invariant: a word is what the program would get if nothing in it were expanded.

/// What stands behind a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandJoint {
    /// `&&`
    And,
    /// `||`
    Or,
    /// `|`
    Pipe,
    /// `&`
    Background,
    /// `;`, the end of a line or of a group, or nothing.
    Then,
}

/// A command, or what closes a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShellWord {
    /// Its words without quotes, without what is assigned before them and without redirections.
    pub words: Vec<String>,
    /// What stands behind it.
    pub joint: CommandJoint,
    /// Whether `!` turns its end around.
    pub is_negated: bool,
    /// Whether it only decides what else is run.
    pub is_condition: bool,
    /// The last word of the shell's own before it.
    pub keyword: Option<String>,
}

/// Words that the shell keeps for itself.
const KEYWORDS: [&str; 13] = [
    "!", "{", "}", "do", "done", "elif", "else", "fi", "if", "then", "time", "until", "while",
];

#[derive(Default)]
struct ShellReading {
    items: Vec<ShellWord>,
    words: Vec<String>,
    word: Option<String>,
    /// The next word is a file to read or to write.
    is_redirected: bool,
}

impl ShellReading {
    fn push(&mut self, letter: char) {
        self.word.get_or_insert_default().push(letter);
    }

    fn end_word(&mut self) {
        if let Some(word) = self.word.take()
            && !std::mem::take(&mut self.is_redirected)
        {
            self.words.push(word);
        }
    }

    fn end_item(&mut self, joint: CommandJoint) {
        self.end_word();
        let words = std::mem::take(&mut self.words);
        if words.is_empty() {
            // `&&` behind a group belongs to the group; a second line's end says nothing.
            if joint != CommandJoint::Then {
                self.items.push(item(Vec::new(), joint));
            }
            return;
        }
        self.items.push(item(words, joint));
    }
}

fn item(words: Vec<String>, joint: CommandJoint) -> ShellWord {
    let is_keyword = |word: &&String| KEYWORDS.contains(&word.as_str());
    let is_assigned = |word: &&String| {
        let name = word.split_once('=').map_or("", |(name, _)| name);
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
    };
    let own: Vec<&String> = words.iter().take_while(is_keyword).collect();
    let begins = own.len() + words[own.len()..].iter().take_while(is_assigned).count();
    let has = |known: &[&str]| own.iter().any(|word| known.contains(&word.as_str()));
    ShellWord {
        joint,
        is_negated: has(&["!"]),
        is_condition: has(&["if", "elif", "while", "until"]),
        keyword: own.last().map(|word| (*word).clone()),
        words: words[begins..].to_vec(),
    }
}

/// Takes a line, or several, apart.
pub(super) fn items(text: &str) -> Vec<ShellWord> {
    let mut reading = ShellReading::default();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let next = letters.peek().copied();
        match letter {
            '\\' if next == Some('\n') => drop(letters.next()),
            '\\' => reading.word.get_or_insert_default().extend(letters.next()),
            '\'' => {
                let quoted = letters.by_ref().take_while(|letter| *letter != '\'');
                reading.word.get_or_insert_default().extend(quoted);
            }
            '"' => double_quoted(&mut letters, reading.word.get_or_insert_default()),
            '$' if next == Some('(') => {
                substituted(&mut letters, reading.word.get_or_insert_default())
            }
            '#' if reading.word.is_none() => {
                while letters.next_if(|letter| *letter != '\n').is_some() {}
            }
            '<' | '>' => redirected(&mut letters, &mut reading),
            '&' if next == Some('>') => {}
            '&' if next == Some('&') => {
                letters.next();
                reading.end_item(CommandJoint::And);
            }
            '|' if next == Some('|') => {
                letters.next();
                reading.end_item(CommandJoint::Or);
            }
            '&' => reading.end_item(CommandJoint::Background),
            '|' => reading.end_item(CommandJoint::Pipe),
            ';' | '\n' | '(' => reading.end_item(CommandJoint::Then),
            ')' => {
                reading.end_item(CommandJoint::Then);
                // What is behind the group belongs to all of it.
                reading.words.push("}".to_owned());
            }
            letter if letter.is_whitespace() => reading.end_word(),
            letter => reading.push(letter),
        }
    }
    reading.end_item(CommandJoint::Then);
    reading.items
}

fn double_quoted(letters: &mut std::iter::Peekable<std::str::Chars<'_>>, word: &mut String) {
    while let Some(letter) = letters.next() {
        match letter {
            '"' => return,
            '\\' if letters
                .peek()
                .is_some_and(|next| "$`\"\\\n".contains(*next)) =>
            {
                word.extend(letters.next().filter(|next| *next != '\n'));
            }
            letter => word.push(letter),
        }
    }
}

/// `$(…)` stays as it is written.
fn substituted(letters: &mut std::iter::Peekable<std::str::Chars<'_>>, word: &mut String) {
    word.push('$');
    let mut open = 0_usize;
    for letter in letters.by_ref() {
        word.push(letter);
        match letter {
            '(' => open += 1,
            ')' if open <= 1 => return,
            ')' => open -= 1,
            _ => {}
        }
    }
}

/// `2>&1`, `>>file`, `<&-`: neither the number nor the file is a word of the command's.
fn redirected(letters: &mut std::iter::Peekable<std::str::Chars<'_>>, reading: &mut ShellReading) {
    let is_number =
        |word: &String| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    if reading.word.as_ref().is_some_and(is_number) {
        reading.word = None;
    }
    reading.end_word();
    while letters.next_if(|letter| "<>&|".contains(*letter)).is_some() {}
    reading.is_redirected = true;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart_as_a_shell_does() {
        let words = |text: &str| -> Vec<String> {
            items(text)
                .iter()
                .map(|item| item.words.join("|"))
                .collect()
        };
        for (text, expected) in [
            ("a b  c", &["a|b|c"][..]),
            ("'a b' \"c \\\" d\" e\\ f", &["a b|c \" d|e f"]),
            ("'' a", &["|a"]),
            ("a && b || c; d & e | f", &["a", "b", "c", "d", "e", "f"]),
            ("A=1 B='x y' a C=2", &["a|C=2"]),
            ("a 2>&1 >>x <y &>z b", &["a|b"]),
            ("a # b\nc#d", &["a", "c#d"]),
            ("(a; b) && c", &["a", "b", "", "c"]),
            ("{ a; } | b", &["a", "", "b"]),
            ("if a; then b; else c; fi", &["a", "b", "c", ""]),
            ("a \"$(b c)\" $(d (e) f) g", &["a|$(b c)|$(d (e) f)|g"]),
            ("a 'open", &["a|open"]),
            ("a \\", &["a|"]),
            ("", &[]),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
        let joints = |text: &str| -> Vec<CommandJoint> {
            items(text).iter().map(|item| item.joint).collect()
        };
        assert_eq!(
            joints("a && b || c | d & e"),
            [
                CommandJoint::And,
                CommandJoint::Or,
                CommandJoint::Pipe,
                CommandJoint::Background,
                CommandJoint::Then
            ]
        );
        assert_eq!(
            joints("(a) | b"),
            [CommandJoint::Then, CommandJoint::Pipe, CommandJoint::Then]
        );
        assert!(items("! a")[0].is_negated && items("if a; then b; fi")[0].is_condition);
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(text in "[ab12 '\"\\\\$()<>&|;#\n=!{}]{0,60}") {
            items(&text);
        }
    }
}
