//! The command line: parse, call the library, print, exit.

mod attention;
mod bench;
mod bisect;
mod build;
mod check;
mod colour;
mod compile;
mod conversion;
mod device;
mod doctor;
mod engine;
mod export;
mod gpu_check;
mod inspect;
mod judge;
mod matrix;
mod passes;
mod progress;
mod signals;
mod tables;
mod version;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use kiln_passes::registry::{self, UnknownPass};

use crate::compile::CompileError;
use crate::report::table;

const AFTER: &str = "\
EXIT CODES:
  0  done
  1  a gate failed: the result is not the same function, or not the precision asked for
  2  usage, or a file that cannot be written
  3  the model cannot be read, or is unsupported
  4  the engine build failed
  5  a runtime is missing; `kiln doctor` says which, and the command that installs it
  6  nothing differs, and an output is not proved: it is random, not finite, or the same for all inputs; a bundle is
     written, and says so
  7  a defect of kiln: the graph is broken, or ONNX Runtime refuses what was made of a model that it runs
  8  the search for nodes that must keep their precision stopped
  9  something could not be timed
  130, 143  interrupted; what was half written is removed";

/// Nothing differs, and not every output could have shown that it does.
const NOT_PROVED: u8 = 6;

/// Compile Transformer models: ONNX in, a proven FP16 model and a TensorRT engine out.
#[derive(Parser, Debug)]
#[command(name = "kiln", version, about, after_help = AFTER, max_term_width = 100)]
struct Cli {
    /// ONNX Runtime's library: a file or a folder. Else ORT_DYLIB_PATH, the virtual environment, the system.
    #[arg(long, global = true, value_name = "PATH")]
    ort_lib: Option<PathBuf>,
    /// TensorRT for RTX: a folder. Else KILN_TENSORRT_RTX_DIR, the virtual environment, the system.
    #[arg(long, global = true, value_name = "PATH")]
    trt_lib: Option<PathBuf>,
    /// Print nothing but errors, and what a command is asked for as data: --json, and all of inspect, passes, doctor and
    /// schema.
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Show all cases of a comparison, not only the worst of each output; with --version, the commit, features and runtimes.
    #[arg(long, short, global = true)]
    verbose: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Optimize a model, convert it, build its engine, prove that it computes the same, and time it.
    Compile(Box<compile::Args>),
    /// Compare a model or bundle with its original, output by output.
    Check(check::Args),
    /// Time models or bundles side by side over a grid of sizes, and hold them against a baseline.
    Bench(bench::Args),
    /// Find the application of a pass that makes a compiled model differ from its original.
    Bisect(bisect::Args),
    /// Show what a model or bundle holds: operators, parameters, inputs, outputs, transformer blocks; of a bundle also what it
    /// was made for, how, and what was proved.
    Inspect(inspect::Args),
    /// Show where the heads of a model look on given inputs, as a page with heat maps.
    Attention(attention::Args),
    /// List the passes, or explain one.
    Passes(passes::Args),
    /// Show what is installed, what is missing, and the command that mends it.
    Doctor(doctor::Args),
    /// Compile many models for many targets: the cells of a plan, one of them, or all in one report.
    Matrix(matrix::Args),
    /// Write a bundle as a server wants it: Triton, or Text Embeddings Inference.
    Export(export::Args),
    /// Check and time everything that takes a GPU, on this machine, and write a record.
    GpuCheck(gpu_check::GpuCheckArgs),
    /// Print the JSON Schema of a recipe, for editors, or of what check or bench print as JSON.
    Schema {
        #[arg(value_enum, default_value_t = Schema::Recipe)]
        of: Schema,
    },
    /// Build an engine for the process that started this one.
    #[command(name = crate::engine::SUBCOMMAND, hide = true)]
    BuildEngine(crate::engine::ChildArgs),
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
}

/// What has a schema.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Schema {
    Recipe,
    Check,
    Bench,
    Engine,
}

impl Schema {
    fn get(self) -> schemars::Schema {
        match self {
            Schema::Recipe => crate::recipe::Recipe::schema(),
            Schema::Check => crate::schema::schema::<crate::check::Checked>(),
            Schema::Bench => crate::schema::schema::<crate::bench::Benchmark>(),
            Schema::Engine => crate::schema::schema::<crate::manifest::EngineKernels>(),
        }
    }
}

