//! Every case gives its blessed diff; `KILN_BLESS=1` writes the diffs again.

mod harness;

use std::fs;

use kiln_passes::registry;

/// Folding numbers needs a runtime: the root package runs those cases.
fn needs_runtime(passes: &str) -> bool {
    passes.contains("fold-constants") || passes.contains("fold-positions")
}

#[test]
fn cases_give_their_blessed_diffs() {
    let bless = std::env::var_os("KILN_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in harness::cases() {
        if needs_runtime(&case.passes) {
            continue;
        }
        let applied = harness::apply(&case, None);
        let name = case.path.display().to_string();
        let diff = harness::diff(&applied);
        let raised = applied.before.graph.opset() != applied.after.graph.opset();
        if case.must_stay() && (applied.applications > 0 || raised) {
            wrong.push(format!("{name}: must not apply, but did:\n{diff}"));
        }
        if let Some(miss) = &case.miss
            && !applied.misses.iter().any(|m| m.contains(miss.as_str()))
        {
            wrong.push(format!(
                "{name}: no miss says '{miss}', but: {:?}",
                applied.misses
            ));
        }
        if case.must_stay() {
            continue;
        }
        if diff.is_empty() {
            wrong.push(format!(
                "{name}: nothing applied; misses: {:?}",
                applied.misses
            ));
        }
        let blessed = case.path.with_extension("diff");
        if bless {
            fs::write(&blessed, &diff).unwrap();
        } else if fs::read_to_string(&blessed).unwrap_or_default() != diff {
            wrong.push(format!(
                "{name}: the diff differs; `make bless` writes it again:\n{diff}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_pass_has_a_positive_and_a_negative_case() {
    let cases = harness::cases();
    for pass in registry::ALL {
        let folder = |c: &&harness::Case| c.path.parent().unwrap().ends_with(pass.name());
        let mine: Vec<_> = cases.iter().filter(folder).collect();
        assert!(
            mine.iter().any(|c| !c.must_stay()),
            "{} has no positive case",
            pass.name()
        );
        assert!(
            mine.iter().any(|c| c.must_stay()),
            "{} has no negative case",
            pass.name()
        );
    }
}

#[test]
fn passes_are_idempotent_and_deterministic() {
    for case in harness::cases() {
        if needs_runtime(&case.passes)
            || case.must_stay()
            || case.passes.contains("convert-fp16")
            || case.passes.contains("convert-bf16")
            // Where the target has no operator for it, lowering writes the products again that fusing began with.
            || case.passes.contains("fuse-attention,lower-attention")
        {
            continue;
        }
        let first = harness::print_whole(&harness::apply(&case, None).after);
        let same = harness::print_whole(&harness::apply(&case, None).after);
        assert_eq!(first, same);
        let again = harness::Case {
            source: first.clone(),
            miss: None,
            ..case
        };
        let twice = harness::apply(&again, None);
        // Reading numbers the values anew, so the model is compared as it was read.
        assert_eq!(
            harness::print(&twice.after),
            harness::print(&twice.before),
            "{}",
            again.path.display()
        );
        assert_eq!(twice.applications, 0, "{}", again.path.display());
    }
}

#[test]
fn every_change_is_admitted() {
    let mut wrong = Vec::new();
    for case in harness::cases() {
        let found = harness::beyond_limits(&case, None);
        if !needs_runtime(&case.passes) && !found.is_empty() {
            wrong.push(format!("{}: {found}", case.path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_body_of_a_fusion_parses() {
    for fusion in registry::fusions() {
        for body in fusion.bodies {
            kiln_passes::fusion::parse(body)
                .unwrap_or_else(|e| panic!("{}: {e}\n{body}", fusion.name));
        }
        assert_eq!(fusion.functions().len(), fusion.bodies.len());
    }
}
