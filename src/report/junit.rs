//! Verdicts as JUnit XML, which every CI shows.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

/// One verdict of a gate.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// What was judged: a case and an output, or a model and sizes.
    pub name: String,
    /// What it belongs to.
    pub group: String,
    pub outcome: Outcome,
    /// Numbers, for those who want them.
    pub details: String,
    pub seconds: f64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Pass,
    Fail(String),
    /// It was not run, or cannot be told.
    NotRun(String),
}

/// The verdicts as one test suite.
///
/// # Errors
/// When the writer fails.
pub fn xml(suite: &str, cases: &[Case]) -> Result<String, String> {
    let mut tests = TestSuite::new(format!("kiln {suite}"));
    for case in cases {
        let mut status = match case.outcome {
            Outcome::Pass => TestCaseStatus::success(),
            Outcome::Fail(_) => TestCaseStatus::non_success(NonSuccessKind::Failure),
            Outcome::NotRun(_) => TestCaseStatus::skipped(),
        };
        if let Outcome::Fail(why) | Outcome::NotRun(why) = &case.outcome {
            status.set_message(why.clone());
        }
        if matches!(case.outcome, Outcome::Fail(_)) {
            status.set_type("gate");
        }
        let mut test = TestCase::new(case.name.clone(), status);
        test.set_classname(format!("kiln.{suite}.{}", case.group));
        if case.seconds > 0.0 {
            test.set_time(Duration::try_from_secs_f64(case.seconds).unwrap_or_default());
        }
        if !case.details.is_empty() {
            test.set_system_out(case.details.clone());
        }
        tests.add_test_case(test);
    }
    let mut report = Report::new("kiln");
    report.add_test_suite(tests);
    report.to_string().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_become_test_cases() {
        let case = |name: &str, outcome| Case {
            name: name.into(),
            group: "typical".into(),
            outcome,
            details: "cosine 0.9 < 1 & \u{1} \"odd\"".into(),
            seconds: 0.5,
        };
        let cases = [
            case("a", Outcome::Pass),
            case("b<c>", Outcome::Fail("cosine is 0.9 & low".into())),
            case("d", Outcome::NotRun("no CUDA device".into())),
        ];
        let text = xml("check", &cases).unwrap();
        let read = Report::deserialize_from_str(&text).unwrap();
        assert_eq!((read.tests, read.failures), (3, 1));
        let suite = &read.test_suites[0];
        assert!(matches!(
            suite.test_cases[2].status,
            TestCaseStatus::Skipped { .. }
        ));
        assert_eq!(suite.test_cases[1].name.as_str(), "b<c>");
        assert!(text.contains("cosine is 0.9 &amp; low"), "{text}");
    }
}