/// What every verb is given.
#[derive(Debug)]
struct Globals {
    ort_lib: Option<PathBuf>,
    trt_lib: Option<PathBuf>,
    quiet: bool,
    verbose: bool,
}

impl Globals {
    /// Talks to the user, on stderr.
    fn say(&self, line: impl std::fmt::Display) {
        if !self.quiet {
            // A closed stderr is no reason to fail.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// Says why the exit code will not be 0, quiet or not.
    fn fail(&self, line: impl std::fmt::Display) {
        let _ = writeln!(io::stderr(), "kiln: {line}");
    }

    /// Prints what a command found, for people.
    fn show(&self, text: &str) -> Result<(), Failure> {
        match (self.quiet, colour::wanted()) {
            (true, _) => Ok(()),
            (_, true) => print(&colour::paint(text)),
            (_, false) => print(text),
        }
    }
}

/// A failure with its exit code.
#[derive(Debug)]
struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl Failure {
    fn usage(error: impl Into<anyhow::Error>) -> Failure {
        Failure {
            code: 2,
            error: error.into(),
        }
    }

    fn model(error: impl Into<anyhow::Error>) -> Failure {
        Failure {
            code: 3,
            error: error.into(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        Failure::usage(e)
    }
}

impl From<crate::report::WriteError> for Failure {
    fn from(e: crate::report::WriteError) -> Failure {
        Failure::usage(e)
    }
}

impl From<CompileError> for Failure {
    fn from(e: CompileError) -> Failure {
        Failure {
            code: e.exit_code(),
            error: e.into(),
        }
    }
}

/// Runs the command line of this process, whose program was built of this commit.
pub fn main(commit: Option<&str>) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no errors, and go to stdout.
            let _ = e.print();
            if e.kind() == clap::error::ErrorKind::DisplayVersion && version::wanted() {
                let _ = print(&version::details(commit));
            }
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    match cli.verb {
        Verb::BuildEngine(_) => {}
        Verb::Compile(_) => signals::install("; no bundle was written"),
        _ => signals::install(""),
    }
    let globals = Globals {
        ort_lib: cli.ort_lib,
        trt_lib: cli.trt_lib,
        quiet: cli.quiet,
        verbose: cli.verbose,
    };
    let done = match cli.verb {
        Verb::Compile(args) => compile::run(&globals, *args),
        Verb::Check(args) => check::run(&globals, args),
        Verb::Bench(args) => bench::run(&globals, args),
        Verb::Bisect(args) => bisect::run(&globals, args),
        Verb::Inspect(args) => inspect::run(&globals, args),
        Verb::Attention(args) => attention::run(&globals, args),
        Verb::Passes(args) => passes::run(args),
        Verb::Doctor(args) => doctor::run(&globals, args),
        Verb::Matrix(args) => matrix::run(&globals, args),
        Verb::Export(args) => export::run(&globals, args),
        Verb::GpuCheck(args) => gpu_check::run(&globals, args),
        Verb::Schema { of } => print_json(&of.get()).map(|()| 0),
        Verb::BuildEngine(args) => match crate::engine::serve(&args) {
            Ok(()) => Ok(0),
            Err(e) => Err(Failure::usage(e)),
        },
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut io::stdout());
            Ok(0)
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(Failure { error, .. }) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(Failure { code, error }) => {
            let _ = writeln!(io::stderr(), "kiln: {}", describe(&error));
            ExitCode::from(code)
        }
    }
}

/// The chain of causes on one line, without repeating what a message already quotes of its cause.
fn describe(error: &anyhow::Error) -> String {
    let mut out = error.to_string();
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
    }
    crate::bundle::public(&out).into_owned()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().filter_map(|e| e.downcast_ref::<io::Error>());
    io.into_iter()
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// This binary, even if another has taken its place since it was started.
fn this_program() -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    match running.exists() {
        true => running,
        false => std::env::current_exe().unwrap_or("kiln".into()),
    }
}

/// The name of a pass, or `all`.
fn known_pass(name: &str) -> Result<String, UnknownPass> {
    match name {
        "all" => Ok(name.to_string()),
        name => registry::find(name).map(|pass| pass.name().to_string()),
    }
}

/// Data goes to stdout, so that it can be piped.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::usage)?;
    print(&(text + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }
}
