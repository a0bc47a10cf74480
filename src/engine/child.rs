//! Builds in a process of its own.
//!
//! TensorRT ends the process on some graphs, and a machine short of memory ends the largest process. So the parent starts
//! `kiln build-engine` and hears it through a pipe: one [`Event`] as JSON on each line, the last of which is the result. The
//! plan goes through a file. The child ends itself when its parent is gone, whatever ended that.

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

use super::log::{Log, Severity};
use super::{
    BuildRequest, Built, ComputeCapability, EngineBuilder, EngineError, Form, Kernels, Libraries,
    LogLine, Network, Plan, Profile, Progress, RtxBuilder, TensorInfo, Version,
};
use crate::mapped;

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

/// What a child is told by its arguments.
#[derive(Debug, clap::Args)]
pub struct ChildArgs {
    #[arg(long)]
    core: PathBuf,
    #[arg(long)]
    parser: PathBuf,
}

/// What a child is told by its first line of input. It keeps the pipe open to notice the parent's end.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    onnx: RawPath,
    data_dir: Option<RawPath>,
    plan: RawPath,
    capabilities: Vec<ComputeCapability>,
    profiles: Vec<Profile>,
    workspace: Option<usize>,
    optimization_level: Option<u8>,
    detailed: bool,
    tf32: bool,
    form: Form,
}

/// A path as bytes, which need not be Unicode.
#[derive(Debug, Serialize, Deserialize)]
struct RawPath(Vec<u8>);

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
enum Event {
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
struct Facts {
    parse_time: Duration,
    build_time: Duration,
    warnings: Vec<LogLine>,
    network: Network,
    kernels: Kernels,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    version: Version,
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
        let facts = facts?;
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
    match (cancelled, said.result) {
        (true, _) => Err(EngineError::Cancelled),
        (false, Some(result)) => result,
        (false, None) => Err(EngineError::Died {
            how: ended.map_or_else(|e| e.to_string(), how),
            phase: said.phases.pop(),
            log: said.log,
        }),
    }
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

/// Tells the parent, on stdout.
fn tell(event: &Event) {
    static OUT: Mutex<()> = Mutex::new(());
    let _alone = OUT.lock();
    if let Ok(text) = serde_json::to_string(event) {
        let mut out = io::stdout().lock();
        // What TensorRT prints need not end its line. If the parent is gone, the process ends anyway.
        let _ = writeln!(out, "\n{text}").and_then(|()| out.flush());
    }
}

struct Relay;

impl Progress for Relay {
    fn phase_start(&self, name: &str, parent: Option<&str>, steps: u32) {
        tell(&Event::PhaseStart {
            name: name.into(),
            parent: parent.map(str::to_string),
            steps,
        });
    }

    fn step(&self, name: &str, step: u32) {
        tell(&Event::Step {
            name: name.into(),
            step,
        });
    }

    fn phase_finish(&self, name: &str) {
        tell(&Event::PhaseFinish { name: name.into() });
    }
}

/// What the child does: `kiln build-engine`. It ends without a word if no order comes.
///
/// # Errors
/// None that TensorRT causes: those are told to the parent. An order that cannot be read.
pub fn serve(args: &ChildArgs) -> io::Result<()> {
    let builder = RtxBuilder::new(&Libraries {
        core: args.core.clone(),
        parser: args.parser.clone(),
    });
    let mut input = BufReader::new(io::stdin());
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(());
    }
    let order: Order = serde_json::from_str(&line)?;
    thread::spawn(move || {
        // Ends when the parent does.
        let _ = input.read_to_end(&mut Vec::new());
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    });
    tell(&match builder.and_then(|builder| build(&builder, order)) {
        Ok(facts) => Event::Done(Box::new(facts)),
        Err(error) => Event::Failed(error),
    });
    Ok(())
}

fn build(builder: &RtxBuilder, order: Order) -> Result<Facts, EngineError> {
    let [onnx, plan] = [order.onnx, order.plan].map(PathBuf::from);
    let data_dir = order.data_dir.map(PathBuf::from);
    Log::get()?.listen(|line| tell(&Event::Log(line.clone())));
    let map = mapped::own(&onnx).map_err(|e| EngineError::Child {
        program: onnx.clone(),
        reason: e.to_string(),
    })?;
    let first = order.capabilities.first().copied();
    let request = BuildRequest {
        data_dir: data_dir.as_deref(),
        profiles: order.profiles,
        workspace: order.workspace,
        optimization_level: order.optimization_level,
        detailed: order.detailed,
        tf32: order.tf32,
        form: order.form,
        capabilities: order.capabilities,
        ..BuildRequest::new(&map, first.unwrap_or(ComputeCapability::Current))
    };
    let built = builder.build(&request, &Relay)?;
    built.plan.save(&plan).map_err(|e| EngineError::Write {
        path: plan.clone(),
        reason: e.to_string(),
    })?;
    Ok(Facts {
        parse_time: built.parse_time,
        build_time: built.build_time,
        warnings: built.warnings,
        network: built.network,
        kernels: built.kernels,
        inputs: built.inputs,
        outputs: built.outputs,
        version: built.version,
    })
}
