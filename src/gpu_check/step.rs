//! Steps of the check: processes, and what they print.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use wait_timeout::ChildExt;

/// What a process did.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The exit code; `None` if it did not end by itself.
    pub code: Option<i32>,
    /// Its time was over before it ended, or before it began.
    pub late: bool,
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
                None if self.late => last.to_string(),
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
        let lines = self.text()?.lines().filter(|l| !l.contains(KERNEL));
        serde_json::from_str(&lines.collect::<Vec<_>>().join("\n"))
            .map_err(|e| Failed::from(format!("what was printed is not as expected: {e}").as_str()))
    }
}

/// Has ONNX Runtime print which kernel each attention gets (`attention_common.h`), in lines of stdout with [`KERNEL`].
const TELL_KERNELS: &str = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO";

/// `Operator=MultiHeadAttention Node=a DataType=fp16 SdpaKernel=FLASH_ATTENTION`
const KERNEL: &str = "SdpaKernel=";

impl Ran {
    /// The kernels that attention got, each once, by ONNX Runtime's words.
    pub fn attention(&self) -> Vec<String> {
        let after = self.stdout.lines().filter_map(|l| l.split_once(KERNEL));
        let name = |(_, rest): (&str, &str)| {
            let end = rest.find(|c: char| !(c.is_ascii_uppercase() || c == '_'));
            rest.get(..end.unwrap_or(rest.len()))
                .unwrap_or_default()
                .to_string()
        };
        let names: BTreeSet<String> = after.map(name).collect();
        names.into_iter().collect()
    }
}

/// Whoever runs the steps.
pub trait Steps {
    /// `kiln` with these arguments.
    fn kiln(&self, args: &[&str]) -> Ran;

    /// A Python with a program on its standard input, and these arguments.
    fn python(&self, python: &Path, program: &str, args: &[String]) -> Ran;
}

/// The time that steps have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of each step.
    pub step: Duration,
    /// Of all, from their beginning on.
    pub all: Option<Duration>,
    begun: Instant,
}

impl Limits {
    /// Limits whose time begins now.
    pub fn from_now(step: Duration, all: Option<Duration>) -> Limits {
        let begun = Instant::now();
        Limits { step, all, begun }
    }

    /// What a step that begins now has, and what to say when that is over.
    ///
    /// # Errors
    /// If nothing is left.
    fn of_next(&self) -> Result<(Duration, String), String> {
        let own = format!("it took longer than {} s", self.step.as_secs());
        let Some(all) = self.all else {
            return Ok((self.step, own));
        };
        let over = format!("the {} s of the check are over", all.as_secs());
        match all.saturating_sub(self.begun.elapsed()) {
            Duration::ZERO => Err(over),
            left if left < self.step => Ok((left, over)),
            _ => Ok((self.step, own)),
        }
    }
}

/// Runs this very executable.
#[derive(Clone, Debug)]
pub struct Kiln {
    pub executable: PathBuf,
    /// What stands before every command: `--ort-lib`, `--trt-lib`.
    pub globals: Vec<String>,
    pub limits: Limits,
}

impl Steps for Kiln {
    fn kiln(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(&self.executable);
        command.args(&self.globals).args(args);
        if args.first() == Some(&"check") {
            // Not where it would be timed.
            command.env(TELL_KERNELS, "1");
        }
        run(command, "", &self.limits)
    }

    fn python(&self, python: &Path, program: &str, args: &[String]) -> Ran {
        let mut command = Command::new(python);
        command.arg("-").args(args);
        run(command, program, &self.limits)
    }
}

fn run(command: Command, input: &str, limits: &Limits) -> Ran {
    let none = |stderr: String, late: bool| Ran {
        code: None,
        late,
        stdout: String::new(),
        stderr,
    };
    match limits.of_next() {
        Err(over) => none(over, true),
        Ok(limit) => within(command, input, limit).unwrap_or_else(|e| none(e.to_string(), false)),
    }
}

/// Runs a process until it ends, or its time does.
fn within(mut command: Command, input: &str, (limit, over): (Duration, String)) -> io::Result<Ran> {
    // Files, as a pipe that nobody reads would stop the process.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input ends by itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let ended = child.wait_timeout(limit)?;
    if ended.is_none() {
        child.kill()?;
        child.wait()?;
    }
    let late = ended.is_none();
    let mut told = text_of(&mut stderr)?;
    if late {
        told = format!("{told}\n{over}");
    }
    Ok(Ran {
        code: ended.and_then(|status| status.code()),
        late,
        stdout: text_of(&mut stdout)?,
        stderr: told,
    })
}

fn text_of(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeping(seconds: &str) -> Command {
        let mut command = Command::new("sleep");
        command.arg(seconds);
        command
    }

    #[test]
    fn a_step_that_takes_too_long_is_stopped_and_says_so() {
        let limits = Limits::from_now(Duration::from_millis(50), None);
        let failed = run(sleeping("60"), "", &limits).text().unwrap_err().why;
        assert_eq!(failed, "it took longer than 0 s");
        let all = Some(Duration::from_millis(50));
        let limits = Limits::from_now(Duration::from_secs(60), all);
        let failed = || run(sleeping("60"), "", &limits).text().unwrap_err().why;
        assert_eq!(failed(), "the 0 s of the check are over");
        // What would begin after that does not.
        assert_eq!(failed(), "the 0 s of the check are over");
    }

    #[test]
    fn attentions_kernels_are_told_apart_from_the_result() {
        let line = |kernel: &str| {
            format!(
                "\x1b[36mOperator=MultiHeadAttention Node=a DataType=fp16 SdpaKernel={kernel}\x1b[0m\n"
            )
        };
        let ran = Ran {
            code: Some(0),
            late: false,
            stdout: format!(
                "{}{}{}{{\n\"a\": 1}}",
                line("MATH"),
                line("EFFICIENT_ATTENTION"),
                line("MATH")
            ),
            stderr: String::new(),
        };
        assert_eq!(ran.attention(), ["EFFICIENT_ATTENTION", "MATH"]);
        assert_eq!(ran.json::<serde_json::Value>().unwrap()["a"], 1);
    }

    #[test]
    fn a_step_in_time_gives_what_it_prints() {
        let limits = Limits::from_now(Duration::from_secs(60), Some(Duration::from_secs(90)));
        let ran = run(Command::new("cat"), "a line", &limits);
        assert_eq!((ran.text().unwrap(), ran.late), ("a line", false));
    }
}
