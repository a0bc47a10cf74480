//! Builds in a process of its own.
//!
//! TensorRT ends the process on some graphs, and a machine short of memory ends the largest process. So the parent starts
//! `kiln build-engine` and hears it through a pipe: one [`Event`] as JSON on each line, the last of which is the result. The
//! plan goes through a file. The child ends itself when its parent is gone, whatever ended that.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::log::Severity;
use super::{
    BuildRequest, Built, ComputeCapability, EngineBuilder, EngineError, Form, Kernels, Libraries,
    LogLine, Network, Plan, Profile, Progress, TensorInfo, Version,
};
use kiln_runtime::mapped;

/// Builds engines in processes of their own.
#[derive(Debug)]
pub struct ChildBuilder {
    program: PathBuf,
    libraries: Libraries,
    folder: PathBuf,
    /// A child that has no order yet.
    idle: Mutex<Option<Child>>,
}

/// The subcommand that a child is.
pub const SUBCOMMAND: &str = "build-engine";

/// What a child is told by its first line of input. It keeps the pipe open to notice the parent's end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) onnx: RawPath,
    pub(super) data_dir: Option<RawPath>,
    pub(super) plan: RawPath,
    pub(super) capabilities: Vec<ComputeCapability>,
    pub(super) profiles: Vec<Profile>,
    pub(super) workspace: Option<usize>,
    pub(super) optimization_level: Option<u8>,
    pub(super) detailed: bool,
    pub(super) tf32: bool,
    pub(super) form: Form,
}

/// A path as bytes, which need not be Unicode.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RawPath(Vec<u8>);

impl From<&Path> for RawPath {
    fn from(path: &Path) -> RawPath {
        RawPath(path.as_os_str().as_bytes().to_vec())
    }
}

impl From<RawPath> for PathBuf {
    fn from(RawPath(bytes): RawPath) -> PathBuf {
        OsString::from_vec(bytes).into()
    }
}

/// What a child says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    PhaseStart {
        name: String,
        parent: Option<String>,
        steps: u32,
    },
    Step {
        name: String,
        step: u32,
    },
    PhaseFinish {
        name: String,
    },
    Log(LogLine),
    Done(Box<Facts>),
    Failed(EngineError),
}

/// What is known of an engine, whose plan is in a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) parse_time: Duration,
    pub(super) build_time: Duration,
    pub(super) warnings: Vec<LogLine>,
    pub(super) network: Network,
    pub(super) kernels: Kernels,
    pub(super) inputs: Vec<TensorInfo>,
    pub(super) outputs: Vec<TensorInfo>,
    pub(super) version: Version,
}

/// Log lines of a dead child that are kept.
const LAST_LINES: usize = 20;
/// How often a wish to stop is looked for.
const PATIENCE: Duration = Duration::from_millis(100);

impl ChildBuilder {
    /// `program` is the `kiln` binary. In `folder` the child writes the plan, and the model is put if it is in no file.
    pub fn new(program: &Path, libraries: &Libraries, folder: &Path) -> ChildBuilder {
        ChildBuilder {
            program: program.to_path_buf(),
            libraries: libraries.clone(),
            folder: folder.to_path_buf(),
            idle: Mutex::new(None),
        }
    }

    /// Starts the process of the next build, which loads TensorRT meanwhile. Where that fails, the build says why.
    pub fn warm(self) -> ChildBuilder {
        let child = self.start().ok();
        ChildBuilder::put(&self.idle, child);
        self
    }

    fn put(place: &Mutex<Option<Child>>, child: Option<Child>) -> Option<Child> {
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut place, child)
    }

    fn start(&self) -> io::Result<Child> {
        let path = |flag: &str, path: &Path| [flag.into(), path.as_os_str().to_owned()];
        Command::new(&self.program)
            .arg(SUBCOMMAND)
            .args(path("--core", &self.libraries.core))
            .args(path("--parser", &self.libraries.parser))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C is the parent's to answer.
            .process_group(0)
            .spawn()
    }

    fn cannot_start(&self, source: &io::Error) -> EngineError {
        EngineError::Child {
            program: self.program.clone(),
            reason: source.to_string(),
        }
    }
}

