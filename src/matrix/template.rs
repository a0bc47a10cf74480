//! Scripts that have other people's engines run the cells.

use std::path::Path;

use super::plan::Plan;

/// What runs the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// A script for `sbatch`: a job array.
    Slurm,
    /// An Indexed Job.
    Kubernetes,
    /// A workflow of GitHub Actions with a matrix.
    Github,
}

/// Where the Indexed Job sees the claim.
const MOUNT: &str = "/fleet";

const SLURM: &str = include_str!("templates/slurm.sh");
const KUBERNETES: &str = include_str!("templates/kubernetes.yaml");
const GITHUB: &str = include_str!("templates/github.yml");

pub(super) fn fill(plan: &Plan, engine: Engine) -> String {
    let needs = || plan.cells.iter().map(|c| &c.needs);
    let memory = needs().map(|n| n.memory_mb).max().unwrap_or(0);
    let cpus = needs().map(|n| n.cpus).max().unwrap_or(1);
    let gpu = needs().any(|n| !n.gpus.is_empty());
    let (text, asks) = match engine {
        Engine::Slurm => (SLURM, "#SBATCH --gres=gpu:1\n"),
        Engine::Kubernetes => (KUBERNETES, "              nvidia.com/gpu: 1\n"),
        Engine::Github => (GITHUB, ""),
    };
    let count = plan.cells.len();
    text.replace("@COUNT@", &count.to_string())
        .replace("@LAST@", &(count - 1).to_string())
        .replace("@MEMORY@", &memory.to_string())
        .replace("@CPUS@", &cpus.to_string())
        .replace("@MOUNT@", MOUNT)
        .replace("@GPU@\n", if gpu { asks } else { "" })
        .replace("@PLAN@", &place(&plan.path, plan, engine))
        .replace("@OUTPUT@", &place(&plan.output, plan, engine))
}

/// Where the machine that runs a cell finds a path of the plan's.
fn place(path: &Path, plan: &Plan, engine: Engine) -> String {
    let root = match engine {
        // A cluster's machines see the same folders.
        Engine::Slurm => return path.display().to_string(),
        // The claim holds the plan's folder.
        Engine::Kubernetes => plan.path.parent().map(Path::to_path_buf),
        // A template is printed at the root of the repository.
        Engine::Github => std::env::current_dir().ok(),
    };
    let inside = root.and_then(|root| path.strip_prefix(root).ok().map(Path::to_path_buf));
    let inside = inside.unwrap_or_else(|| path.to_path_buf());
    let inside = inside.display();
    match engine {
        Engine::Kubernetes => format!("{MOUNT}/{inside}"),
        _ => inside.to_string(),
    }
}
