//! The machine that something ran on, for reports.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where something ran.
#[derive(Clone, Debug, Serialize, JsonSchema, Deserialize, Default)]
#[serde(default)]
pub struct Environment {
    pub os: String,
    pub cpu: String,
    pub threads: usize,
}

pub fn environment() -> Environment {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|l| l.starts_with("model name"));
    let cpu = model
        .and_then(|l| l.split_once(':'))
        .map_or("unknown", |(_, name)| name.trim());
    Environment {
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: cpu.to_string(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    }
}
