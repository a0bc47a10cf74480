//! The child that builds one engine.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use kiln_runtime::mapped;

use super::RtxBuilder;
use super::logger::Log;
use crate::child::{Event, Facts, Order};
use crate::{BuildRequest, ComputeCapability, EngineBuilder, EngineError, Libraries, Progress};

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
pub fn serve(libraries: &Libraries) -> io::Result<()> {
    let builder = RtxBuilder::new(libraries);
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
        plan: Some(&plan),
        capabilities: order.capabilities,
        ..BuildRequest::new(&map, first.unwrap_or(ComputeCapability::Current))
    };
    let built = builder.build(&request, &Relay)?;
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
