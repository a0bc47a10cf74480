//! The verdicts and facts above a bundle's report.

use crate::bench::baseline::Verdict as Gate;
use crate::manifest::{EngineFacts, Manifest};
use crate::report::kernels::sentence;
use crate::report::page::{Head, Tone, Verdict};
use crate::report::verdict::{engine_verdict, parity_verdict};
use crate::setting::NO_CHECK;
use crate::summary::{Caches, bytes, count};
use crate::targets::Targets;

pub(super) fn head(m: &Manifest) -> Head {
    let name = std::path::Path::new(&m.source.path).file_name();
    Head {
        kind: "compilation report",
        title: name.map_or_else(
            || m.source.path.clone(),
            |n| n.to_string_lossy().into_owned(),
        ),
        paths: vec![("original", m.source.path.clone())],
        verdicts: verdicts(m),
        facts: facts(m),
    }
}

/// What was decided, and what was not.
fn verdicts(m: &Manifest) -> Vec<Verdict> {
    let mut all = vec![match &m.parity {
        None => Verdict {
            what: "parity with the original",
            word: "not run".into(),
            why: NO_CHECK.option(),
            tone: Tone::Open,
        },
        Some(report) => parity_verdict("parity with the original", report),
    }];
    // A processor's milliseconds say nothing of an engine, and where none serves it has no parity.
    let on_cpu = m.device.as_ref().is_none_or(|d| d.device.is_cpu());
    let for_cpu = m.target == Targets::Cpu.to_string();
    if !for_cpu && m.target != Targets::Cuda.to_string() {
        all.extend(m.engine.as_ref().map(built));
        all.push(engine_verdict(&m.engine_parity));
    }
    let speed = m.latency.as_ref().filter(|_| for_cpu || !on_cpu);
    if let Some(ratio) = speed.and_then(|l| l.ratios.first()) {
        let device = m.device.as_ref();
        let device = device.map_or("cpu".into(), |d| d.device.to_string());
        let (tone, why) = match ratio.interval {
            Some(i) => (
                match (i.low > 1.0, i.high < 1.0) {
                    (true, _) => Tone::Good,
                    (_, true) => Tone::Bad,
                    _ => Tone::Open,
                },
                format!(
                    "between {:.2}x and {:.2}x with 95 %, on {device}{not}",
                    i.low,
                    i.high,
                    not = if for_cpu { "" } else { "; not the engine" }
                ),
            ),
            None => (Tone::Open, "too few runs to tell".into()),
        };
        all.push(Verdict {
            what: "speed in ONNX Runtime",
            word: format!("{:.2}x of the original's", ratio.speedup),
            why,
            tone,
        });
    }
    all.extend(m.gates.iter().map(|gate| {
        Verdict {
            what: match &*gate.gate {
                "latency" => "gate on latency",
                "size" => "gate on size",
                "precision" => "gate on precision",
                "judge" => "own judge",
                _ => "gate on the engine's parity",
            },
            word: match gate.verdict {
                Gate::Pass => "passes",
                Gate::Fail => "fails",
                Gate::Unclear => "unclear",
                Gate::NotRun => "not run",
            }
            .into(),
            why: gate.why.clone(),
            tone: match gate.verdict {
                Gate::Pass => Tone::Good,
                Gate::Fail => Tone::Bad,
                Gate::Unclear | Gate::NotRun => Tone::Open,
            },
        }
    }));
    all
}

/// What was built.
fn built(e: &EngineFacts) -> Verdict {
    Verdict {
        what: "engine",
        word: format!("built, {}", bytes(e.bytes as usize)),
        why: match e.listed.kernels.is_empty() {
            true => e.runtime.clone(),
            false => sentence(&e.listed),
        },
        tone: match e.listed.otherwise.is_empty() {
            true => Tone::Good,
            false => Tone::Open,
        },
    }
}

fn facts(m: &Manifest) -> Vec<(&'static str, String)> {
    let (before, after) = (m.source.bytes, m.model_bytes());
    let share = 100.0 * after as f64 / before.max(1) as f64;
    let mut facts = vec![
        ("target", m.target.replace(',', ", ")),
        ("precision", m.precision.clone()),
        (
            "model",
            format!(
                "{} → {} ({share:.0} %)",
                bytes(before as usize),
                bytes(after as usize)
            ),
        ),
        ("nodes", format!("{} → {}", m.before.nodes, m.after.nodes)),
        ("parameters", count(m.before.parameters)),
    ];
    // Of one row.
    let caches: Vec<String> = m.after.caches.iter().map(Caches::describe).collect();
    if !caches.is_empty() {
        facts.push(("caches, a row", caches.join("; ")));
    }
    if let Some(e) = &m.engine {
        facts.push(("engine", bytes(e.bytes as usize)));
    }
    let sizes = m.sizes.iter();
    facts.extend(match m.sizes.is_empty() {
        true => vec![("sizes", "fixed".into())],
        false => {
            let sizes = sizes.map(|(name, range)| format!("{name} {range}"));
            vec![("sizes, min:opt:max", sizes.collect::<Vec<_>>().join(", "))]
        }
    });
    facts
}
