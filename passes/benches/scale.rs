//! Time of the default passes over graphs of growing size: it should grow as the graph does.
//!
//! `cargo bench -p kiln-passes --bench scale`; with `KILN_PASS_TIMES`, by pass.

mod decoder;

use std::time::Instant;

use decoder::model;
use kiln_passes::{Context, Options, PassReport, Target, registry};

fn run(target: &Target, nodes: usize) -> (f64, Vec<PassReport>) {
    let mut model = model(nodes);
    let options = Options::default();
    let mut cx = Context::new(target, &options);
    let steps = [registry::DEFAULT, registry::LOWER].concat();
    let start = Instant::now();
    let reports =
        kiln_passes::run(&mut model, &steps, &mut cx, &mut |_, _| {}).expect("the passes run");
    (start.elapsed().as_secs_f64(), reports)
}

fn main() {
    let targets = [
        ("standard", Target::standard()),
        ("cpu", Target::cpu()),
        ("sm_89", Target::tensorrt("sm_89")),
    ];
    println!(
        "{:>10} {:>10} {:>9} {:>12} {:>8}",
        "target", "nodes", "seconds", "µs per node", "ratio"
    );
    for (name, target) in &targets {
        let mut before: Option<f64> = None;
        for nodes in [10_000, 30_000, 100_000, 300_000] {
            let count = model(nodes).graph.node_count();
            // The best of some: what disturbs the machine only ever adds.
            let (seconds, reports) = (0..if nodes > 100_000 { 1 } else { 3 })
                .map(|_| run(target, nodes))
                .min_by(|a, b| a.0.total_cmp(&b.0))
                .expect("at least one run");
            let ratio = before.map_or(String::new(), |b| format!("{:.1}", seconds / b));
            println!(
                "{name:>10} {count:>10} {seconds:>9.3} {:>12.2} {ratio:>8}",
                seconds / count as f64 * 1e6
            );
            before = Some(seconds);
            if std::env::var_os("KILN_PASS_TIMES").is_some() {
                for r in reports
                    .iter()
                    .filter(|r| r.elapsed.as_secs_f64() > seconds * 0.03)
                {
                    println!(
                        "{:>30} {:.3} s, {} applied",
                        r.name,
                        r.elapsed.as_secs_f64(),
                        r.applications
                    );
                }
            }
        }
    }
}
