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
mod diff;
mod doctor;
mod engine;
pub mod exit;
mod export;
mod generate;
mod generation;
mod gpu_check;
mod help;
mod inspect;
mod judge;
mod log;
mod matrix;
mod passes;
mod progress;
mod signals;
mod tables;
mod version;

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};
use kiln_passes::registry::{self, UnknownPass};

use crate::report::table;

/// Nothing differs, and not every output could have shown that it does.
const NOT_PROVED: u8 = 6;

/// Compile Transformer models: ONNX in, a proven FP16 model and a TensorRT engine out.
#[derive(Parser, Debug)]
#[command(name = "kiln", version, about, after_help = help::SHORT, after_long_help = help::LONG, max_term_width = 100)]
struct Cli {
    /// ONNX Runtime's library: a file or a folder.
    ///
    /// Otherwise that of ORT_DYLIB_PATH, of the virtual environment, or of the system.
    #[arg(long, global = true, value_name = "PATH", help_heading = help::RUNTIME)]
    ort_lib: Option<PathBuf>,
    /// TensorRT for RTX: a folder.
    ///
    /// Otherwise that of KILN_TENSORRT_RTX_DIR, of the virtual environment, or of the system.
    #[arg(long, global = true, value_name = "PATH", help_heading = help::RUNTIME)]
    trt_lib: Option<PathBuf>,
    /// Print nothing but errors and data.
    ///
    /// Data are what --json prints, and all that inspect, passes, doctor and schema print.
    #[arg(long, short, global = true, help_heading = help::OUTPUT)]
    quiet: bool,
    /// Show all cases of a comparison, not only the worst of each output.
    ///
    /// With --version: the commit, features and runtimes.
    #[arg(long, short, global = true, help_heading = help::OUTPUT)]
    verbose: bool,
    /// Append what runs, and when, to this file.
    ///
    /// With the runtimes' messages, whole.
    #[arg(long, global = true, value_name = "FILE", env = "KILN_LOG", help_heading = help::DIAGNOSTICS)]
    log: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Optimize a model, convert it, build its engine, prove that it computes the same, and time it.
    Compile(Box<compile::Args>),
    /// Compare a model or bundle with its original, output by output.
    Check(check::Args),
    /// Time models or bundles side by side over a grid of sizes, against a baseline.
    Bench(bench::Args),
    /// Find the application of a pass that makes a compiled model differ from its original.
    Bisect(Box<bisect::Args>),
    /// Show what a model or bundle holds.
    ///
    /// Operators, parameters, inputs, outputs and transformer blocks; of a bundle also what it was made for, how, and what was
    /// proved.
    Inspect(inspect::Args),
    /// Show what is different between two models or bundles, by block and operator.
    ///
    /// With the pass that did it, where kiln made one of them. Exit code 0: they are the same; 1: they are not; others: as of all
    /// commands.
    Diff(diff::Args),
    /// Go on from a prompt, token after token: a decoder with a cache, alone or behind an encoder.
    Generate(generate::Args),
    /// Show where the heads of a model look on given inputs, as a page with heat maps.
    Attention(attention::Args),
    /// List the passes, or explain one.
    Passes(passes::Args),
    /// Show what is installed, what is missing, and the command that fixes it.
    Doctor(doctor::Args),
    /// Compile many models for many targets: the cells of a plan, one of them, or all in one report.
    Matrix(matrix::Args),
    /// Write a bundle as a server wants it: Triton, or Text Embeddings Inference.
    Export(export::Args),
    /// Check and time everything that takes a GPU, on this machine, and write a record.
    GpuCheck(gpu_check::GpuCheckArgs),
    /// Print the JSON Schema of a recipe or of a result.
    ///
    /// Editors complete and check recipes by it; results are what kiln writes as JSON: the manifest of a bundle, and what check,
    /// bench and inspect --engine print.
    Schema {
        #[arg(value_enum, default_value_t = Schema::Recipe)]
        of: Schema,
    },
    /// Build an engine for the process that started this one.
    #[command(name = crate::engine::SUBCOMMAND, hide = true)]
    BuildEngine(ChildArgs),
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
    /// Write man pages into a folder.
    Man {
        /// The folder; it is made if it is not there.
        folder: PathBuf,
    },
}

/// What has a schema.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Schema {
    Recipe,
    Check,
    Bench,
    Diff,
    Engine,
    Manifest,
}

impl Schema {
    fn get(self) -> schemars::Schema {
        match self {
            Schema::Recipe => crate::recipe::Recipe::schema(),
            Schema::Check => crate::schema::schema::<crate::check::Checked>(),
            Schema::Bench => crate::schema::schema::<crate::bench::Benchmark>(),
            Schema::Diff => crate::schema::schema::<crate::diff::Diff>(),
            Schema::Manifest => crate::manifest::Manifest::schema(),
            Schema::Engine => crate::schema::schema::<crate::manifest::EngineKernels>(),
        }
    }
}

/// What every verb is given.
#[derive(Debug)]
struct Globals {
    ort_lib: Option<PathBuf>,
    trt_lib: Option<PathBuf>,
    log: Option<PathBuf>,
    quiet: bool,
    verbose: bool,
}

impl Globals {
    /// Talks to the user, on stderr.
    fn say(&self, line: impl std::fmt::Display) {
        tracing::info!(target: "kiln", "{line}");
        if !self.quiet {
            told(&line.to_string());
        }
    }

