//! One's own judge: a command of the user's that is given inputs and both sides' outputs, and whose verdict is a gate. A recall, a
//! word error rate or an F1 says what no distance between outputs does.
//!
//! The command gets a folder as its last argument: `cases.json` lists the cases, and each has a folder with `inputs.npz`,
//! `original.npz` and `result.npz`, whose arrays have the names of inputs and outputs. Exit code 0 passes, 1 fails, and anything else
//! is a crash, which fails, too. On stdout, or its last line, may stand a JSON object with a number, `value`, and its name, `metric`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The list of cases in the folder.
pub const CASES: &str = "cases.json";

/// A judge that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// For `sh -c`; the folder is its last argument.
    pub command: String,
    /// Inputs to judge on, as calibration takes them; the proof's own cases if there are none.
    pub data: Option<PathBuf>,
    /// The model's tokenizer.json, for data that is text.
    pub tokenizer: Option<PathBuf>,
}

/// What the judge said.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Judgement {
    pub command: String,
    /// Cases that it was given.
    pub cases: usize,
    pub pass: bool,
    /// `null`: a signal ended it, or it could not be started.
    pub exit_code: Option<i32>,
    /// What the number is: `recall@10`.
    pub metric: Option<String>,
    /// `null`: it printed none.
    pub value: Option<f64>,
    /// All that it printed as JSON.
    pub printed: Option<Map<String, Value>>,
    /// The verdict in words.
    pub why: String,
    pub seconds: f64,
}

/// What the command of a judge printed, and how it ended.
struct Ended {
    code: Option<i32>,
    /// `exit code 3`, or the signal.
    how: String,
    out: String,
    err: String,
}

fn start(command: &str, folder: &Path) -> Ended {
    // `"$@"` behind the command hands the folder on, whatever characters are in it.
    let done = Command::new("sh")
        .arg("-c")
        .arg(format!("{command} \"$@\""))
        .arg("sh")
        .arg(folder)
        .stdin(Stdio::null())
        .output();
    match done {
        Err(e) => Ended {
            code: None,
            how: format!("it could not be started: {e}"),
            out: String::new(),
            err: String::new(),
        },
        Ok(done) => Ended {
            code: done.status.code(),
            how: match done.status.code() {
                Some(code) => format!("exit code {code}"),
                None => done.status.to_string(),
            },
            out: String::from_utf8_lossy(&done.stdout).into_owned(),
            err: String::from_utf8_lossy(&done.stderr).into_owned(),
        },
    }
}

/// The JSON object that is all of a text, or its last line.
fn object(text: &str) -> Option<Map<String, Value>> {
    let last = text.trim_end().lines().next_back().unwrap_or_default();
    let parse = |text: &str| serde_json::from_str(text).ok();
    parse(text).or_else(|| parse(last))
}

fn judged(command: &str, cases: usize, ended: &Ended) -> Judgement {
    let printed = object(&ended.out);
    let said = printed.as_ref();
    let value = said.and_then(|o| o.get("value")).and_then(Value::as_f64);
    let text = |key: &str| said.and_then(|o| o.get(key)).and_then(Value::as_str);
    let metric = text("metric").map(str::to_string);
    let name = metric.as_deref().unwrap_or("value");
    let number = match (value, said) {
        (Some(value), _) => format!("{name} {value}"),
        (None, Some(_)) => "its JSON has no number \"value\"".into(),
        (None, None) if ended.out.trim().is_empty() => "it printed no JSON".into(),
        (None, None) => "what it printed is no JSON object, nor is its last line".into(),
    };
    let own = text("why").map_or(String::new(), |why| format!(", {why}"));
    let last = ended.err.trim_end().lines().next_back();
    let last = last.map_or(String::new(), |line| format!(": {}", line.trim()));
    let why = match ended.code {
        Some(0) => format!("{number}{own}"),
        // Interpreters end so, too, where a script has an error.
        Some(1) if said.is_none() => format!("{}, and {number}{last}", ended.how),
        Some(1) => format!("{number}{own}"),
        _ => format!("the judge crashed, {}{last}", ended.how),
    };
    Judgement {
        command: command.to_string(),
        cases,
        pass: ended.code == Some(0),
        exit_code: ended.code,
        metric,
        value,
        why: format!("{why} (on {cases} cases)"),
        printed,
        seconds: 0.0,
    }
}

/// Runs the command on a folder of so many cases; gives what it said on stderr, too.
pub fn run(command: &str, folder: &Path, cases: usize) -> (Judgement, String) {
    let before = Instant::now();
    let ended = start(command, folder);
    let judgement = Judgement {
        seconds: before.elapsed().as_secs_f64(),
        ..judged(command, cases, &ended)
    };
    (judgement, ended.err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(command: &str) -> Judgement {
        let folder = tempfile::tempdir().unwrap();
        run(command, folder.path(), 3).0
    }

    #[test]
    fn exit_code_and_number_are_the_verdict() {
        let passes = of("echo '{\"metric\": \"recall@10\", \"value\": 0.98, \"n\": 3}' #");
        assert!(passes.pass);
        assert_eq!(
            (passes.metric.as_deref(), passes.value),
            (Some("recall@10"), Some(0.98))
        );
        assert_eq!(passes.why, "recall@10 0.98 (on 3 cases)");
        assert_eq!(passes.printed.unwrap()["n"], 3);

        let fails = of("echo log; echo '{\"value\": 0.5, \"why\": \"below 0.9\"}'; exit 1 #");
        assert!(!fails.pass);
        assert_eq!(fails.why, "value 0.5, below 0.9 (on 3 cases)");
    }

    #[test]
    fn a_crash_is_told_from_a_failure() {
        let code = of("echo broken >&2; exit 3 #");
        assert!(!code.pass);
        assert_eq!(
            code.why,
            "the judge crashed, exit code 3: broken (on 3 cases)"
        );
        let signal = of("kill -SEGV $$ #");
        assert_eq!(signal.exit_code, None);
        assert!(signal.why.contains("crashed, signal: 11"), "{}", signal.why);
        let missing = of("/no/such/judge");
        assert_eq!(missing.exit_code, Some(127));
        assert!(missing.why.contains("not found"), "{}", missing.why);
        // As Python ends with an exception.
        let raised = of("echo 'ValueError: x' >&2; exit 1 #");
        assert!(
            raised
                .why
                .starts_with("exit code 1, and it printed no JSON: ValueError: x"),
            "{}",
            raised.why
        );
    }

    #[test]
    fn no_json_is_said_and_the_exit_code_counts() {
        let silent = of("true");
        assert!(silent.pass && silent.value.is_none());
        assert_eq!(silent.why, "it printed no JSON (on 3 cases)");
        let text = of("echo fine #");
        assert!(text.pass);
        assert!(text.why.starts_with("what it printed is no JSON object"));
        let other = of("echo '{\"recall\": 1}' #");
        assert!(other.why.starts_with("its JSON has no number \"value\""));
        // NumPy's NaN is no JSON, and no number to judge by.
        assert!(of("echo '{\"value\": NaN}' #").value.is_none());
    }

    #[test]
    fn the_folder_is_the_last_argument_whatever_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("a b'\"$x");
        std::fs::create_dir(&odd).unwrap();
        let (judgement, _) = run("test -d", &odd, 1);
        assert!(judgement.pass, "{}", judgement.why);
    }
}
