//! PostgreSQL's own library of clients, asked what it makes of a connection string.
//! Never linked into the tests: a small C program loads it. Invariant: what it answers is what psql
//! would do with the same string, environment and files.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cluster::library;
use super::{TempDir, have, run};

/// A libpq of one version.
pub struct Libpq {
    program: PathBuf,
    file: PathBuf,
    home: TempDir,
    variables: Vec<(String, String)>,
}

impl Libpq {
    /// That of this version, if it is here and there is a compiler.
    pub fn of(major: u8) -> Result<Libpq, String> {
        if !have("cc") {
            return Err("there is no C compiler".to_owned());
        }
        let file = library(major)?;
        let home = TempDir::new();
        let source = home.write("libpq.c", include_str!("libpq.c"));
        let program = home.join("libpq");
        run(Command::new("cc")
            .args(["-D_GNU_SOURCE", "-o"])
            .args([&program, &source])
            .arg("-ldl"))?;
        let libpq = Libpq {
            program,
            file,
            home,
            variables: Vec::new(),
        };
        run(&mut libpq.command("options"))?;
        Ok(libpq)
    }

    /// The same with this environment variable.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Libpq {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its `HOME`.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    fn command(&self, question: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(&self.file).arg(question).env_clear();
        command.env("HOME", self.home.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn ask(&self, question: &str, strings: &[String]) -> Vec<Vec<u8>> {
        let mut child = self.command(question);
        child.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let text = strings.iter().flat_map(|it| [it.as_bytes(), b"\0"]);
        let text = text.collect::<Vec<_>>().concat();
        let writing = std::thread::spawn(move || input.write_all(&text));
        let output = child.wait_with_output().unwrap();
        writing.join().unwrap().unwrap();
        assert!(output.status.success(), "{question}: {:?}", output.status);
        let mut answers: Vec<_> = output.stdout.split(|byte| *byte == 0).collect();
        answers.pop();
        answers.into_iter().map(<[u8]>::to_vec).collect()
    }

    /// Every option with its environment variable, which may be empty.
    pub fn options(&self) -> Vec<(String, String)> {
        let lines = self.ask("options", &[]);
        let lines = lines.iter().map(|line| String::from_utf8_lossy(line));
        let pair = |line: std::borrow::Cow<'_, str>| {
            let (name, variable) = line.split_once(' ').unwrap();
            (name.to_owned(), variable.to_owned())
        };
        lines.map(pair).collect()
    }

    /// The password of each string, empty if there is none. Nothing is sent anywhere for it.
    pub fn passwords(&self, strings: &[String]) -> Vec<Vec<u8>> {
        self.ask("passwords", strings)
    }

    /// The values in each string, as `name=value` lines, or what is wrong with it.
    pub fn parse(&self, strings: &[String]) -> Vec<Result<Vec<u8>, String>> {
        self.ask("parse", strings).into_iter().map(judged).collect()
    }

    /// The version of TLS that each string connects with, empty for none, or what came of it.
    pub fn connect(&self, strings: &[String]) -> Vec<Result<Vec<u8>, String>> {
        let answers = self.ask("connect", strings);
        answers.into_iter().map(judged).collect()
    }
}

fn judged(answer: Vec<u8>) -> Result<Vec<u8>, String> {
    match answer.strip_prefix(b"!") {
        Some(wrong) => Err(String::from_utf8_lossy(wrong).trim().to_owned()),
        None => Ok(answer),
    }
}