    /// Says why the exit code will not be 0, quiet or not.
    fn fail(&self, line: impl std::fmt::Display) {
        tracing::error!(target: "kiln", "{line}");
        told(&format!("kiln: {line}"));
    }

    /// Prints what a command found, for people.
    fn show(&self, text: &str) -> Result<(), Failure> {
        let text = tables::wrapped(text, terminal());
        match (self.quiet, colour::wanted()) {
            (true, _) => Ok(()),
            (_, true) => print(&colour::paint(&text)),
            (_, false) => print(&text),
        }
    }
}

/// What the process that builds an engine is told by its arguments.
#[derive(clap::Args, Debug)]
struct ChildArgs {
    #[arg(long)]
    core: PathBuf,
    #[arg(long)]
    parser: PathBuf,
}

impl From<ChildArgs> for crate::engine::Libraries {
    fn from(args: ChildArgs) -> crate::engine::Libraries {
        crate::engine::Libraries {
            core: args.core,
            parser: args.parser,
        }
    }
}

/// Columns of the terminal that stdout is, if it is one.
fn terminal() -> Option<usize> {
    tables::width(io::stdout())
}

/// Lines on stderr, as wide as its terminal.
fn told(text: &str) {
    let text = tables::wrapped(text, tables::width(io::stderr()));
    // A closed stderr is no reason to fail.
    let _ = writeln!(io::stderr(), "{text}");
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

/// Runs the command line of this process, whose program was built of this commit.
pub fn main(commit: Option<&str>) -> ExitCode {
    let cli = match parse() {
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
    let started = match (&cli.log, &cli.verb) {
        // Its messages are told to the process that started it.
        (_, Verb::BuildEngine(_)) | (None, _) => Ok(()),
        (Some(path), _) => log::start(path, commit),
    };
    let code = match started.and_then(|()| run(cli)) {
        Ok(code) => code,
        Err(Failure { error, .. }) if is_broken_pipe(&error) => 0,
        Err(Failure { code, error }) => {
            let why = describe(&error);
            tracing::error!(target: "kiln", "{why}");
            told(&format!("kiln: {why}"));
            code
        }
    };
    tracing::info!(target: "kiln", "exit code {code}");
    ExitCode::from(code)
}

/// The command line, completed by the environment.
fn parse() -> Result<Cli, clap::Error> {
    let mut matches = command().try_get_matches()?;
    let ambient = matches.subcommand().is_some_and(|(_, verb)| {
        let known = verb.ids().any(|id| id == "target");
        known && verb.value_source("target") == Some(ValueSource::EnvVariable)
    });
    let mut cli = Cli::from_arg_matches_mut(&mut matches)?;
    match &mut cli.verb {
        Verb::Compile(args) => args.conversion.ambient_target = ambient,
        Verb::Bisect(args) => args.conversion.ambient_target = ambient,
        _ => {}
    }
    Ok(cli)
}

/// What can be said on the command line. A variable of the environment that is empty says nothing.
fn command() -> clap::Command {
    let said = |arg: Arg| {
        let empty = (arg.get_env()).is_some_and(|v| env::var_os(v).is_some_and(|v| v.is_empty()));
        if empty { arg.env(None) } else { arg }
    };
    let command = Cli::command().mut_args(said);
    command.mut_subcommands(|verb| verb.mut_args(said))
}

fn run(cli: Cli) -> Result<u8, Failure> {
    match cli.verb {
        Verb::BuildEngine(_) => {}
        Verb::Compile(_) => signals::install("; no bundle was written"),
        _ => signals::install(""),
    }
    let globals = Globals {
        ort_lib: cli.ort_lib,
        trt_lib: cli.trt_lib,
        log: cli.log,
        quiet: cli.quiet,
        verbose: cli.verbose,
    };
    match cli.verb {
        Verb::Compile(args) => compile::run(&globals, *args),
        Verb::Check(args) => check::run(&globals, args),
        Verb::Bench(args) => bench::run(&globals, args),
        Verb::Bisect(args) => bisect::run(&globals, *args),
        Verb::Inspect(args) => inspect::run(&globals, args),
        Verb::Diff(args) => diff::run(&globals, &args),
        Verb::Generate(args) => generate::run(&globals, args),
        Verb::Attention(args) => attention::run(&globals, args),
        Verb::Passes(args) => passes::run(args),
        Verb::Doctor(args) => doctor::run(&globals, args),
        Verb::Matrix(args) => matrix::run(&globals, args),
        Verb::Export(args) => export::run(&globals, args),
        Verb::GpuCheck(args) => gpu_check::run(&globals, args),
        Verb::Schema { of } => print_json(&of.get()).map(|()| 0),
        Verb::BuildEngine(args) => match crate::engine::serve(&args.into()) {
            Ok(()) => Ok(0),
            Err(e) => Err(Failure::usage(e)),
        },
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut io::stdout());
            Ok(0)
        }
        Verb::Man { folder } => {
            std::fs::create_dir_all(&folder)?;
            clap_mangen::generate_to(Cli::command(), &folder)?;
            Ok(0)
        }
    }
}

/// The file of a report, by any name that the system allows.
fn report_file() -> impl TypedValueParser<Value = crate::report::Target> {
    OsStringValueParser::new().try_map(|text| crate::report::Target::at(text.into()))
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
        false => env::current_exe().unwrap_or("kiln".into()),
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
