//! Steps of the check: processes, and what they print.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::de::DeserializeOwned;

/// What a process did.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A step that did not give what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The last line that it wrote to stderr, with its exit code.
    pub why: String,
    /// It ran, and a gate failed: the result is wrong, not absent.
    pub gate: bool,
}

impl From<&str> for Failed {
    fn from(why: &str) -> Failed {
        Failed {
            why: why.into(),
            gate: false,
        }
    }
}

impl Ran {
    /// What it printed.
    ///
    /// # Errors
    /// If it failed.
    pub fn text(&self) -> Result<&str, Failed> {
        if self.code == Some(0) {
            return Ok(&self.stdout);
        }
        let mut lines = self.stderr.lines().filter(|l| !l.trim().is_empty());
        let last = lines.next_back().unwrap_or("it does not say why");
        let last = last.trim_start_matches("kiln: ");
        Err(Failed {
            why: match self.code {
                Some(code) => format!("{last} (exit code {code})"),
                None => format!("{last} (ended by a signal)"),
            },
            gate: self.code == Some(1),
        })
    }

    /// What it printed as JSON.
    ///
    /// # Errors
    /// As [`text`](Self::text), or if it is no such JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failed> {
        serde_json::from_str(self.text()?)
            .map_err(|e| Failed::from(format!("what was printed is not as expected: {e}").as_str()))
    }
}

/// Whoever runs the steps.
pub trait Steps {
    /// `kiln` with these arguments.
    fn kiln(&self, args: &[&str]) -> Ran;

    /// A Python with a program on its standard input, and these arguments.
    fn python(&self, python: &Path, program: &str, args: &[String]) -> Ran;
}

/// Runs this very executable.
#[derive(Clone, Debug)]
pub struct Kiln {
    pub executable: PathBuf,
    /// What stands before every command: `--ort-lib`, `--trt-lib`.
    pub globals: Vec<String>,
}

impl Steps for Kiln {
    fn kiln(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(&self.executable);
        command.args(&self.globals).args(args);
        run(command, "")
    }

    fn python(&self, python: &Path, program: &str, args: &[String]) -> Ran {
        let mut command = Command::new(python);
        command.arg("-").args(args);
        run(command, program)
    }
}

fn run(mut command: Command, input: &str) -> Ran {
    let failed = |e: std::io::Error| Ran {
        code: None,
        stdout: String::new(),
        stderr: e.to_string(),
    };
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => return failed(e),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input ends by itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    match child.wait_with_output() {
        Err(e) => failed(e),
        Ok(output) => Ran {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        },
    }
}
