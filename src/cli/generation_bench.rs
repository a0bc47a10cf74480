//! `kiln bench --generate`

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Export, Failure, Globals, print, print_json, this_program};
use crate::bench::baseline::Verdict;
use crate::generate::Place;
use crate::generate::bench::{self, Benchmark, Request, Size};
use crate::report::{self, generation_bench as told};

/// What of `kiln bench` bears on a generation.
pub(super) struct Asked {
    pub request: Request,
    pub strict: bool,
    pub reports: Vec<report::Target>,
    pub export: Option<Export>,
    pub json: bool,
}

pub(super) fn run(globals: &Globals, asked: Asked) -> Result<u8, Failure> {
    let mut found = bench::bench(&asked.request)?;
    if found.models.len() > 1 {
        globals.say("kiln: memory: each model runs once more, in a process of its own");
        for model in &mut found.models {
            model.peak_bytes = alone(&asked.request, Path::new(&model.path));
        }
    }
    for target in &asked.reports {
        target.write(&told::Timed(&found))?;
    }
    let csv = || told::csv(&found).map_err(Failure::usage);
    if let Some(Export::File(path)) = &asked.export {
        report::write(path, &csv()?)?;
    }
    match (asked.json, &asked.export) {
        (true, _) => print_json(&found)?,
        (_, Some(Export::Stdout)) => print(&csv()?)?,
        _ => show(globals, &found)?,
    }
    Ok(gate(globals, &found, asked.strict))
}

fn show(globals: &Globals, found: &Benchmark) -> Result<(), Failure> {
    for (title, header, rows) in told::tables(found) {
        globals.show(&format!("\n{title}\n\n{}", globals.table(&header, &rows)))?;
    }
    Ok(())
}

/// Names what is slower than the baseline, and gives the exit code.
fn gate(globals: &Globals, found: &Benchmark, strict: bool) -> u8 {
    let mut code = 0;
    for judged in found.gate.iter().flat_map(|g| &g.points) {
        let fails = match judged.found.verdict {
            Verdict::Pass => continue,
            Verdict::Fail => true,
            Verdict::Unclear | Verdict::NotRun => strict,
        };
        let size = judged.size;
        let line = format!(
            "{} prompt={} new={}: {}",
            judged.model,
            size.prompt,
            size.new,
            judged.why()
        );
        match fails {
            true => globals.fail(line),
            false => globals.say(format!("kiln: {line}")),
        }
        code |= u8::from(fails);
    }
    code
}

/// The peak of a process that runs one model, at the size of most tokens. Of several in one process nobody can tell whose memory it is.
fn alone(request: &Request, model: &Path) -> Option<u64> {
    let size: &Size = request.sizes.iter().max_by_key(|s| s.prompt + s.new)?;
    let options = &request.options;
    let mut command = Command::new(this_program());
    command.arg("bench").arg(model);
    command.arg(format!(
        "--generate=prompt={},new={}",
        size.prompt, size.new
    ));
    command.args(["--repetitions=1", "--json"]);
    if let Some(n) = options.threads {
        command.arg(format!("--threads={n}"));
    }
    match &options.place {
        Place::Cpu => {}
        Place::Device(request) => {
            command.arg(format!("--device={}", request.choice));
        }
        Place::Engine(gpu) => {
            command.arg(format!("--device=cuda:{}", gpu.device));
            command.args(model.is_dir().then_some("--engine"));
        }
    }
    let mut path = |option: &str, path: &Option<PathBuf>| {
        if let Some(path) = path {
            command.arg(option).arg(path);
        }
    };
    path("--ort-lib", &options.ort_lib);
    if let Place::Engine(gpu) = &options.place {
        path("--trt-lib", &gpu.libraries);
    }
    path("--inputs", &request.inputs);
    let ran = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let told: Value = serde_json::from_slice(&ran.ok()?.stdout).ok()?;
    told["models"][0]["peak_bytes"].as_u64()
}
