//! How a command ended, in the terms tests ask about.
//! Never hides what a command said: every complaint about it carries both streams.

use std::process::{Command, Stdio};

/// How a process ended and what it said.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Output {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Output {
        command.stdin(Stdio::null()).output().unwrap().into()
    }

    /// What it printed; panics unless it ended with 0.
    #[track_caller]
    pub fn succeed(&self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self.stdout.trim_end().to_owned()
    }

    /// The one line it complained with; panics unless it ended with this code and one line.
    #[track_caller]
    pub fn fail(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        let line = self.stderr.trim_end();
        assert_eq!(line.lines().count(), 1, "{}", self.stderr);
        assert!(line.starts_with("walmgr: "), "{line}");
        line
    }

    /// Panics unless it ended with this code, and its last line says this.
    #[track_caller]
    pub fn fail_last(&self, code: i32, part: &str) {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        let line = self.stderr.lines().last().unwrap_or_default();
        assert!(line.contains(part), "{part:?} is not in: {line}");
    }
}

impl From<std::process::Output> for Output {
    fn from(output: std::process::Output) -> Self {
        Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
