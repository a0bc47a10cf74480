//! The one driver: runs a pipeline, times, counts, verifies, dumps.

use std::time::{Duration, Instant};

use kiln_graph::verify::{Finding, Phase, verify_model};
use kiln_graph::{Model, infer};

use super::gone::Results;
use super::pass::{Context, Exactness, Pass, PassFailure};

/// A step of a pipeline.
#[derive(Clone, Copy)]
pub enum Step {
    Run(&'static dyn Pass),
    /// From here on the model is in this phase; phases only go forward.
    Enter(Phase),
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Run(pass) => f.write_str(pass.name()),
            Step::Enter(phase) => write!(f, "{phase:?}"),
        }
    }
}

/// What one pass did.
#[derive(Clone, Debug)]
pub struct PassReport {
    pub name: &'static str,
    pub exactness: Exactness,
    pub applications: usize,
    pub elapsed: Duration,
    pub nodes_before: usize,
    pub nodes_after: usize,
    /// Nodes of the model as it was given that are gone, by their results: another node of the operator may have taken a name over.
    pub removed: Vec<String>,
}

/// The pipeline stopped.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error("pass {pass}: {failure}")]
    Failed {
        pass: &'static str,
        #[source]
        failure: PassFailure,
    },
    #[error("after pass {pass} the graph is broken, which is a defect of kiln: {}", list(.findings))]
    Broken {
        pass: &'static str,
        findings: Vec<Finding>,
    },
    #[error("the model is malformed: {}", list(.findings))]
    Malformed { findings: Vec<Finding> },
}

fn list(all: &[Finding]) -> String {
    let shown: Vec<String> = all.iter().take(3).map(Finding::to_string).collect();
    let more = all.len().saturating_sub(3);
    let tail = match more {
        0 => String::new(),
        n => format!("; and {n} more"),
    };
    shown.join("; ") + &tail
}

fn count_nodes(model: &Model) -> usize {
    let mut n = 0;
    model.graph.for_each_graph(&mut |g| n += g.node_count());
    n
}

/// Runs the steps in order. The verifier looks at the graph before the first and after every pass that changed it; types are inferred
/// again after every pass that changed something. `after` sees the model after each pass.
///
/// # Errors
/// When the model is malformed, a pass fails, or a pass leaves the graph broken.
pub fn run(
    model: &mut Model,
    steps: &[Step],
    cx: &mut Context<'_>,
    after: &mut dyn FnMut(&PassReport, &Model),
) -> Result<Vec<PassReport>, PassError> {
    let mut phase = Phase::Imported;
    let found = verify_model(model, phase);
    if !found.is_empty() {
        return Err(PassError::Malformed { findings: found });
    }
    cx.facts = infer::annotate(&mut model.graph);
    cx.current = true;
    // Operands that contradict each other may show only now that their types are known.
    let found = verify_model(model, phase);
    if !found.is_empty() {
        return Err(PassError::Malformed { findings: found });
    }
    let mut given = Results::of(&model.graph);
    let mut reports = Vec::new();
    for step in steps {
        let pass = match step {
            Step::Enter(next) => {
                phase = phase.max(*next);
                let findings = verify_model(model, phase);
                if !findings.is_empty() {
                    let pass = reports.last().map_or("(none)", |r: &PassReport| r.name);
                    return Err(PassError::Broken { pass, findings });
                }
                continue;
            }
            Step::Run(pass) => *pass,
        };
        let nodes_before = count_nodes(model);
        let start = Instant::now();
        let applications = pass.run(model, cx).map_err(|failure| PassError::Failed {
            pass: pass.name(),
            failure,
        })?;
        // A pass that says it changed nothing is believed in release builds only.
        let changed = applications > 0 || cfg!(debug_assertions);
        if changed {
            cx.facts = infer::annotate(&mut model.graph);
            cx.current = true;
        }
        let findings = match changed {
            true => verify_model(model, phase),
            false => Vec::new(),
        };
        if !findings.is_empty() {
            return Err(PassError::Broken {
                pass: pass.name(),
                findings,
            });
        }
        let report = PassReport {
            name: pass.name(),
            exactness: pass.exactness(),
            applications,
            elapsed: start.elapsed(),
            nodes_before,
            nodes_after: count_nodes(model),
            removed: match changed {
                true => given.gone(&model.graph),
                false => Vec::new(),
            },
        };
        after(&report, model);
        reports.push(report);
    }
    Ok(reports)
}