impl Drop for ChildBuilder {
    fn drop(&mut self) {
        if let Some(mut child) = ChildBuilder::put(&self.idle, None) {
            // An error means that it has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl EngineBuilder for ChildBuilder {
    fn build(
        &self,
        request: &BuildRequest<'_>,
        progress: &dyn Progress,
    ) -> Result<Built, EngineError> {
        if !request.weights.is_empty() {
            return Err(EngineError::Request(
                "weights in this process's memory cannot be given to a builder in another".into(),
            ));
        }
        let plan = self.folder.join("engine.part");
        let copy = self.folder.join("engine-input.onnx");
        let cannot_write = |path: &Path| {
            let path = path.to_path_buf();
            move |e: io::Error| EngineError::Write {
                path,
                reason: e.to_string(),
            }
        };
        let onnx = match request.onnx_path {
            Some(path) => path,
            None => {
                fs::write(&copy, request.onnx).map_err(cannot_write(&copy))?;
                &copy
            }
        };
        let child = match ChildBuilder::put(&self.idle, None) {
            Some(child) => child,
            None => self.start().map_err(|e| self.cannot_start(&e))?,
        };
        let order = Order {
            onnx: onnx.into(),
            data_dir: request.data_dir.map(RawPath::from),
            plan: plan.as_path().into(),
            capabilities: request.capabilities.clone(),
            profiles: request.profiles.clone(),
            workspace: request.workspace,
            optimization_level: request.optimization_level,
            detailed: request.detailed,
            tf32: request.tf32,
            form: request.form.clone(),
        };
        let facts = listen(child, &order, progress);
        if request.onnx_path.is_none() {
            // In a bundle that is not finished: it must not be in the finished one, and goes with the unfinished one.
            fs::remove_file(&copy).map_err(cannot_write(&copy))?;
        }
        // The child writes while it serializes, and may have stopped there. Without a plan, there is nothing to remove.
        let facts = facts.inspect_err(|_| drop(fs::remove_file(&plan)))?;
        let map = mapped::own(&plan).map_err(cannot_write(&plan))?;
        Ok(Built {
            plan: Plan::in_file(plan, map),
            parse_time: facts.parse_time,
            build_time: facts.build_time,
            warnings: facts.warnings,
            network: facts.network,
            kernels: facts.kernels,
            inputs: facts.inputs,
            outputs: facts.outputs,
            version: facts.version,
        })
    }
}

/// Hears a child to its end.
fn listen(mut child: Child, order: &Order, progress: &dyn Progress) -> Result<Facts, EngineError> {
    // The child waits for its order, and stops when this end of the pipe closes.
    let mut to_child = child.stdin.take();
    if let (Some(pipe), Ok(mut line)) = (&mut to_child, serde_json::to_vec(order)) {
        line.push(b'\n');
        // A child that is dead already tells more by how it ended.
        let _ = pipe.write_all(&line);
    }
    let (sender, events) = mpsc::channel();
    let from_child = child.stdout.take();
    let reader = thread::spawn(move || {
        let lines = from_child.map(|pipe| BufReader::new(pipe).lines());
        for line in lines.into_iter().flatten().map_while(Result::ok) {
            // TensorRT may print as well.
            if let Ok(event) = serde_json::from_str::<Event>(&line)
                && sender.send(event).is_err()
            {
                break;
            }
        }
    });
    let written = child
        .stderr
        .take()
        .map(|pipe| thread::spawn(move || tail(pipe)));
    let mut said = Said::default();
    let cancelled = loop {
        match events.recv_timeout(PATIENCE) {
            Ok(event) => said.hear(event, progress),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break false,
        }
        if progress.cancelled() {
            break true;
        }
    };
    if cancelled {
        // An error means that it has ended by itself.
        let _ = child.kill();
    }
    let ended = child.wait();
    drop(to_child);
    let _ = reader.join();
    let written = written.and_then(|t| t.join().ok()).unwrap_or_default();
    match (cancelled, said.result) {
        (true, _) => Err(EngineError::Cancelled),
        (false, Some(result)) => result,
        (false, None) => Err(EngineError::Died {
            how: ended.map_or_else(|e| e.to_string(), how),
            phase: said.phases.pop(),
            log: said.log.into_iter().chain(written).collect(),
        }),
    }
}

/// The last lines of what TensorRT writes past its logger, which is of note only where the child dies: a build that is tried in
/// another form afterwards has written of its failure, too.
fn tail(pipe: impl Read) -> Vec<LogLine> {
    let mut last = VecDeque::new();
    for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
        let text = String::from_utf8_lossy(&line).into_owned();
        tracing::info!(target: "tensorrt", "{text}");
        last.push_back(LogLine {
            severity: Severity::Error,
            text,
            count: 1,
        });
        if last.len() > LAST_LINES {
            last.pop_front();
        }
    }
    last.into()
}

/// What a child has said so far.
#[derive(Default)]
struct Said {
    phases: Vec<String>,
    log: Vec<LogLine>,
    result: Option<Result<Facts, EngineError>>,
}

impl Said {
    fn hear(&mut self, event: Event, progress: &dyn Progress) {
        match event {
            Event::PhaseStart {
                name,
                parent,
                steps,
            } => {
                progress.phase_start(&name, parent.as_deref(), steps);
                self.phases.push(name);
            }
            Event::Step { name, step } => progress.step(&name, step),
            Event::PhaseFinish { name } => {
                progress.phase_finish(&name);
                self.phases.retain(|p| *p != name);
            }
            Event::Log(line) => {
                match line.severity {
                    Severity::Warning => tracing::warn!(target: "tensorrt", "{}", line.text),
                    _ => tracing::error!(target: "tensorrt", "{}", line.text),
                }
                self.log.push(line);
                let surplus = self.log.len().saturating_sub(LAST_LINES);
                self.log.drain(..surplus);
            }
            Event::Done(facts) => self.result = Some(Ok(*facts)),
            Event::Failed(error) => self.result = Some(Err(error)),
        }
    }
}

/// `signal 11 (segmentation fault)`, or an exit code.
fn how(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return format!("exit code {}", status.code().unwrap_or_default());
    };
    let meaning = match signal {
        6 => " (abort)",
        7 => " (bus error)",
        8 => " (arithmetic)",
        9 => " (killed; the machine may be short of memory)",
        11 => " (segmentation fault)",
        _ => "",
    };
    format!("signal {signal}{meaning}")
}
