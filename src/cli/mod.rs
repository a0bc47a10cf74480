//! The command line: parse, call the library, print, exit.

mod arguments;
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
mod failure;
mod flags;
mod generate;
mod generation;
mod generation_bench;
mod globals;
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
mod width;

use std::env;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::arguments::{Export, known_pass, report_file, this_program};
use self::failure::{Failure, NOT_PROVED, describe, is_broken_pipe};
use self::globals::{Globals, print, print_json, told};
use crate::report::table;

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
    /// Check and time everything that needs a GPU, on this machine, and write a record.
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

/// Runs the command line of this process, whose program was built of this commit.
pub fn main(commit: Option<&str>) -> ExitCode {
    crate::setting::spelled_by(flags::flag);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }
}
