//! Scripts that have other people's engines run the cells.

use super::Plan;

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
        .replace("@GPU@\n", if gpu { asks } else { "" })
        .replace("@PLAN@", &plan.path.display().to_string())
        .replace("@OUTPUT@", &plan.output.display().to_string())
}
